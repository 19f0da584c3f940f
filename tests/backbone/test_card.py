"""The model card that a compressed checkpoint gets."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from lighttoken import compress_table
from lighttoken.backbone.card import model_card

ORIGINAL = "---\nlicense: mit\nmodel-index: []\ntags:\n- film\n---\n\n# Tiny\n\nThe original."


@pytest.fixture
def compressed(table):
    return compress_table(table, "svd", ratio=4, progress=False)


def test_a_card_says_what_it_is_and_keeps_the_original_below(compressed, tmp_path):
    (tmp_path / "README.md").write_text(ORIGINAL)
    card = ModelCard(
        model_card(
            "tiny",
            "BertModel",
            compressed,
            tmp_path,
            hub_id="lab/tiny",
            command="python -m lighttoken.compress ratio=4",
            healing={"texts": "prior", "steps": 20, "cosine_before": 0.9, "cosine": 0.95},
            scores={"sst2 val/accuracy": 0.5},
        )
    )
    assert card.data.to_dict() == {
        "license": "mit",
        "tags": ["film", "lighttoken"],
        "base_model": "lab/tiny",
        "library_name": "transformers",
    }
    assert f"takes {compressed.nbytes:,} bytes instead of the 153,600 of" in card.text
    assert "20 steps on texts of prior, cosine of hidden states 0.9000 -> 0.9500" in card.text
    assert "| sst2 val/accuracy | 0.5000 |" in card.text
    assert "    python -m lighttoken.compress ratio=4\n" in card.text
    assert card.text.index("# tiny with a 4") < card.text.index("# Tiny\n\nThe original.")


def test_the_code_of_a_card_loads_the_checkpoint(command, checkpoint, monkeypatch):
    source = checkpoint()
    (source / "README.md").write_text("no metadata")
    arguments = ["codec=svd", "ratio=3", "progress=false", "checkpoint=true", "output=packed"]
    code, out, err = command("compress", f"model.path={source}", *arguments)
    assert code == 0, err
    text = Path("packed/README.md").read_text()
    assert "no metadata" in text
    assert f"python -m lighttoken.compress model.path={source} codec=svd" in text
    code = text.partition("```python\n")[2].partition("```")[0]
    names: dict = {}
    exec(code.replace("DIR", "packed"), names)
    assert names["model"].config.quantization_config.codec == "svd"
    printed = out.partition("To load it:\n")[2]
    exec("\n".join(line.strip() for line in printed.splitlines()), names)
    assert names["model"].get_input_embeddings().num_embeddings == 200


@pytest.mark.parametrize(
    "readme",
    [
        b"---\ntags: [a, b\n---\nmine",
        b"caf\xe9 mine",
        b"---\n- a\n---\nmine",
        b"---\ntags: 5\n---\nmine",
        b"---\ntags: [[a]]\n---\nmine",
        b"---\nlicense:\tmit\n---\nmine",
    ],
)
def test_a_damaged_card_of_the_original_is_text(compressed, tmp_path, readme):
    (tmp_path / "README.md").write_bytes(readme)
    card = ModelCard(model_card("tiny", "BertModel", compressed, tmp_path))
    assert card.data.tags == ["lighttoken"]
    assert card.text.rstrip().endswith("mine")


def test_a_second_compression_has_one_card(command, checkpoint):
    arguments = ["codec=svd", "ratio=3", "progress=false", "checkpoint=true", "output=packed", "overwrite=true"]
    for _ in range(2):
        assert command("compress", f"model.path={checkpoint()}", *arguments)[0] == 0
    assert Path("packed/README.md").read_text().count("## Load it") == 1


def test_the_lines_that_a_command_prints_load_an_artifact(command, checkpoint, tokenizer):
    source = checkpoint()
    quick = ["codec.state_bits=6", "codec/prior=zipf", "codec.error_metric_sequences=32", "ratio=2.5"]
    _, out, _ = command("compress", f"model.path={source}", *quick, "progress=false", "output=artifact")
    names: dict = {"tokenizer": tokenizer}
    exec("\n".join(line.strip() for line in out.partition("To load it:\n")[2].splitlines()), names)
    assert names["compressed"].decode().shape == (200, 32)


def test_a_run_that_keeps_its_model_writes_a_card_with_scores(command, checkpoint, sst2):
    data = ["task=sst2", f"task.data_dir={sst2}", f"model.path={checkpoint()}", "trainer.accelerator=cpu"]
    settings = ["codec=svd", "ratio=3", "trainer.max_epochs=1", "progress=false", "save_model=true", "logger=none"]
    code, out, err = command("train", *data, *settings)
    assert code == 0, err
    (folder,) = Path("outputs/runs").iterdir()
    record = json.loads((folder / "record.json").read_text())
    text = (folder / "model/README.md").read_text()
    assert f"| sst2 val/accuracy | {record['metrics']['val/accuracy']:.4f} |" in text
    assert record["command"] in text
    assert record["command"].startswith("python -m lighttoken.train task=sst2 task.data_dir=")
    assert f'BertForSequenceClassification.from_pretrained("{folder.resolve()}/model")' in out
