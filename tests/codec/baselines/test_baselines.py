"""What every baseline keeps to, and what makes each of them the method that it says it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM

from lighttoken import CompressedEmbedding, LighttokenError, compress_table, load_table, swap_embedding
from lighttoken.artifact.forms import hashed_rows
from lighttoken.artifact.packing import read_words, unpack_bits
from lighttoken.backbone.embedding import set_trainable
from lighttoken.codec import CODECS
from lighttoken.codec.baselines.compositional_codes import CompositionalCodes
from lighttoken.codec.baselines.gguf import GGUF
from lighttoken.codec.baselines.hashing_trick import HashingTrick
from lighttoken.codec.baselines.lsq import LSQ
from lighttoken.codec.baselines.near_lossless_binary import NearLosslessBinary
from lighttoken.codec.baselines.opq import OPQ, eigenvalue_allocation
from lighttoken.codec.baselines.orientation_ae import OrientationAE
from lighttoken.codec.baselines.pq import PQ
from lighttoken.codec.baselines.rq import RQ
from lighttoken.codec.baselines.scalar import Scalar, quantize_rows
from lighttoken.codec.baselines.svd import SVD
from lighttoken.codec.baselines.tensor_train import TensorTrain
from lighttoken.codec.baselines.vocabulary_pruning import VocabularyPruning

BASELINES = {  # with settings that take a second
    "compositional_codes": CompositionalCodes(steps=60),
    "gguf": GGUF(),
    "hashing_trick": HashingTrick(),
    "lsq": LSQ(bits=4, max_words=4),
    "near_lossless_binary": NearLosslessBinary(epochs=1),
    "opq": OPQ(bits=4),
    "orientation_ae": OrientationAE(epochs=1),
    "pq": PQ(bits=4),
    "rq": RQ(bits=4),
    "scalar": Scalar(),
    "svd": SVD(),
    "tensor_train": TensorTrain(),
    "vocabulary_pruning": VocabularyPruning(),
}
FORMS = [
    "gguf",
    "hashing_trick",
    "opq",
    "scalar",
    "tensor_train",
    "vocabulary_pruning",
]  # one of each, all that a form can have


@pytest.fixture(params=BASELINES)
def baseline(request):
    return BASELINES[request.param]


def compress(table, codec, ratio=8.0, **settings):
    return compress_table(table, codec, ratio, progress=False, **settings)


def nmse(table, compressed):
    return float((compressed.decode() - table).square().mean() / table.var())


def test_all_are_known_by_name():
    assert {*BASELINES, "lighttoken", "lighttoken_paper"} == CODECS.keys()
    assert all(codec.name == name for name, codec in BASELINES.items())


@pytest.mark.parametrize("ratio", [6.0, 9.5])
def test_the_ratio_is_met_on_disk_with_little_to_spare(table, baseline, ratio, tmp_path):
    compressed = compress(table, baseline, ratio)
    compressed.save(tmp_path)
    assert table.numel() * 4 / sum(path.stat().st_size for path in tmp_path.iterdir()) >= ratio
    if baseline.name not in ("gguf", "scalar", "lsq"):  # which have few sizes
        assert compressed.ratio < 1.5 * ratio


def test_the_same_seed_gives_the_same_bytes_and_an_artifact_loads_as_it_was_saved(table, baseline, tmp_path):
    first, second = compress(table, baseline, seed=3), compress(table, baseline, seed=3)
    loaded = load_table(first.save(tmp_path))
    assert first._files == second._files == loaded._files
    assert torch.equal(loaded.decode(), first.decode())


def test_any_ids_in_any_order_decode_to_their_rows(table, baseline):
    compressed = compress(table, baseline)
    ids = torch.tensor([[1199, 0, 7], [7, 600, 1]])
    torch.testing.assert_close(compressed.decode(ids), compressed.decode()[ids])


def test_a_table_is_represented_better_than_by_its_mean(table, baseline):
    assert nmse(table, compress(table, baseline, 4.0)) < 0.95


def test_a_ratio_out_of_reach_is_refused_with_the_one_in_reach(table, baseline):
    with pytest.raises(LighttokenError, match=rf"ratio 1000 cannot be met: {baseline.name} reaches up to [\d.]+ on"):
        compress(table, baseline, 1000.0)


@pytest.mark.parametrize(("name", "package"), [("pq", "faiss"), ("lsq", "faiss"), ("tensor_train", "tensorly")])
def test_a_library_that_is_not_installed_is_named_with_its_install_line(monkeypatch, name, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        LighttokenError, match=rf"{package} is not installed; run pip install 'lighttoken\[baselines\]'"
    ):
        type(BASELINES[name])()


@pytest.mark.parametrize("name", FORMS)
def test_an_embedding_looks_up_trains_and_projects_as_the_decoded_table(table, name):
    compressed = compress(table, BASELINES[name])
    embedding, ids = CompressedEmbedding(compressed), torch.randint(1200, (2, 5))
    torch.testing.assert_close(embedding(ids), compressed.decode(ids))
    torch.testing.assert_close(embedding.weight, compressed.decode())
    vectors = torch.randn(3, 32)
    torch.testing.assert_close(embedding.project(vectors), vectors @ compressed.decode().T, atol=1e-4, rtol=1e-4)
    set_trainable(embedding, "decoder+factors")
    torch.testing.assert_close(embedding(ids), compressed.decode(ids))
    embedding(ids).square().sum().backward()
    assert {n for n, p in embedding.trained.items() if p.grad is not None and bool(p.grad.any())} == set(
        embedding.trained
    )
    embedding.set_trainable(())
    embedding.set_mode("materialized")
    torch.testing.assert_close(embedding(ids), compressed.decode(ids))


@pytest.mark.parametrize("name", FORMS)
def test_a_checkpoint_with_a_tied_head_loads_again(make_model, name, tmp_path):
    model = make_model("bert", AutoModelForMaskedLM)
    compressed = compress(model.get_input_embeddings().weight, BASELINES[name], 2.0)
    swap_embedding(model, compressed)
    model.save_pretrained(tmp_path)
    ids = torch.arange(1, 19).view(2, 9)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(ids).logits, model.eval()(ids).logits, atol=1e-5, rtol=1e-5)
    body = AutoModel.from_pretrained(tmp_path).get_input_embeddings()
    assert torch.equal(body.weight, model.get_input_embeddings().weight)


@pytest.mark.parametrize("name", FORMS)
def test_a_tensor_of_another_shape_is_refused(table, name):
    compressed = compress(table, BASELINES[name])
    for damaged in set(compressed.tensors):
        tensors = dict(compressed.tensors)
        tensors[damaged] = tensors[damaged][..., :-1]
        with pytest.raises(ValueError, match=r".+"):
            replace(compressed, tensors=tensors).check()


# --- what makes each the method it is --------------------------------------------------------------------------------


def faiss_rows(quantizer, rows):
    return torch.from_numpy(quantizer.decode(quantizer.compute_codes(rows)))


@pytest.mark.parametrize("name", ["pq", "rq", "lsq"])
def test_rows_are_those_that_faiss_decodes_but_for_rounding(table, name, monkeypatch):
    import faiss

    kinds = {"pq": faiss.ProductQuantizer, "rq": faiss.ResidualQuantizer, "lsq": faiss.LocalSearchQuantizer}
    quantizers = []

    def remember(*arguments):
        quantizers.append(kinds[name](*arguments))
        return quantizers[-1]

    monkeypatch.setattr(faiss, kinds[name].__name__, remember)
    compressed = compress(table, BASELINES[name])
    centred = (table - compressed.matrix("bias")).numpy()
    (quantizer,) = quantizers
    torch.testing.assert_close(
        compressed.decode() - compressed.matrix("bias"), faiss_rows(quantizer, centred), atol=5e-3, rtol=1e-2
    )


def test_each_word_of_pq_chooses_the_nearest_entry_of_its_slice(table):
    compressed = compress(table, BASELINES["pq"])
    books = compressed.tensors["codebooks"].float()
    slices = (table - compressed.matrix("bias")).unflatten(1, (len(books), -1)).transpose(0, 1)
    nearest = torch.cdist(slices, books).argmin(2).T
    words = read_words(compressed.tensors["codes"], len(books), 4)
    assert (nearest == words).float().mean() > 0.99  # ties of rounded entries


def test_opq_rotates_without_changing_lengths_and_beats_pq_where_directions_are_mixed(table):
    mixed = table @ torch.linalg.qr(torch.randn(32, 32))[0]
    compressed = compress(mixed, BASELINES["opq"], 6.0)
    rotation = compressed.matrix("rotation")
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(32), atol=5e-3, rtol=0)
    words = compressed.summary["words"]
    same = SameShape(bits=4, words=words)
    assert nmse(mixed, compressed) < nmse(mixed, compress(mixed, same, 6.0))


def test_opq_starts_from_slices_of_principal_directions_of_equal_products_of_variances():
    variances = 2.0 ** np.arange(8)
    mixing = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    half = np.diag(variances**0.5) @ mixing.T
    start = eigenvalue_allocation(np.concatenate([half, -half]).astype(np.float32), 4)
    np.testing.assert_allclose(start @ start.T, np.eye(8), atol=1e-5)
    rotated = half @ start.T
    np.testing.assert_allclose(np.sort(np.log2((rotated**2).sum(0))), np.arange(8), atol=1e-4)
    np.testing.assert_allclose(np.log2((rotated**2).sum(0)).reshape(4, 2).sum(1), 7, atol=1e-4)


class SameShape(PQ):
    """PQ with a number of words."""

    def __init__(self, bits, words):
        object.__setattr__(self, "words", words)
        super().__init__(bits=bits)

    def counts(self, dim, bits):
        return [self.words]


def test_more_words_of_rq_leave_less(table):
    errors = [compress(table, BASELINES["rq"], ratio).summary["nmse"] for ratio in (20.0, 10.0, 5.0)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_rows_on_the_levels_are_kept_and_others_are_off_by_half_a_step_at_most(bits):
    top = 2**bits - 1
    on_levels = torch.randint(0, top + 1, (50, 9)) * (2.0 / top) - 1
    on_levels[:, 0] = 1.0
    rows = {False: on_levels * 0.7, True: torch.rand(50, 9) * 2 - 1}
    for off, numbers in rows.items():
        stored = quantize_rows(numbers, bits)
        words = read_words(stored["codes"], 9, bits)
        decoded = stored["levels"][words] * stored["row_scale"]
        inside = numbers.abs() <= stored["row_scale"] * (1 + 1 / top)
        assert bool(((decoded - numbers).abs() <= stored["row_scale"] / top + 1e-6)[inside].all())
        if not off:
            torch.testing.assert_close(decoded, numbers)


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (3, 32), (2, 32), (3, 64), (8, 128), (1, None), (3, None)])
def test_a_group_of_numbers_has_a_scale_of_its_own_and_all_bits_are_counted(bits, group_size):
    table = torch.randn(300, 128) * torch.rand(300, 4).repeat_interleave(32, 1)
    compressed = compress(table, Scalar(bits=bits, group_size=group_size), 1.5)
    tensors = {name: compressed.tensors[name] for name in ("codes", "row_scale")}
    scale_bits = 16 / group_size if group_size else 32 / 128
    assert sum(tensor.nbytes for tensor in tensors.values()) * 8 == table.numel() * (bits + scale_bits)
    numbers = table - compressed.matrix("bias")
    scales = compressed.tensors["row_scale"].float().repeat_interleave(group_size or 128, 1)
    off = (compressed.decode() - table).abs()
    step = 2 * scales / (2**bits - 1)
    assert bool((off <= step / 2 + 1e-5)[numbers.abs() <= scales].all())
    rounded = scales * (numbers / scales * (2 ** (bits - 1))).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert off.square().mean() <= (rounded / 2 ** (bits - 1) - numbers).square().mean()
    if group_size == 32:
        whole = compress(table, Scalar(bits=bits), 1.5)
        assert compressed.summary["nmse"] < whole.summary["nmse"]


def test_scales_that_do_not_divide_a_row_are_refused(table):
    with pytest.raises(LighttokenError, match="the table has width 32, group_size=64 needs a multiple of it"):
        compress(table, Scalar(bits=4, group_size=64))
    with pytest.raises(LighttokenError, match="group_size is 16; choose one of 32, 64, 128, or null"):
        Scalar(group_size=16)
    with pytest.raises(LighttokenError, match="bits is 7; a number takes 1, 2, 3, 4, 5, 6, 8, or null"):
        Scalar(bits=7)
    compressed = compress(table, Scalar())
    assert compressed.settings.keys() == {"ratio", "seed", "importance"}  # as before it had settings: the same bytes
    scales = compressed.tensors["row_scale"].repeat(1, 3)
    with pytest.raises(ValueError, match="3 scales for a row of 32 numbers"):
        replace(compressed, tensors=compressed.tensors | {"row_scale": scales}).check()


def test_svd_has_the_precision_of_the_least_error(table):
    best = compress(table, SVD())
    others = {precision: compress(table, SVD(coefficient_precision=precision)) for precision in ("int8", "float16")}
    assert best.summary["coefficient_precision"] == "int4"
    assert best.summary["rank"] > max(other.summary["rank"] for other in others.values())
    assert nmse(table, best) < min(nmse(table, other) for other in others.values())
    assert compress(table, SVD(), 1.2).summary["coefficient_precision"] == "float16"  # of the full rank


def test_ids_of_the_same_hash_share_the_mean_of_their_rows(table):
    weights = torch.rand(1200) + 0.5
    compressed = compress(table, BASELINES["hashing_trick"], weights=weights)
    rows = compressed.decode()
    shared = hashed_rows(1200, compressed.summary["rows"])
    for row in (0, 1, 17):
        members = shared == row
        expected = (weights[members, None] * table[members]).sum(0) / weights[members].sum()
        torch.testing.assert_close(rows[members], expected.expand(int(members.sum()), -1), atol=0.03, rtol=0)
    counts = torch.bincount(shared, minlength=compressed.summary["rows"])
    assert counts.float().var() < counts.float().mean()  # spread more evenly than at random


def test_frequent_tokens_keep_their_rows_and_the_others_share_their_mean(table):
    weights = torch.rand(1200) + 0.5
    compressed = compress(table, BASELINES["vocabulary_pruning"], weights=weights)
    kept = unpack_bits(compressed.tensors["kept"], 1200).bool()
    assert weights[kept].min() >= weights[~kept].max()
    assert int(kept.sum()) == compressed.summary["rows"]
    rows = compressed.decode()
    torch.testing.assert_close(rows[kept], table[kept], atol=0.05, rtol=0)
    torch.testing.assert_close(rows[~kept], table[~kept].mean(0).expand(int((~kept).sum()), -1), atol=2e-3, rtol=0)


def test_a_tensor_train_of_full_ranks_is_the_table_and_one_of_low_rank_is_found():
    factors = [torch.randn(11, 2), torch.randn(10, 4), torch.randn(10, 4)]
    table = torch.kron(torch.kron(factors[0], factors[1]), factors[2])
    folded = compress(table, TensorTrain(), 25.0)
    assert [tuple(folded.tensors[name].shape)[1:3] for name in ("codes", "core1", "core2")] == [
        (11, 2),
        (10, 4),
        (10, 4),
    ]
    assert folded.summary["nmse"] < 1e-5
    full = compress(torch.randn(500, 24), TensorTrain(), 1.5)
    assert full.tensors["core1"].shape == (16, 8, 3, 32)
    assert full.summary["nmse"] < 1e-5


def test_the_orientation_autoencoder_finds_the_directions_of_a_table_of_its_rank():
    table = torch.randn(1500, 4) @ torch.randn(4, 24)
    compressed = compress(table, OrientationAE(learning_rate=0.01), 16.5)
    assert compressed.summary["rank"] == 4
    assert compressed.summary["cosine"] > 0.99
    centred = compressed.decode() - compressed.matrix("bias")
    assert torch.linalg.matrix_rank(centred, rtol=0.02) == 4
    table *= 1e-3  # then the loss, of directions but for a 400th part, says next to nothing of lengths
    rows = compress(table, OrientationAE(learning_rate=0.01), 16.5).decode()
    assert float((rows * table).sum() / rows.square().sum()) == pytest.approx(1.0, abs=1e-3)


def test_compositional_codes_find_the_entries_that_rows_are_sums_of():
    books = torch.randn(2, 4, 16)
    table = books[0][torch.randint(4, (1500,))] + books[1][torch.randint(4, (1500,))]
    compressed = compress(table, CompositionalCodes(size=4, max_words=4, steps=1500), 20.0)
    assert compressed.summary["words"] <= 4
    untrained = compress(table, CompositionalCodes(size=4, max_words=4, steps=0), 20.0)
    assert compressed.summary["nmse"] < 0.2 < untrained.summary["nmse"]


def test_the_bits_of_a_binary_autoencoder_carry_the_sign_of_its_directions(table):
    compressed = compress(table, NearLosslessBinary(epochs=5))
    bits = unpack_bits(compressed.tensors["codes"], compressed.summary["bits"]).float()
    rows = bits @ compressed.matrix("decoder") + compressed.matrix("bias")
    torch.testing.assert_close(compressed.decode(), rows)
    share = bits.mean(0)
    assert bool(((share > 0.2) & (share < 0.8)).float().mean() > 0.9)
    untrained = compress(table, NearLosslessBinary(epochs=0))
    assert compressed.summary["nmse"] < untrained.summary["nmse"]


def test_values_that_float16_cannot_hold_are_refused(table):
    message = (
        r"order of 2\*\*23, which the artifact's 'codebooks' cannot hold in float16; multiply the table by 2\*\*-23"
    )
    with pytest.raises(LighttokenError, match=message):
        compress(table * 1e6, BASELINES["pq"])


def test_settings_that_make_no_sense_are_refused(table):
    with pytest.raises(LighttokenError, match="bits is 13; a word of pq has from 1 to 12, or null"):
        PQ(bits=13)
    with pytest.raises(LighttokenError, match="size is 12; a codebook has a power of two of entries"):
        CompositionalCodes(size=12)
    with pytest.raises(LighttokenError, match="bits is 7; a number takes 1, 2, 3, 4, 5, 6, 8"):
        compress(table, HashingTrick(bits=7))
    with pytest.raises(LighttokenError, match="rank is 33; a table of width 32 has ranks from 1 to 32"):
        compress(table, SVD(rank=33))


def test_a_table_that_faiss_cannot_be_trained_on_is_refused():
    with pytest.raises(
        LighttokenError, match=r"faiss cannot train codec=rq on 31 rows of 512: .*; choose another codec"
    ):
        compress_table(torch.randn(31, 512), RQ(bits=4), 2.0, progress=False)
