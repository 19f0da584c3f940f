import re
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lighttoken import LighttokenError, compress_table, load_table
from lighttoken.codec.baselines.svd import SVD
from lighttoken.codec.loss import weighted_error
from lighttoken.codec.paper.method import LightTokenPaper

SVD_FLOAT16 = SVD(coefficient_precision="float16", matrix_precision="float16")

TRAINER = partial(L.Trainer, max_steps=60, accelerator="cpu", devices=1, log_every_n_steps=20)
SMALL = LightTokenPaper(stage_bits=24, trainer=TRAINER, batch_size=128)


def compress(table, ratio=6.0, codec=SMALL, **changes):
    return compress_table(table, codec, ratio, progress=False, **changes)


def test_many_small_stages_still_meet_the_ratio():
    fine = LightTokenPaper(stage_bits=16, trainer=partial(TRAINER, max_steps=2), batch_size=128, min_gain=-1.0)
    compressed = compress(torch.randn(3000, 64), ratio=2.4, codec=fine)
    assert len(compressed.summary["stages"]) > 20
    assert compressed.ratio >= 2.4


@pytest.mark.parametrize("ratio", [1.5, 4, 8, 15])
@pytest.mark.parametrize("codec", [SMALL, "svd"])
def test_the_files_on_disk_meet_the_ratio(tmp_path, table, ratio, codec):
    compressed = compress(table, ratio, codec)
    compressed.save(tmp_path)
    assert table.numel() * 4 / sum(path.stat().st_size for path in tmp_path.iterdir()) >= ratio


def test_one_more_byte_a_row_would_break_the_budget(table):
    table = table.repeat(4, 1)
    compressed = compress(table, ratio=8.0)
    more = len(table) + 8 * (table.shape[1] + 4)  # codes, and the rows and scales of the decoder
    bound_of_description = 1500
    assert compressed.nbytes + more + bound_of_description > table.numel() * 4 / 8.0


