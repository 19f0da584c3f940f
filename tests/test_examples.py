"""The examples work from outside of the package, by the commands that their pages give."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch

from lighttoken import load_table
from tests.test_docs import ROOT, blocks

EXAMPLES = ROOT / "examples"


@pytest.fixture
def run_page(command, checkpoint, monkeypatch, tmp_path):
    """Runs the one command of a page of docs/, on a small random BERT and a folder of texts."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    checkpoint("bert").rename("CHECKPOINT")
    for split in ("train", "validation"):
        for name, text in (("negative", "bad plot"), ("positive", "great movie")):
            folder = Path("TEXTS", split, name)
            folder.mkdir(parents=True)
            for i in range(4):
                (folder / f"{i}.txt").write_text(f"{text} word{i}")

    def run(page, *more):
        (block,) = (text for name, text in blocks("") if name == page)
        path, python, flag, module, *arguments = shlex.split(block)
        assert (path, python, flag) == ("PYTHONPATH=examples", "python", "-m")
        monkeypatch.syspath_prepend("examples")
        code, _, message = command(module.removeprefix("lighttoken."), *arguments, "progress=false", *more)
        assert code == 0, message

    yield run
    for file in EXAMPLES.glob("*.py"):
        sys.modules.pop(file.stem, None)


def test_own_codec_compresses_and_is_not_needed_to_load(run_page, make_model):
    run_page("own_codec.md")
    assert "kmeans_rows" in sys.modules
    sys.modules.pop("kmeans_rows")
    compressed = load_table("DIR")
    assert compressed.codec == "kmeans_rows"
    assert compressed.ratio >= 4
    assert len(compressed.decode().unique(dim=0)) <= compressed.summary["centroids"]


def test_own_codec_finds_clusters_that_are_there(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from kmeans_rows import KMeansRows

    from lighttoken import compress_table

    centers = torch.randn(8, 32)
    table = centers[torch.arange(4000) % 8] + 0.01 * torch.randn(4000, 32)
    compressed = compress_table(table, KMeansRows(), ratio=25, progress=False)
    assert compressed.summary["centroids"] >= 64
    assert compressed.summary["nmse"] < 0.01


def test_own_task_trains_and_is_scored(run_page):
    run_page("own_task.md", "codec=none", "logger=none", "trainer.accelerator=cpu")
    (record,) = Path("outputs/runs").glob("*/record.json")
    content = json.loads(record.read_text())
    assert (content["status"], content["task"]) == ("done", "text_folders")
    assert 0 <= content["metrics"]["val/accuracy"] <= 1
