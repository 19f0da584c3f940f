"""Bad inputs, and the line that each one gets. The table is written to bad_inputs.md in the test's folder: read it for
wording with `pytest tests/test_bad_inputs.py --basetemp=DIR`."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    CanineConfig,
    CLIPConfig,
    FSMTConfig,
    MarianConfig,
    WhisperConfig,
)

from lighttoken import LighttokenError, compress_table, compress_to_quality, load_table

TABLE = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))

STOPPING = "+callbacks.early._target_=lightning.pytorch.callbacks.EarlyStopping"

CALLS = {
    "a table of ids": lambda: compress_table(torch.arange(10)),
    "a table of one dimension": lambda: compress_table(torch.randn(10)),
    "an empty table": lambda: compress_table(torch.randn(0, 16)),
    "a complex table": lambda: compress_table(torch.randn(10, 4, dtype=torch.complex64)),
    "a table with NaN": lambda: compress_table(torch.full((300, 16), float("nan"))),
    "a table without numbers": lambda: compress_table(torch.empty(300, 16, device="meta")),
    "a list": lambda: compress_table([[1.0, 2.0]]),
    "numbers beyond float32": lambda: compress_table(TABLE.double() * 1e100),
    "a ratio of 1": lambda: compress_table(TABLE, ratio=1),
    "a ratio that is text": lambda: compress_table(TABLE, ratio="25"),
    "a ratio out of reach": lambda: compress_table(TABLE, "svd", ratio=1e6, progress=False),
    "an unknown codec": lambda: compress_table(TABLE, "zip"),
    "weights of another length": lambda: compress_table(TABLE, "svd", 2, weights=torch.ones(10), progress=False),
    "negative weights": lambda: compress_table(TABLE, "svd", 2, weights=-torch.ones(300), progress=False),
    "an unknown measure": lambda: compress_to_quality(TABLE, "svd", measure="beauty", bound=0.1),
    "a quality that cannot be": lambda: compress_to_quality(TABLE, "svd", measure="cosine", bound=2, progress=False),
    "no artifact": lambda: load_table("nothing/here"),
}
COMMANDS = {
    "a path with an equals sign": ["train", "model.path=runs/epoch=3-step=99"],
    "a path with brackets": ["train", "model.path=runs/(old)/model"],
    "a home folder": ["compress", "model.path=~/model", "output=o"],
    "a word without a value": ["train", "sweep"],
    "a folder that is not there": ["compress", "model.path=nowhere", "output=o"],
    "a hub's name as a path": ["compress", "model.path=google-bert/bert-base-uncased", "output=o"],
    "an unknown key": ["train", "rato=3"],
    "an unknown codec in a command": ["train", "codec=zip"],
    "an unknown task": ["train", "task=sst3"],
    "an experiment without +": ["train", "experiment=quickstart"],
    "a list without -m": ["train", "codec=none,svd"],
    "no ratio": ["train", "ratio=null"],
    "a ratio of text": ["train", "ratio=abc"],
    "a negative seed": ["train", "seed=-1"],
    "a broken number": ["train", "seed=1.5"],
    "no output": ["compress"],
    "nothing to compress": ["compress", "codec=none", "output=o"],
    "two goals": ["compress", "quality=0.3", "ratio=30", "output=o"],
    "an unknown tie": ["compress", "tie=maybe", "output=o"],
    "two processes by fork": ["train", "trainer.devices=2", "+trainer.strategy=ddp_fork", "codec=none"],
    "two nodes": ["train", "+trainer.num_nodes=2", "codec=none"],
    "endless training": ["train", "trainer.max_epochs=-1", "codec=none"],
    "rounded labels": ["train", "trainer.precision=bf16-true", "codec=none"],
    "an unknown precision": ["train", "backbone_precision=int3", "codec=none"],
    "a score that decides": ["train", STOPPING, "+callbacks.early.monitor=val/accuracy", "codec=none"],
    "an unknown matmul precision": ["train", "matmul_precision=low", "codec=none"],
    "a dev fraction of 1": ["train", "task.dev_fraction=1", "codec=none", "logger=none"],
    "no rows": ["train", "limit_rows=0", "codec=none", "logger=none"],
    "a data folder that is not there": ["train", "task=sst2", "task.data_dir=nowhere", "codec=none"],
    "a sweep over a folder that is not there": ["train", "-m", "task=sst2", "task.data_dir=nowhere,here", "codec=none"],
    "a prior that is no group": ["compress", "codec.prior=zipf", "output=o"],
    "a prior for a codec without one": ["compress", "codec=scalar", "codec/prior=zipf", "output=o"],
    "a corpus without a file": ["compress", "codec/prior=corpus", "output=o"],
    "a negative exponent": ["compress", "codec.prior.exponent=-1", "output=o"],
    "a language that is no list": ["compress", "codec.prior.languages=de", "output=o"],
    "too few state bits": ["compress", "codec.state_bits=2", "output=o"],
    "too many tiers": ["compress", "codec.tiers=99", "output=o"],
    "a device that is not there": ["compress", "codec.device=cuda", "output=o"],
    "nothing to report": ["report", "nowhere"],
    "nothing to show": ["show", "nowhere"],
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Rows (input, line) of all tests of this module; written when the last one is done."""
    rows: list[tuple[str, str]] = []
    yield rows
    path = tmp_path_factory.mktemp("table") / "bad_inputs.md"
    path.write_text("\n".join(f"- {name}: `{line}`" for name, line in sorted(rows)) + "\n")


