"""The GLUE average of a sweep over tasks."""

import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lighttoken.artifact.files import write_atomically
from lighttoken.errors import LighttokenError
from lighttoken.run.screen import print_rows
from lighttoken.run.sweep import sweep_records

AVERAGE_FILE = "glue_average.json"
TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")


def task_score(metrics: dict[str, float], rows: str = "val") -> float:
    """The mean of a task's validation scores, as the GLUE site counts tasks that have two (Wang et al. 2019).

    With `rows="dev"` the mean over the rows held out of the training split. NaN without any.
    """
    scores = [value for name, value in metrics.items() if name.startswith(rows) and not name.endswith("/loss")]
    return fmean(scores) if scores else math.nan


def glue_average(records: list[tuple[list[str], dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per thing asked for but for the task: every task's score and their mean, over those that finished.

    `records` are those of the jobs of a sweep, each next to its overrides, as `sweep_records` gives them. What differs
    among the jobs of a sweep and is no override, as a recipe's learning rate for a task, is the task's own.
    """
    runs: dict[tuple[str, ...], dict[str, Any]] = {}
    for overrides, record in records:
        if record["status"] == "done" and record["task"] in TASKS:
            unread = ("task=", "ratio=", "schedule=") if record["codec"] == "none" else ("task=",)
            asked = tuple(each for each in overrides if not each.startswith(unread))
            told = {name: record[name] for name in ("model", "codec", "seed")} | {"ratio": record["ratio_asked"]}
            row = runs.setdefault(asked, told | {"overrides": list(asked), "tasks": {}})
            row["tasks"][record["task"]] = task_score(record["metrics"])
    return [row | {"average": fmean(row["tasks"].values())} for row in runs.values()]


class GlueAverage(Callback):
    """Hydra callback: at the end of a sweep, writes `glue_average.json` into its folder and prints it."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Raises LighttokenError if no job of the sweep has finished."""
        folder = Path(config.hydra.sweep.dir)
        rows = glue_average(sweep_records(folder))
        if not rows:
            raise LighttokenError(f"no job of the sweep {folder} has finished; see the errors above")
        write_atomically(folder / AVERAGE_FILE, json.dumps(rows, indent=2).encode())
        common = set(rows[0]["overrides"]).intersection(*(row["overrides"] for row in rows))
        for row in rows:
            ratio = f" at {row['ratio']:g}x" if row["ratio"] else ""
            told = [(task, f"{score:.4f}") for task, score in row["tasks"].items()]
            title = f"GLUE with {row['model']}, codec {row['codec']}{ratio}, seed {row['seed']}"
            in_title = ("model=", "codec=", "ratio=", "seed=")
            own = [each for each in row["overrides"] if each not in common and not each.startswith(in_title)]
            print_rows(", ".join([title, *own]), [*told, (f"average of {len(told)}", f"{row['average']:.4f}")])
