"""The GLUE average of a sweep over tasks."""

import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lighttoken.artifact import write_atomically
from lighttoken.errors import LighttokenError
from lighttoken.records import asked_for
from lighttoken.screen import print_rows
from lighttoken.sweep import sweep_records

OF_A_TASK = ("task", "trainer", "init_from", "distill")  # of a config: differs from task to task
AVERAGE_FILE = "glue_average.json"
TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")


def task_score(metrics: dict[str, float], rows: str = "val") -> float:
    """The mean of a task's validation scores, as the GLUE site counts tasks that have two (Wang et al. 2019).

    With `rows="dev"` the mean over the rows held out of the training split. NaN without any.
    """
    scores = [value for name, value in metrics.items() if name.startswith(rows) and not name.endswith("/loss")]
    return fmean(scores) if scores else math.nan


def glue_average(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per model, codec, ratio, seed and setting: every task's score and their mean, over those that finished.

    `settings` is what the tasks share of their configs.
    """
    runs: dict[str, dict[str, Any]] = {}
    for record in records:
        if record["status"] == "done" and record["task"] in TASKS:
            settings = {key: value for key, value in asked_for(record["config"]).items() if key not in OF_A_TASK}
            told = {"model": record["model"], "codec": record["codec"], "ratio": record["ratio_asked"]}
            told |= {"seed": record["seed"], "settings": settings}
            row = runs.setdefault(json.dumps(told, sort_keys=True), told | {"tasks": {}})
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
        for row in rows:
            ratio = f" at {row['ratio']:g}x" if row["ratio"] else ""
            told = [(task, f"{score:.4f}") for task, score in row["tasks"].items()]
            title = f"GLUE with {row['model']}, codec {row['codec']}{ratio}, seed {row['seed']}"
            print_rows(title, [*told, (f"average of {len(told)}", f"{row['average']:.4f}")])