def check(table, name: str, line: str) -> None:
    """A line is short, names a cure, and is not an exception from below."""
    table.append((name, line))
    assert "\n" not in line
    assert len(line) <= 300, len(line)
    assert any(mark in line for mark in ("; ", "for example", "write ", "must be ")), f"no cure: {line}"
    assert "Traceback" not in line
    assert "object has no attribute" not in line


@pytest.mark.parametrize("name", CALLS)
def test_a_call(table, name):
    with pytest.raises(LighttokenError) as caught:
        CALLS[name]()
    check(table, name, str(caught.value))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command(table, name, command):
    program, *arguments = COMMANDS[name]
    code, _, err = command(program, *arguments)
    assert code == 2, err
    assert err.startswith("error: "), "it comes after work"
    check(table, name, err.removeprefix("error: ").removesuffix("\n"))


def test_there_are_sixty():
    assert len(CALLS) + len(COMMANDS) + len(MODELS) + len(FILES) >= 60


BODY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
LAYERS = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
LAYERS |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "pad_token_id": 0}
TOWER = BODY | {"vocab_size": 200, "max_position_embeddings": 40, "eos_token_id": 3, "bos_token_id": 2}
MODELS = {
    "CLIP": lambda: AutoModel.from_config(
        CLIPConfig(text_config=TOWER | {"pad_token_id": 0}, vision_config=BODY | {"image_size": 32, "patch_size": 16})
    ),
    "CANINE": lambda: AutoModel.from_config(CanineConfig(**BODY)),
    "FSMT": lambda: AutoModelForSeq2SeqLM.from_config(
        FSMTConfig(langs=["en", "de"], src_vocab_size=200, tgt_vocab_size=200, max_position_embeddings=40, **LAYERS)
    ),
    "Marian": lambda: AutoModelForSeq2SeqLM.from_config(
        MarianConfig(vocab_size=200, max_position_embeddings=40, decoder_start_token_id=0, **LAYERS)
    ),
    "Whisper": lambda: AutoModelForSpeechSeq2Seq.from_config(
        WhisperConfig(
            vocab_size=200,
            max_target_positions=40,
            max_source_positions=20,
            num_mel_bins=8,
            decoder_start_token_id=2,
            bos_token_id=2,
            eos_token_id=3,
            **LAYERS,
        )
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_cannot_be_compressed(table, name, command, tokenizer):
    torch.manual_seed(0)
    MODELS[name]().save_pretrained("model")
    tokenizer.save_pretrained("model")
    arguments = ["model.path=model", "output=o", "ratio=2", "checkpoint=true", "codec.error_metric_sequences=8"]
    code, _, err = command("compress", *arguments, "codec.state_bits=6", "codec/prior=uniform", "progress=false")
    assert code == 2, err
    check(table, name, err.splitlines()[-1].removeprefix("error: "))


def _rows(folder: Path, text: str) -> None:
    folder.mkdir()
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text(text)


FILES = {
    "a truncated JSON lines file": lambda: _rows(Path("data"), '{"sentence": "a film", "label": 0}\n{"sentence": "a'),
    "rows without a label": lambda: _rows(Path("data"), '{"sentence": "a film"}\n' * 4),
    "labels that are none": lambda: _rows(Path("data"), '{"sentence": "a film", "label": 7}\n' * 4),
    "an empty file": lambda: _rows(Path("data"), ""),
    "no training split": lambda: Path("data").mkdir(),
}


@pytest.mark.parametrize("name", FILES)
def test_rows_that_cannot_be_read(table, name, command, checkpoint):
    FILES[name]()
    quick = ["codec=none", "trainer.max_epochs=1", "progress=false", "trainer.accelerator=cpu"]
    code, _, err = command("train", "task=sst2", "task.data_dir=data", f"model.path={checkpoint()}", *quick)
    assert code == 2, err
    check(table, name, err.splitlines()[-1].removeprefix("error: "))
    assert not list(Path().rglob("offline-run-*")), "W&B was started"
