"""What a compressed checkpoint takes over from the original one: everything but the table."""

import json
import logging
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    GenerationConfig,
    LlamaConfig,
)

from lighttoken import compress_table
from lighttoken.backbone.source import Backbone


@pytest.fixture
def compress(tokenizer, tmp_path):
    """Saves a model, with changes to config.json, compresses its table and writes the checkpoint; returns both."""

    def call(model, **changes):
        source, target = tmp_path / "source", tmp_path / "target"
        model.save_pretrained(source)
        tokenizer.save_pretrained(source)
        config = json.loads((source / "config.json").read_bytes()) | changes
        (source / "config.json").write_text(json.dumps(config))
        backbone = Backbone("x", path=str(source))
        backbone.save_checkpoint(compress_table(backbone.table(), "svd", 2, progress=False), target, "compressed")
        return source, target

    return call


@pytest.mark.parametrize("architectures", [["BertForMaskedLM"], ["BertModel"], None])
def test_weights_that_the_named_class_does_not_have_are_kept(make_model, compress, architectures):
    source, target = compress(make_model("bert", AutoModelForPreTraining), architectures=architectures)
    before, after = AutoModelForPreTraining.from_pretrained(source), AutoModelForPreTraining.from_pretrained(target)
    for name, parameter in before.named_parameters():
        if "word_embeddings" not in name:
            assert torch.equal(after.get_parameter(name), parameter), name
    ids = torch.randint(4, 200, (2, 7))
    assert torch.equal(
        AutoModel.from_pretrained(target).eval()(ids).pooler_output,
        AutoModelForPreTraining.from_pretrained(target).eval().bert(ids).pooler_output,
    )


def test_a_head_that_the_config_names_and_the_checkpoint_lacks_is_not_made_up(make_model, compress):
    source, target = compress(make_model("bert", AutoModel), architectures=["BertForMaskedLM"])
    assert not Backbone("x", path=str(source)).predicts_tokens()
    assert json.loads((target / "config.json").read_bytes())["architectures"] == ["BertModel"]
    assert not [name for name in load_file(target / "model.safetensors") if name.startswith("cls.")]


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_in_pytorchs_own_formats_are_kept_too(make_model, compress, tokenizer, tmp_path, zipped):
    model = make_model("bert", AutoModelForPreTraining)
    source, _ = compress(model)
    state = load_file(source / "model.safetensors")
    torch.save(state, source / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (source / "model.safetensors").unlink()
    config = json.loads((source / "config.json").read_bytes()) | {"architectures": ["BertForMaskedLM"]}
    (source / "config.json").write_text(json.dumps(config))
    backbone, target = Backbone("x", path=str(source)), tmp_path / "again"
    backbone.save_checkpoint(compress_table(backbone.table(), "svd", 2, progress=False), target, "compressed")
    kept = AutoModelForPreTraining.from_pretrained(target)
    assert torch.equal(kept.cls.seq_relationship.weight, model.cls.seq_relationship.weight)
    assert not list(target.glob("*.bin"))


def test_an_untied_head_is_kept_if_the_config_names_no_class(compress):
    torch.manual_seed(0)
    sizes = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(max_new_tokens=3, do_sample=True, temperature=0.5)
    _, target = compress(model, architectures=None)
    again = AutoModelForCausalLM.from_pretrained(target)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert (again.generation_config.max_new_tokens, again.generation_config.temperature) == (3, 0.5)


def test_every_file_but_the_weights_is_copied(make_model, compress, tmp_path):
    source = tmp_path / "source"
    (source / "1_Dense").mkdir(parents=True)
    (source / "onnx").mkdir()
    save_file({"weight": torch.ones(2)}, source / "1_Dense" / "model.safetensors")
    modules = [{"idx": 0, "name": "0", "path": ""}, {"idx": 1, "name": "1", "path": "1_Dense"}]
    texts = {"modules.json": json.dumps(modules), "sentence_roberta_config.json": "{}", "LICENSE": "", "notes.txt": ""}
    texts |= {"onnx/model.onnx": "", "tf_model.h5": "", ".hidden": ""}
    for name, text in texts.items():
        (source / name).write_text(text)
    _, target = compress(make_model("bert", AutoModelForMaskedLM))
    copied = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert {
        "modules.json",
        "sentence_roberta_config.json",
        "LICENSE",
        "notes.txt",
        "1_Dense/model.safetensors",
    } <= copied
    assert not copied & {"onnx/model.onnx", "tf_model.h5", ".hidden"}


def test_links_out_of_the_folder_are_left_out_and_named(make_model, compress, tmp_path, caplog):
    (tmp_path / "secret").write_text("key")
    (tmp_path / "source").mkdir()
    os.symlink(tmp_path / "secret", tmp_path / "source" / "notes.txt")
    with caplog.at_level(logging.WARNING):
        _, target = compress(make_model())
    assert not (target / "notes.txt").exists()
    assert "notes.txt: it is no file or folder inside" in caplog.text
