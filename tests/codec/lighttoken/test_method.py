import re

import numpy as np
import pytest
import torch

from lighttoken import LighttokenError, compress_table, compress_to_quality, load_table
from lighttoken.codec.interface import Importance, resolve_devices
from lighttoken.codec.lighttoken.method import LightToken
from lighttoken.codec.loss import weighted_error

SMALL = LightToken(state_bits=10)


@pytest.fixture
def table():
    """A table (3000, 32) with a falling spectrum and rows of different length, as token tables have."""
    return torch.randn(3000, 32) * torch.linspace(1.5, 0.2, 32) * (torch.rand(3000, 1) + 0.3) + torch.randn(32) * 0.3


def compress(table, ratio=16.0, codec=SMALL, **changes):
    return compress_table(table, codec, ratio, progress=False, **changes)


@pytest.mark.parametrize("ratio", [6, 8, 16, 25])
def test_the_files_on_disk_meet_the_ratio_and_no_more(tmp_path, table, ratio):
    compress(table, ratio).save(tmp_path)
    reached = table.numel() * 4 / sum(path.stat().st_size for path in tmp_path.iterdir())
    assert ratio <= reached
    assert reached < ratio * 1.06


def test_it_beats_the_published_form_at_the_same_bytes(table):
    from functools import partial

    import lightning as L

    from lighttoken.codec.paper.method import LightTokenPaper

    trainer = partial(L.Trainer, max_steps=300, accelerator="cpu", devices=1, log_every_n_steps=20)
    paper = compress(table, codec=LightTokenPaper(stage_bits=24, trainer=trainer, batch_size=128))
    assert compress(table).summary["nmse"] < 0.8 * paper.summary["nmse"]


