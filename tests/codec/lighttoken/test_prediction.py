import warnings
from dataclasses import replace

import jaxtyping
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from lighttoken import (
    CompressedEmbedding,
    Int32Embedding,
    LighttokenError,
    compress_table,
    load_table,
    set_trainable,
    swap_embedding,
)
from lighttoken.artifact import compiled
from lighttoken.artifact.relations import KINDS, MAPS, kinds_of, parents_of, predict, relate
from lighttoken.backbone.checkpoint import read_checkpoint, save_with_tokenizer
from lighttoken.codec.interface import Importance
from lighttoken.codec.lighttoken.method import LightToken
from lighttoken.codec.lighttoken.prediction import Prediction, fit_prediction, levels_of

STEMS = [f"{a}{b}{c}stem" for a in "abcdefgh" for b in "ijklmno" for c in "pqrstuv"]
TOKENS = [stem + ending for ending in ("", "s", "sing") for stem in STEMS]
RELATIONS = relate(TOKENS)
CODEC = LightToken(state_bits=8)


def family_table(share: float = 0.9) -> torch.Tensor:
    """Rows (1176, 32) that are like their parents."""
    rows = torch.randn(len(TOKENS), 32) * torch.linspace(1.5, 0.3, 32)
    for level in (1, 2):
        part = levels_of(RELATIONS) == level
        rows[part] = share * rows[parents_of(RELATIONS)[part]] + (1 - share**2) ** 0.5 * rows[part]
    return rows


def compressed(table, relations=RELATIONS, ratio=24.0, **settings):
    importance = Importance(torch.ones(len(table)), relations=relations)
    return compress_table(table, replace(CODEC, **settings), ratio, importance=importance, progress=False)


def test_related_rows_lower_the_error_at_the_same_bytes():
    table = family_table()
    alone, related = compressed(table, predict="none"), compressed(table)
    assert "maps" not in alone.tensors
    assert "maps" in related.tensors
    assert related.summary["nmse"] < 0.75 * alone.summary["nmse"]


def test_a_kind_of_one_row_has_a_gain_and_one_without_variance_too():
    tokens = [*TOKENS, TOKENS[5].capitalize()]  # the only row of its kind
    relations = relate(tokens)
    assert 1 in kinds_of(relations).bincount()
    table = torch.cat([family_table(), torch.randn(1, 32)])
    table[392:] += 1000 * (kinds_of(relations)[392:] == kinds_of(relations)[392]).unsqueeze(1)  # far from the mean
    assert torch.isfinite(fit_prediction(table, torch.ones(len(table)), relations).maps).all()
    assert compressed(table, relations).summary["nmse"] < 0.5


def test_rows_that_are_not_related_are_not_predicted():
    assert "maps" not in compressed(torch.randn(len(TOKENS), 32)).tensors
    assert "maps" not in compressed(family_table(), relations=None).tensors


def test_some_rows_decode_as_all_rows_do():
    table = compressed(family_table())
    ids = torch.tensor([[1170, 3], [400, 400]])
    torch.testing.assert_close(table.decode(ids), table.decode()[ids], rtol=0, atol=1e-6)


def test_int32_words_read_the_same_rows():
    embedding, ids = CompressedEmbedding(compressed(family_table())), torch.arange(len(TOKENS))
    assert "maps" in embedding.views()
    torch.testing.assert_close(Int32Embedding(embedding)(ids), embedding(ids), rtol=0, atol=1e-5)


def in_threads(threads, monkeypatch):
    """Few rows are shared too."""
    monkeypatch.setattr(compiled, "NUMBERS_A_THREAD", 1)
    monkeypatch.setattr(compiled.torch, "get_num_threads", lambda: threads)


@pytest.mark.skipif(compiled.library(compiled.DECODER) is None, reason="no C++ compiler")
@pytest.mark.parametrize("threads", [1, 3])
def test_compiled_code_reads_the_same_numbers(threads, monkeypatch):
    table, ids = compressed(family_table()), torch.randint(len(TOKENS), (300,))
    plain = table.decode(ids)
    monkeypatch.setattr(compiled, "LEAST_NUMBERS", 0)
    in_threads(threads, monkeypatch)
    monkeypatch.setattr(compiled, "read_related", None)  # nothing is read by the plain code
    assert torch.equal(table.decode(ids), plain)


