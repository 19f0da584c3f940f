"""Small tasks, and runs that train on them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torchmetrics.classification import BinaryAccuracy

from lighttoken.tasks.glue import Glue


@pytest.fixture
def glue(tokenizer, sst2: Path) -> Callable[..., Glue]:
    """The small SST-2 as a task. Its settings can be changed."""

    def make(**changes: Any) -> Glue:
        settings = {"name": "sst2", "text_columns": ["sentence"], "num_labels": 2, "batch_size": 8}
        settings |= {"metrics": {"accuracy": BinaryAccuracy()}, "data_dir": str(sst2)}
        return Glue(tokenizer, **settings | changes)

    return make


@pytest.fixture
def train(command, checkpoint) -> Callable[..., tuple[int, str, str]]:
    """Runs the command `train` for one epoch on a small model; returns exit code, standard output, standard error."""

    def run(*arguments: str, architecture: str = "bert") -> tuple[int, str, str]:
        quick = ["codec=svd", "ratio=2.5", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
        quick += [f"model.path={checkpoint(architecture)}", "logger=none", "progress=false"]
        return command("train", *quick, *arguments)

    return run


def read_record() -> tuple[Path, dict[str, Any]]:
    """The folder and the record of the only run."""
    (path,) = Path("outputs/runs").glob("*/record.json")
    return path.parent, json.loads(path.read_text())