@pytest.mark.slow
def test_more_bytes_give_a_smaller_error(table):
    errors = [compress(table, ratio).summary["nmse"] for ratio in (40, 24, 16, 12, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


@pytest.mark.slow
def test_more_states_give_a_smaller_error(table):
    errors = [compress(table, codec=LightToken(state_bits=bits)).summary["nmse"] for bits in (4, 8, 11)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(("ratio", "accuracy"), [(8.1, 0.15), (8, 0.15), (16, 0.06), (23, 0.08)])
def test_the_plan_predicts_the_error(table, ratio, accuracy):
    # The plan takes the windows of all steps to be full. In these short rows, many are not: up to 8 % is lost on them.
    summary = compress(table, ratio).summary
    centred = float((table - table.mean(0)).square().mean() / table.var())
    assert summary["nmse"] == pytest.approx(summary["predicted"] * centred, rel=accuracy)


def test_the_summary_tells_the_errors_of_the_decoded_rows(table):
    compressed = compress(table)
    rows = compressed.decode()
    assert compressed.summary["nmse"] == pytest.approx(float((rows - table).square().mean() / table.var()), abs=1e-5)
    assert compressed.summary["cosine"] == pytest.approx(float(torch.cosine_similarity(rows, table).mean()), abs=1e-5)
    assert sum(compressed.summary["tier_rows"]) == len(table)


def test_an_artifact_decodes_alike_after_a_round_trip(tmp_path, table):
    compressed = compress(table)
    assert torch.equal(load_table(compressed.save(tmp_path)).decode(), compressed.decode())


def test_the_same_inputs_give_the_same_bytes(tmp_path, table):
    for folder in "ab":
        compress(table).save(tmp_path / folder)
    files = [[path.read_bytes() for path in sorted((tmp_path / folder).iterdir())] for folder in "ab"]
    assert files[0] == files[1]


def test_weights_favour_heavy_rows(table):
    weights = torch.ones(3000)
    weights[:300] = 30
    plain, weighted = compress(table), compress(table, weights=weights)
    heavy, light = slice(0, 300), slice(300, None)

    def error(compressed, rows):
        return weighted_error(table[rows], compressed.decode()[rows], torch.ones(len(table[rows])))

    assert error(weighted, heavy) < 0.5 * error(plain, heavy)
    assert error(weighted, light) > error(plain, light)
    assert weighted.summary["rarest_nmse"] > weighted.summary["nmse"]


def with_metric(error_metric):
    return Importance(torch.ones(3000), error_metric)


def test_the_error_metric_says_which_errors_matter(table):
    metric = torch.diag(torch.linspace(0.1, 10, 32))
    plain, weighed = compress(table), compress(table, importance=with_metric(metric))

    def error(compressed):
        difference = compressed.decode() - table
        return float(torch.einsum("vi,ij,vj->", difference, metric, difference))

    assert error(weighed) < 0.8 * error(plain)
    assert plain.summary["nmse"] < weighed.summary["nmse"]


def test_directions_that_the_error_metric_ignores_are_still_decoded(table):
    values = torch.zeros(32)
    values[:8] = 1
    rows = compress(table, importance=with_metric(torch.diag(values))).decode()
    assert torch.isfinite(rows).all()
    assert float((rows - table)[:, :8].square().mean()) < float((rows - table)[:, 8:].square().mean())


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_the_units_of_a_table_do_not_matter(table, factor):
    table = torch.cat([table + 0.1 * torch.randn_like(table) for _ in range(4)])  # so that a wider bias costs little
    assert compress(table * factor).summary["nmse"] == pytest.approx(compress(table).summary["nmse"], rel=0.01)


def test_a_table_without_variance_compresses():
    table = torch.full((3000, 32), 0.5)
    torch.testing.assert_close(compress(table).decode(), table, atol=1e-2, rtol=0)


def test_rows_that_are_all_alike_cost_next_to_nothing(table):
    table[:1500] = table[0]
    compressed = compress(table)
    assert compressed.summary["nmse"] < compress(torch.cat([table[1500:], torch.randn(1500, 32)])).summary["nmse"]


def test_half_precision_tables_compress_like_their_float32_values(table):
    assert torch.equal(compress(table.half()).decode(), compress(table.half().float()).decode())


def test_the_artifact_says_where_the_importance_is_from(table):
    assert compress(table).settings["importance"] == {"prior": "uniform", "error_metric": "euclidean"}
    weights = torch.rand(3000) + 0.1
    assert compress(table, weights=weights).settings["importance"] == {"prior": "given", "error_metric": "euclidean"}
    settings = {"prior": "wordfreq", "error_metric": "backbone"}
    importance = Importance(weights, settings=settings)
    assert compress(table, importance=importance).settings["importance"] == settings


def test_the_reachable_ratio_that_the_error_names_can_be_reached(table):
    with pytest.raises(LighttokenError) as caught:
        compress(table, ratio=5000.0)
    largest = float(re.search(r"up to ([\d.]+)", str(caught.value))[1])
    assert compress(table, ratio=largest).ratio >= largest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"importance": with_metric(torch.eye(5))},
            r"the error metric has shape \(5, 5\), a table of width 32 needs \(32, 32\)",
        ),
        ({"importance": with_metric(torch.ones(32, 32).triu())}, "the error metric is not symmetric"),
        ({"importance": with_metric(torch.zeros(32, 32))}, "the error metric has a trace of 0"),
        ({"importance": with_metric(torch.diag(torch.linspace(-2, 1, 32)))}, "the error metric has a trace of -16"),
        ({"seed": 2**70}, f"seed is {2**70}; it must be 0 or above"),
        (
            {"importance": Importance(torch.ones(3000)), "weights": torch.ones(3000)},
            "weights and importance both say how much rows matter; pass one of the two",
        ),
        ({"codec": LightToken(device="tpu")}, "device 'tpu' is not there; choose auto or cpu"),
    ],
)
def test_bad_input_is_named_with_its_cure(table, change, message):
    with pytest.raises(LighttokenError, match=message) as caught:
        compress(table, **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"state_bits": 20}, "state_bits is 20; it must be from 4 to 16"),
        ({"state_bits": 3}, "state_bits is 3; it must be from 4 to 16"),
        ({"tiers": 17}, "tiers is 17; it must be from 1 to 16, or null"),
        ({"error_metric_sequences": 0}, "error_metric_sequences is 0; it must be 1 or above"),
        ({"error_metric_damping": -1.0}, "error_metric_damping is -1.0; it must be 0 or above"),
    ],
)
def test_settings_out_of_range_are_named(setting, message):
    with pytest.raises(LighttokenError, match=message):
        LightToken(**setting)


@pytest.mark.slow
@pytest.mark.parametrize(("measure", "bound"), [("weighted_nmse", 0.1), ("nmse", 0.3), ("cosine", 0.9)])
def test_quality_is_kept_by_an_artifact_that_is_no_larger_than_need_be(table, measure, bound):
    weights = torch.rand(3000) + 0.1
    smallest = compress_to_quality(table, SMALL, measure=measure, bound=bound, weights=weights, progress=False)
    better = [smallest.summary[measure], bound] if measure == "cosine" else [bound, smallest.summary[measure]]
    assert better[0] >= better[1]
    smaller = compress(table, smallest.ratio * 1.05, weights=weights).summary[measure]
    assert smaller < bound if measure == "cosine" else smaller > bound


