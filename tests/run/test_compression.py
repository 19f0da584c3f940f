"""Checkpoints that `lighttoken.compress checkpoint=true` writes, and `lighttoken.show`."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lighttoken import CompressedEmbedding, compress_table, load_table, swap_embedding
from lighttoken.backbone.embedding import set_trainable
from lighttoken.backbone.source import Backbone
from lighttoken.codec.baselines.svd import SVD

SVD_FLOAT16 = SVD(coefficient_precision="float16", matrix_precision="float16")

QUICK = ["codec.state_bits=6", "codec/prior=zipf", "codec.error_metric_sequences=32", "ratio=2.5", "progress=false"]
IDS = torch.arange(1, 19).view(2, 9)


@pytest.fixture
def compress(command, checkpoint):
    """Writes a compressed checkpoint of a small model; returns what was printed."""

    def run(*arguments: str, source: Path | None = None) -> str:
        code, out, err = command(
            "compress", f"model.path={source or checkpoint()}", "output=packed", "checkpoint=true", *QUICK, *arguments
        )
        assert code == 0, err
        return out

    return run


def test_a_checkpoint_is_ready_with_its_tokenizer(compress):
    out = compress()
    assert "weights" in out
    assert "checkpoint" in out
    model = AutoModel.from_pretrained("packed")
    assert isinstance(model.get_input_embeddings(), CompressedEmbedding)
    assert AutoTokenizer.from_pretrained("packed")("a bad film")["input_ids"] == [2, 4, 5, 6, 3]


def test_heads_and_precision_are_kept(compress, make_model, tokenizer, tmp_path):
    source = tmp_path / "half"
    original = make_model("bert", AutoModelForMaskedLM).half()
    original.save_pretrained(source)
    tokenizer.save_pretrained(source)
    compress("tie=untie", source=source)
    loaded, report = AutoModelForMaskedLM.from_pretrained("packed", output_loading_info=True)
    assert not any(report.values()), report
    assert loaded.dtype == torch.float16
    assert torch.equal(loaded.get_output_embeddings().weight, original.get_output_embeddings().weight)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ("GPT2", {"n_embd": 32, "n_layer": 1, "n_head": 2}),
        ("T5", {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}),
        ("Llama", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}),
    ],
)
def test_models_that_write_text_are_compressed_too_even_if_they_cannot_pad(
    compress, tokenizer, tmp_path, config, sizes
):
    auto_class = transformers.AutoModelForSeq2SeqLM if config == "T5" else transformers.AutoModelForCausalLM
    source = tmp_path / config
    auto_class.from_config(getattr(transformers, f"{config}Config")(vocab_size=200, **sizes)).save_pretrained(source)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(source)
    compress(source=source)
    assert isinstance(auto_class.from_pretrained("packed").get_input_embeddings(), CompressedEmbedding)


def test_a_sentence_transformers_folder_stays_one(compress, checkpoint):
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="install lighttoken[dev]")
    from sentence_transformers.models import Dense, Pooling, Transformer

    body = Transformer(str(checkpoint()))
    parts = [body, Pooling(32, pooling_mode="mean"), Dense(32, 8)]
    sentence_transformers.SentenceTransformer(modules=parts).save_pretrained("original")
    compress(source=Path("original"))
    packed = sentence_transformers.SentenceTransformer("packed", device="cpu")
    original = sentence_transformers.SentenceTransformer("original", device="cpu")
    dense = original[0].auto_model.get_input_embeddings()
    dense.weight.data = packed[0].auto_model.get_input_embeddings().weight.detach()
    texts = ["a bad film", "the very great movie"]
    assert packed.encode(texts) == pytest.approx(original.encode(texts), abs=1e-5)
    assert packed.encode(texts).shape == (2, 8)


def test_a_folder_of_modules_does_not_reach_outside_itself(command, checkpoint):
    folder = checkpoint()
    (folder.parent / "secret").mkdir()
    (folder / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "../secret"}]))
    code, _, err = command("compress", f"model.path={folder}", "output=packed", "checkpoint=true", *QUICK)
    assert code == 2
    assert "names '../secret', which is outside its folder" in err


def test_a_checkpoint_that_is_there_is_not_overwritten(command, checkpoint):
    arguments = [f"model.path={checkpoint()}", "output=packed", "checkpoint=true", *QUICK]
    assert command("compress", *arguments)[0] == 0
    code, _, err = command("compress", *arguments)
    assert code == 2
    assert "output=packed holds a checkpoint already; choose another folder or add overwrite=true" in err


def test_a_checkpoint_takes_the_place_of_no_file_unless_asked_and_of_nothing_else(command, checkpoint):
    arguments = [f"model.path={checkpoint()}", *QUICK, "checkpoint=true"]
    code, _, err = command("compress", *arguments, "output=")
    assert (code, err) == (2, "error: output is empty; give a folder, for example output=compressed\n")
    subprocess.run(["git", "init", "-q", "clone"], check=True)  # hidden files and empty folders
    (Path("clone") / "figures").mkdir()
    (Path("clone") / "README.md").write_text("mine")
    code, _, err = command("compress", *arguments, "output=clone")
    line = "error: output=clone holds README.md already; choose another folder or add overwrite=true\n"
    assert (code, err) == (2, line)
    (Path("clone") / "README.md").unlink()
    assert command("compress", *arguments, "output=clone")[0] == 0
    assert (Path("clone") / "figures").is_dir()
    subprocess.run(["git", "-C", "clone", "status"], check=True)  # it still is a repository
    assert list(Path("clone").glob("*.safetensors"))
    assert not list(Path().glob(".clone*"))


def test_a_checkpoint_is_as_it_was_after_the_disk_was_full(command, compress, checkpoint, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", disk], check=False).returncode:
        pytest.skip("this user cannot mount")
    try:
        compress(f"output={disk}/packed")
        before = {path.name: path.read_bytes() for path in (disk / "packed").iterdir()}
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - (24 << 10)))
        again = [f"model.path={checkpoint()}", f"output={disk}/packed", "checkpoint=true", "overwrite=true", *QUICK]
        code, _, err = command("compress", *again, "seed=1")
        assert (code, err.count("\n")) == (2, 1), err
        assert err.startswith(f"error: cannot write {disk}/packed: ")
        assert {path.name: path.read_bytes() for path in (disk / "packed").iterdir()} == before
        assert sorted(path.name for path in disk.iterdir()) == ["filler", "packed"]
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_checkpoint_in_the_place_of_an_artifact_leaves_nothing_of_it(command, checkpoint):
    arguments = [f"model.path={checkpoint()}", "output=packed", *QUICK]
    assert command("compress", *arguments)[0] == 0
    assert command("compress", *arguments, "checkpoint=true", "overwrite=true")[0] == 0
    assert not list(Path("packed").glob("compressed_table.*"))
    assert "tied output head" in command("show", "packed")[1]


def test_show_tells_what_is_in_an_artifact_and_in_a_checkpoint(command, compress, checkpoint):
    compress()
    arguments = [f"model.path={checkpoint()}", *QUICK]
    assert command("compress", *arguments, "output=table")[0] == 0
    for folder in ("packed", "table"):
        code, out, err = command("show", folder, "--verify", str(checkpoint()))
        assert code == 0, err
        for words in ("lighttoken", "zipf", "rank", "codes", "bits per row", "SHA-256", "made from this table", "yes"):
            assert words in out
        assert ("table's share of them" in out) == (folder == "packed")
    ratio = load_table("table").ratio
    assert f"{ratio:.2f}" in out


def test_show_finds_a_table_that_is_not_the_sources(command, compress, make_model, tmp_path):
    compress()
    make_model().save_pretrained(tmp_path / "other")  # drawn anew
    code, out, _ = command("show", "packed", "--verify", str(tmp_path / "other"))
    assert code == 1
    assert "no, its hash is another" in out


def test_show_finds_codes_that_are_not_those_that_were_saved(command, compress, checkpoint):
    compress()
    tensors = load_file("packed/model.safetensors")
    (codes,) = (name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[codes] = tensors[codes] ^ 1
    save_file(tensors, "packed/model.safetensors", metadata={"format": "pt"})
    code, _, err = command("show", "packed", "--verify", str(checkpoint()))
    assert code == 2
    assert "the checkpoint's compressed table is damaged: it does not have the hash that config.json names" in err


@pytest.mark.parametrize(
    ("errors", "shown"), [({"nmse": 0.123}, "(in the summary: 0.123)"), ({}, "(in the summary: nothing)")]
)
def test_show_finds_errors_that_are_not_those_of_the_summary(command, checkpoint, errors, shown):
    assert command("compress", f"model.path={checkpoint()}", *QUICK, "output=table")[0] == 0
    table = load_table("table")
    others = {name: value for name, value in table.summary.items() if name != "nmse"}
    replace(table, summary=others | errors).save("table")
    code, out, _ = command("show", "table", "--verify", str(checkpoint()))
    assert code == 1
    assert shown in out


def test_show_says_what_it_cannot_read(command, compress, checkpoint, tmp_path):
    code, _, err = command("show", str(tmp_path / "nothing"))
    assert code == 2
    assert "no artifact at" in err
    code, _, err = command("show", str(checkpoint()))
    assert code == 2
    assert err == f"error: {checkpoint()} has no compressed table; compress it with lighttoken.compress\n"
    code, out, err = command("show", str(checkpoint()), "--verify", "nowhere")
    assert (code, out) == (2, "")
    assert "nowhere is no checkpoint; give the folder of one, or a name: bert_base, " in err
    compress()
    path = Path("packed/model.safetensors")
    path.write_bytes(path.read_bytes()[:-50])
    code, _, err = command("show", "packed")
    assert code == 2
    assert "packed is damaged" in err
    config = json.loads(Path("packed/config.json").read_text())
    config["quantization_config"]["format_version"] = 99
    Path("packed/config.json").write_text(json.dumps(config))
    code, _, err = command("show", "packed")
    assert code == 2
    assert "format version 99" in err


def test_the_tokenizer_of_a_model_that_cannot_pad_is_read_where_nothing_is_padded(checkpoint, tokenizer):
    folder = checkpoint()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert Backbone("x", path=str(folder)).tokenizer(padding=False).pad_token is None


def test_transformers_trainer_fine_tunes_it_and_goes_back_to_the_best_epoch(make_model, tmp_path):
    model = make_model("bert", AutoModelForSequenceClassification)
    compressed = compress_table(model.get_input_embeddings().weight, SVD_FLOAT16, 2.0, progress=False)
    swap_embedding(model, compressed)
    embedding = model.get_input_embeddings()
    set_trainable(embedding, "decoder+factors")
    rows = [{"input_ids": torch.randint(200, (6,)), "labels": i % 2} for i in range(16)]
    settings = {"num_train_epochs": 3, "eval_strategy": "epoch", "save_strategy": "epoch", "learning_rate": 0.05}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "report_to": [], "use_cpu": True}
    trainer = Trainer(
        model, TrainingArguments(str(tmp_path / "out"), **settings), train_dataset=rows, eval_dataset=rows[:4]
    )
    last = []
    trainer.add_callback(Watch(lambda: last.append(embedding(torch.arange(200)).detach())))
    trainer.train()
    assert not trainer.state.best_model_checkpoint.endswith("-6")  # the last
    best = AutoModelForSequenceClassification.from_pretrained(trainer.state.best_model_checkpoint)
    ids = torch.arange(200)
    torch.testing.assert_close(embedding(ids), best.get_input_embeddings()(ids))
    assert len({float(rows.sum()) for rows in last}) == 3  # the epochs differ, so that the right one was found


class Watch(TrainerCallback):
    def __init__(self, call):
        self.call = call

    def on_epoch_end(self, *args, **kwargs):
        self.call()