@pytest.mark.skipif(compiled.library(compiled.DECODER) is None, reason="no C++ compiler")
@pytest.mark.parametrize("relations", [RELATIONS, None])
@pytest.mark.parametrize("threads", [1, 3])
def test_compiled_products_are_those_of_the_decoded_rows(relations, threads, monkeypatch):
    embedding = CompressedEmbedding(compressed(family_table(), relations=relations))
    assert ("maps" in embedding.views()) == (relations is not None)
    in_threads(threads, monkeypatch)
    for count in (1, 8, 9):  # of 9, a product of matrices
        vectors = torch.randn(count, 32)
        with torch.no_grad():
            products = embedding.project(vectors)
        torch.testing.assert_close(products, vectors @ embedding.weight.T, rtol=0, atol=1e-4)


@pytest.mark.skipif(compiled.library(compiled.DECODER) is None, reason="no C++ compiler")
def test_few_vectors_are_multiplied_by_compiled_code(monkeypatch):
    embedding = CompressedEmbedding(compressed(family_table()))
    form = type(embedding.description.form)
    monkeypatch.setattr(form, "coordinates", None)  # nothing is read by the plain code
    with torch.no_grad():
        assert embedding.project(torch.randn(8, 32)).shape == (8, len(TOKENS))
    with pytest.raises(TypeError):
        embedding.project(torch.randn(8, 32, requires_grad=True))


def test_the_same_bytes_come_out_again():
    table = family_table()
    first, second = compressed(table), compressed(table)
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())


def test_the_plan_predicts_the_error():
    table = family_table()
    summary = compressed(table, ratio=16).summary
    centred = float((table - table.mean(0)).square().mean() / table.var())
    assert summary["nmse"] == pytest.approx(summary["predicted"] * centred, rel=0.1)


def test_the_maps_of_a_table_that_follows_them_are_found():
    maps = torch.zeros(32, MAPS)
    maps[:, 0], maps[:, 1 : KINDS + 1], maps[:, KINDS + 1 :] = 0.3, torch.randn(32, KINDS), 0.7
    kinds, ids = kinds_of(RELATIONS), torch.arange(len(TOKENS))
    rows = torch.randn(len(TOKENS), 32)
    for level in range(3):
        part = levels_of(RELATIONS) == level
        noise = 0.01 * rows[part] if level else rows[part]
        rows[part] = noise + predict(ids[part], kinds[part], rows[parents_of(RELATIONS)[part]], maps)
    found = fit_prediction(rows, torch.ones(len(rows)), RELATIONS)
    used = kinds[kinds > 0].unique()
    torch.testing.assert_close(found.maps[:, KINDS + used], maps[:, KINDS + used], rtol=0, atol=0.06)
    left = rows - found.of(ids, rows)
    assert float(left[kinds > 0].square().mean()) < 0.02 * float(rows[kinds > 0].square().mean())


def test_what_is_subtracted_leaves_the_energy_that_decoded_parents_leave():
    rows, share = family_table(), 0.3
    maps = torch.zeros(32, MAPS)
    maps[:, KINDS + 1 :] = 0.9
    prediction = Prediction(RELATIONS, maps)
    # A decoder has (1 - D) of a coordinate and noise: the test channel of rate-distortion theory.
    noise = (share * (1 - share)) ** 0.5 * torch.randn_like(rows) * rows.square().mean(0).sqrt()
    decoded = (1 - share) * rows + noise
    expected = (rows - prediction.of(torch.arange(len(rows)), decoded)).square().mean()
    prediction.subtract(rows, torch.zeros(len(rows), dtype=torch.uint8), torch.full((1, 32), share))
    assert float(rows.square().mean()) == pytest.approx(float(expected), rel=0.03)


def tokenizer_of(tokens):
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)})))


def test_an_artifact_asks_for_the_tokenizer_and_refuses_another(tmp_path):
    table = compressed(family_table())
    table.save(tmp_path)
    assert load_table(tmp_path).nbytes == table.nbytes
    with pytest.raises(LighttokenError, match=r"pass tokenizer=TOKENIZER to lighttoken.load_table"):
        load_table(tmp_path).decode([1])
    assert torch.equal(load_table(tmp_path, tokenizer_of(TOKENS)).decode(), table.decode())
    with pytest.raises(LighttokenError, match="not the one that this table was compressed with"):
        load_table(tmp_path, tokenizer_of(TOKENS[::-1]))