@pytest.mark.parametrize("bound", [0.05, 0.2])
def test_a_search_for_a_quality_is_not_misled_by_errors_of_about_0(bound):
    rows = torch.randn(4000, 32)  # all of its 32 components in float16, at 2x, have an error of 1e-7
    smallest = compress_to_quality(rows, "svd", measure="nmse", bound=bound, progress=False)
    assert smallest.summary["nmse"] <= bound
    fewer = compress_table(rows, "svd", smallest.ratio * 1.04, progress=False)
    assert fewer.summary["nmse"] > bound


@pytest.mark.slow
def test_a_quality_that_cannot_be_kept_is_named(table):
    for settings, message in (
        ({"measure": "beauty", "bound": 0.5}, "unknown measure 'beauty'; choose one of weighted_nmse, nmse, cosine"),
        ({"measure": "nmse", "bound": 2.0}, "quality 2 is not between 0 and 1, where nmse lies"),
        ({"measure": "nmse", "bound": 1e-9}, "no artifact keeps nmse at 1e-09: at ratio 1.5 it is"),
    ):
        with pytest.raises(LighttokenError, match=message):
            compress_to_quality(table, SMALL, progress=False, **settings)


@pytest.mark.parametrize("ratio", [4.0, 8.0])
def test_repeated_rows_do_not_make_a_decoder_that_its_rounding_ruins(ratio):
    repeated = torch.randn(10, 33).repeat(34, 1)[:333] * 0.05
    constant = torch.cat([torch.randn(1, 32).expand(380, 32), torch.randn(20, 32)])
    for rows in (repeated, constant):
        assert compress(rows, ratio).summary["nmse"] < 1e-3


@pytest.mark.parametrize("factor", [150.0, 1000.0])
def test_a_large_row_that_hardly_counts_does_not_overflow_the_lengths_of_integers(tmp_path, factor):
    table = torch.randn(500, 768)
    table[7] *= factor
    weights = torch.ones(500)
    weights[7] = 1 / factor**2  # so that it is in a tier with rows that need a fine spacing
    compressed = compress(table, 4.0, LightToken(), weights=weights)
    compressed.save(tmp_path)
    rows = load_table(tmp_path).decode()
    assert float(((rows - table)[8:] ** 2).mean()) < 0.02


def test_what_no_ratio_cures_is_told_by_the_search_for_a_quality_too(table):
    with pytest.raises(LighttokenError, match="unknown codec 'huffman'"):
        compress_to_quality(table, "huffman", measure="nmse", bound=0.3)
    with pytest.raises(LighttokenError, match="pass one per row"):
        compress_to_quality(table, SMALL, measure="nmse", bound=0.3, weights=torch.ones(3), progress=False)


def test_relations_of_another_vocabulary_are_refused(table):
    importance = Importance(torch.ones(len(table)), relations=torch.zeros(7, dtype=torch.int32))
    with pytest.raises(LighttokenError, match=r"relations have shape \(7,\) and the table 3000 rows; measure"):
        compress_table(table, importance=importance, ratio=5, progress=False)


@pytest.mark.parametrize("codec", [SMALL, "near_lossless_binary", "orientation_ae"])
def test_the_state_of_the_code_around_makes_no_difference(table, codec):
    rows = table[:400]
    expected = compress(rows, 4.0, codec)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        compressed = compress(rows, 4.0, codec, seed=np.int64(0))
        assert torch.equal(compressed.decode(), expected.decode())
        assert torch.is_autocast_enabled("cpu")
    torch.set_default_dtype(torch.float64)
    try:
        compressed = compress(rows, 4.0, codec)
        assert compressed.decode().dtype == torch.float32
        assert torch.equal(compressed.decode(), expected.decode())
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(compressed.decode(np.array([1, 2], dtype=np.uint16)), expected.decode([1, 2]))


@pytest.mark.parametrize(("count", "shared"), [(0, ["cpu"]), (1, ["cuda:0"]), (3, ["cuda:0", "cuda:1", "cuda:2"])])
def test_all_gpus_share_a_search(count, shared, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert resolve_devices("auto") == [torch.device(name) for name in shared]
    assert resolve_devices("cpu") == [torch.device("cpu")]