def test_more_bytes_give_a_smaller_error(table):
    errors = [compress(table, ratio).summary["nmse"] for ratio in (12, 8, 5, 3)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.2 * errors[0]


def test_the_summary_tells_the_errors_of_the_decoded_rows(table):
    compressed = compress(table)
    rows = compressed.decode()
    assert compressed.summary["nmse"] == pytest.approx(float((rows - table).square().mean() / table.var()), abs=1e-5)
    assert compressed.summary["cosine"] == pytest.approx(float(torch.cosine_similarity(rows, table).mean()), abs=1e-5)
    assert compressed.summary["bits_per_row"] == 8 * compressed.tensors["codes"].shape[1]


def test_each_restart_lowers_the_error(table):
    stages = compress(table, ratio=4.0).summary["stages"]
    assert len(stages) >= 3
    errors = [stage["nmse"] for stage in stages]
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == len(errors)


def test_refined_codes_lower_the_error_at_the_same_bytes(table):
    refined = LightTokenPaper(stage_bits=24, trainer=TRAINER, batch_size=128, refine_rounds=10)
    plain, better = compress(table), compress(table, codec=refined)
    assert better.ratio >= 6.0
    assert better.summary["bits_per_row"] == plain.summary["bits_per_row"]
    assert better.summary["nmse"] < 0.9 * plain.summary["nmse"]
    assert better.summary["refined"] == sorted(better.summary["refined"], reverse=True)


def test_a_stage_whose_restart_no_longer_pays_is_not_kept(table):
    greedy = LightTokenPaper(stage_bits=24, trainer=TRAINER, batch_size=128, min_gain=0.9)
    compressed = compress(table, ratio=4.0, codec=greedy)
    assert compressed.summary["planned_stages"] >= 3
    assert compressed.summary["stages"] == []
    assert compressed.tensors["codes"].shape == (1200, 0)
    assert compressed.decode().shape == table.shape


def test_the_same_seed_gives_the_same_bytes_and_0_is_a_seed(tmp_path, table):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(99 if folder == "a" else 7)  # the caller's random state does not matter
        compress(table, seed=seed).save(tmp_path / folder)
    files = {folder: [path.read_bytes() for path in sorted((tmp_path / folder).iterdir())] for folder in "abc"}
    assert files["a"] == files["b"]
    assert files["a"][1] != files["c"][1]


def test_the_random_state_of_the_caller_is_left_alone(table):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    compress(table)
    assert torch.equal(torch.rand(3), expected)


def test_an_artifact_decodes_alike_after_a_round_trip(tmp_path, table):
    compressed = compress(table)
    assert torch.equal(load_table(compressed.save(tmp_path)).decode(), compressed.decode())


def test_weights_favour_heavy_rows(table):
    weights = torch.ones(1200)
    weights[:100] = 30
    plain, weighted = compress(table), compress(table, weights=weights)
    heavy, light = slice(0, 100), slice(100, None)

    def error(compressed, rows):
        return weighted_error(table[rows], compressed.decode()[rows], torch.ones(len(table[rows])))

    assert error(weighted, heavy) < error(plain, heavy)
    assert error(weighted, light) > error(plain, light)


def test_half_precision_tables_compress_like_their_float32_values(table):
    assert torch.equal(compress(table.half()).decode(), compress(table.half().float()).decode())


def test_a_table_without_variance_compresses():
    compressed = compress(torch.full((1200, 32), 0.5))
    torch.testing.assert_close(compressed.decode(), torch.full((1200, 32), 0.5), atol=1e-5, rtol=0)


def test_curves_of_every_stage_reach_the_logger(tmp_path, table):
    compressed = compress(table, ratio=4.0, loggers=[CSVLogger(tmp_path, name="", version="")])
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    names = ("loss", "magnitude_loss", "angular_loss", "cosine", "temperature", "saturation")
    stages = range(1, len(compressed.summary["stages"]) + 1)
    assert {f"stage{stage}/{name}" for stage in stages for name in names} <= set(header)


def test_the_caller_of_python_gets_a_progress_bar_and_no_notes(table, capsys):
    compress_table(table, SMALL, 6.0)
    captured = capsys.readouterr()
    assert "stage 1/" in captured.err
    assert "GPU" not in captured.err + captured.out


def test_values_beyond_the_stored_precision_are_refused(table):
    with pytest.raises(LighttokenError, match="'right' cannot hold in float16; .* or matrix_precision=int8 where"):
        compress_table(table * 1e6, SVD_FLOAT16, 2.0, progress=False)


def with_nan(table):
    table = table.clone()
    table[[3, 8], 2] = torch.nan
    return table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda table: {"codec": "huffman"},
            "unknown codec 'huffman'; choose one of lighttoken, lighttoken_paper, compositional_codes, gguf, hash",
        ),
        (lambda table: {"ratio": 1.0}, "ratio 1.0 does not compress: it must be a number above 1"),
        (lambda table: {"codec": 5}, "unknown codec 5; choose one of lighttoken"),
        (lambda table: {"ratio": "25"}, "ratio '25' does not compress: it must be a number above 1"),
        (lambda table: {"table": torch.nn.Linear(5, 3)}, "a table of type Linear is no tensor"),
        (lambda table: {"table": [[1.0, 2.0], [3.0]]}, "a table of type list is no tensor"),
        (lambda table: {"weights": "all"}, "weights of type str is no tensor"),
        (lambda table: {"ratio": -3.0}, "ratio -3.0 does not compress"),
        (lambda table: {"ratio": float("nan")}, "ratio nan does not compress"),
        (lambda table: {"ratio": 1000.0}, r"ratio 1000 cannot be met: lighttoken_paper reaches up to \d+"),
        (lambda table: {"table": with_nan(table)}, "NaN or infinite values in 2 of 1200 rows, the first in row 3"),
        (lambda table: {"table": table[0]}, r"a table is a float matrix \(V, d\), got torch.float32 of shape \(32,\)"),
        (lambda table: {"table": table[:1, :1].expand(2**22 + 1, 1)}, r"at most 4194304 .* got shape \(4194305, 1\)"),
        (lambda table: {"table": table.long()}, r"got torch.int64 of shape \(1200, 32\)"),
        (lambda table: {"weights": torch.ones(5)}, r"weights have shape \(5,\) and the table 1200 rows"),
        (lambda table: {"weights": -torch.ones(1200)}, "positive numbers, got a minimum of -1"),
    ],
)
def test_bad_input_is_named_with_its_cure(table, change, message):
    with pytest.raises(LighttokenError, match=message) as caught:
        compress_table(**({"table": table, "codec": SMALL, "progress": False} | change(table)))
    assert "\n" not in str(caught.value)


def test_arrays_and_lists_are_tables_and_weights_as_tensors_are(table):
    weights = torch.rand(1200) + 0.1
    expected = compress_table(table, SMALL, 4.0, weights, progress=False).decode()
    for rows, importance in ((table.numpy(), weights.numpy()), (table.tolist(), weights.tolist())):
        assert torch.equal(compress_table(rows, SMALL, 4.0, importance, progress=False).decode(), expected)


def test_the_reachable_ratio_that_the_error_names_can_be_reached(table):
    with pytest.raises(LighttokenError) as caught:
        compress(table, ratio=1000.0)
    largest = float(re.search(r"up to ([\d.]+)", str(caught.value))[1])
    assert compress(table, ratio=largest).ratio >= largest