@pytest.fixture
def model():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    dense = BertForMaskedLM(BertConfig(vocab_size=len(TOKENS), **sizes)).eval()
    dense.get_input_embeddings().weight.data = family_table()
    dense.tie_weights()
    return dense


def test_the_lines_that_a_command_prints_name_the_tokenizer_of_related_rows(command, model):
    model.save_pretrained("model")
    tokenizer_of(TOKENS).save_pretrained("model")
    quick = ["codec.state_bits=8", "codec/prior=uniform", "codec.error_metric=euclidean", "ratio=20", "progress=false"]
    code, out, err = command("compress", "model.path=model", *quick, "output=artifact")
    assert code == 0, err
    names: dict = {"tokenizer": tokenizer_of(TOKENS)}
    exec("\n".join(line.strip() for line in out.partition("To load it:\n")[2].splitlines()), names)
    assert "maps" in names["compressed"].tensors
    names["compressed"].decode([3])


@torch.no_grad()
def logits(model):
    return model.eval()(torch.tensor([[3, 500, 1100, 41]])).logits


def test_a_model_with_it_in_trains_saves_and_loads_with_its_tokenizer_or_without(model, tmp_path):
    compressed(family_table()).save(tmp_path / "artifact")
    with pytest.raises(LighttokenError, match=r"or to lighttoken.swap_embedding"):
        swap_embedding(model, load_table(tmp_path / "artifact"))
    tokenizer = tokenizer_of(TOKENS)
    swap_embedding(model, load_table(tmp_path / "artifact"), tokenizer=tokenizer)
    embedding = model.get_input_embeddings()
    set_trainable(embedding, "decoder+factors")
    embedding(torch.tensor([1100])).sum().backward()
    assert all(bool((matrix.grad != 0).any()) for matrix in embedding.parameters())
    embedding.trained["decoder"].data *= 1.1
    expected, ratio = logits(model), embedding.ratio

    model.save_pretrained(tmp_path / "alone")
    alone = AutoModelForMaskedLM.from_pretrained(tmp_path / "alone")
    assert torch.equal(logits(alone), expected)
    assert alone.get_input_embeddings().ratio < ratio  # the relations are in the file
    assert not read_checkpoint(tmp_path / "alone").needs_tokenizer

    save_with_tokenizer(alone, tokenizer, tmp_path / "both")
    both = AutoModelForMaskedLM.from_pretrained(tmp_path / "both")
    assert torch.equal(logits(both), expected)
    assert both.get_input_embeddings().ratio == ratio
    assert read_checkpoint(tmp_path / "both").needs_tokenizer
    (tmp_path / "both" / "tokenizer.json").unlink()
    (tmp_path / "both" / "tokenizer_config.json").unlink()
    with pytest.raises(LighttokenError, match="tokenizer"):
        AutoModelForMaskedLM.from_pretrained(tmp_path / "both")
    save_with_tokenizer(alone, tokenizer_of(TOKENS[::-1]), tmp_path / "other")  # not the one of the table
    assert torch.equal(logits(AutoModelForMaskedLM.from_pretrained(tmp_path / "other")), expected)


def test_exported_it_reads_the_rows_of_parents_of_any_batch(model, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime", reason="install lighttoken[dev]")
    swap_embedding(model, compressed(family_table()))
    embedding, ids = model.get_input_embeddings(), torch.tensor([[3, 500, 1100], [41, 900, 901]])
    shapes = {"ids": {0: torch.export.Dim("batch", min=2, max=9), 1: torch.export.Dim("length", min=2, max=39)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        path = tmp_path / "model.onnx"
        torch.onnx.export(embedding, (ids,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    exported = torch.export.export(embedding, (ids,), dynamic_shapes=shapes).module()
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # sizes are tensors while a graph is traced
    traced = torch.jit.trace(embedding, ids)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for some in (ids, torch.randint(len(TOKENS), (5, 7))):
        (rows,) = session.run(None, {"ids": some.numpy()})
        for read in (torch.from_numpy(rows), exported(some), traced(some)):
            torch.testing.assert_close(read, embedding(some), atol=1e-4, rtol=0)
