"""Compression of a model in memory: the same table as that of the command."""

import warnings

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM

from lighttoken import Healing, LighttokenConfig, LighttokenError, compress_model, compress_table, load_table
from lighttoken.codec.lighttoken.method import LightToken

CODEC = LightToken(state_bits=6, tiers=2, error_metric_sequences=16)
SETTINGS = ["codec.state_bits=6", "codec.tiers=2", "codec.error_metric_sequences=16"]


def test_it_makes_the_table_that_the_command_makes(command, make_model, tokenizer):
    model = make_model("bert", AutoModelForMaskedLM)
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    arguments = ["model.path=model", "output=table", "ratio=2.5", "progress=false", *SETTINGS]
    assert command("compress", *arguments)[0] == 0
    expected = load_table("table")
    model.train()
    assert compress_model(model, tokenizer, 2.5, CODEC, progress=False) is model
    assert model.training
    compressed = model.get_input_embeddings().compressed_table()
    assert compressed.summary == expected.summary
    assert all(torch.equal(tensor, expected.tensors[name]) for name, tensor in compressed.tensors.items())


def test_a_tokenizer_of_another_model_is_refused(make_model, tokenizer):
    with pytest.raises(LighttokenError, match="has ids 0 to 199 and the table has 1200 rows"):
        compress_model(make_model("bert", vocab_size=1200), tokenizer, 2.5, CODEC, progress=False)


def test_what_cannot_be_healed_is_refused_before_any_work(make_model, tokenizer, monkeypatch):
    monkeypatch.setattr("lighttoken.run.in_memory.measure_importance", lambda *_, **__: pytest.fail("measured"))
    model = make_model("bert")
    for healing, message in (
        ("prior", r"^healing='prior' is no Healing; pass lighttoken.Healing\('prior'\), or None$"),
        (Healing("task"), "^heal=task reads training rows and this command has none; set heal=corpus heal.file=F$"),
    ):
        with pytest.raises(LighttokenError, match=message):
            compress_model(model, tokenizer, 2.5, CODEC, progress=False, healing=healing)
    with pytest.raises(LighttokenError, match=r"^None is no tokenizer; pass AutoTokenizer.from_pretrained\(...\)$"):
        compress_model(model, None, 2.5, CODEC, progress=False)


def test_compress_table_warns_where_it_loses_much(table):
    table = table.repeat(4, 1)
    with pytest.warns(UserWarning, match="at ratio 31 without an importance .* lighttoken.compress_model"):
        compress_table(table, CODEC, 31, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compress_table(table, CODEC, 30, progress=False)
        compress_table(table, CODEC, 31, weights=torch.ones(len(table)), progress=False)
        compress_table(table, "svd", 31, progress=False)


def test_a_ratio_out_of_reach_is_refused_before_the_error_metric_is_measured(command, checkpoint, monkeypatch):
    def measured(*_, **__):
        pytest.fail("the error metric was measured")

    monkeypatch.setattr("lighttoken.run.importance.backbone_metric", measured)
    arguments = [f"model.path={checkpoint()}", "progress=false", *SETTINGS, "ratio=1000"]
    code, _, err = command("compress", *arguments, "output=table")
    assert code == 2
    assert "ratio 1000 cannot be met" in err


def test_a_dense_checkpoint_is_compressed_while_it_loads(make_model, tokenizer):
    make_model("bert", AutoModelForMaskedLM).save_pretrained("dense")
    tokenizer.save_pretrained("dense")
    expected = compress_model(AutoModelForMaskedLM.from_pretrained("dense"), tokenizer, 2.5, CODEC, progress=False)
    config = LighttokenConfig(ratio=2.5, codec=CODEC, progress=False)
    model = AutoModelForMaskedLM.from_pretrained("dense", quantization_config=config)
    model.save_pretrained("compressed")
    again = AutoModelForMaskedLM.from_pretrained("compressed")
    for made in (model, again):
        for name, tensor in made.state_dict().items():
            assert torch.equal(tensor, expected.state_dict()[name]), name
    ids = torch.tensor([[2, 5, 6, 3]])
    assert torch.equal(again(ids).logits, expected(ids).logits)
    with pytest.raises(ValueError, match="quantized with StoredConfig but you are passing a LighttokenConfig"):
        AutoModelForMaskedLM.from_pretrained("compressed", quantization_config=config)


def test_a_checkpoint_is_healed_while_it_loads(make_model, tokenizer):
    make_model("bert", AutoModelForMaskedLM).save_pretrained("dense")
    settings = {"ratio": 2.5, "codec": CODEC, "progress": False}
    settings["healing"] = Healing("prior", length=8, count=32, steps=4, batch_size=8)
    expected = compress_model(AutoModelForMaskedLM.from_pretrained("dense"), tokenizer, **settings)
    config = LighttokenConfig(tokenizer=tokenizer, **settings)
    model = AutoModelForMaskedLM.from_pretrained("dense", quantization_config=config)
    assert model.config.healing["steps"] == 4
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name


def test_without_a_tokenizer_the_line_says_what_to_pass(make_model, tokenizer):
    make_model("bert").save_pretrained("dense")
    config = {"ratio": 2.5, "codec": CODEC, "progress": False}
    with pytest.raises(
        LighttokenError,
        match=r"dense has no tokenizer that fits its table of 200 rows; pass one: LighttokenConfig\(tokenizer=T",
    ):
        AutoModel.from_pretrained("dense", quantization_config=LighttokenConfig(**config))
    model = AutoModel.from_pretrained("dense", quantization_config=LighttokenConfig(**config, tokenizer=tokenizer))
    assert type(model.get_input_embeddings()).__name__ == "CompressedEmbedding"
