"""The GLUE average of a sweep over tasks."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lighttoken.artifact.files import write_atomically
from lighttoken.codec import NO_CODEC
from lighttoken.errors import LighttokenError
from lighttoken.run.scores import task_score
from lighttoken.run.screen import print_rows
from lighttoken.run.sweep import differences, sweep_records

AVERAGE_FILE = "glue_average.json"
TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")


def glue_average(jobs: list[tuple[list[str], dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per setting: the scores of the tasks that finished, and their mean.

    `jobs` are overrides and records, as `sweep_records` returns them. Overrides other than the task make the setting;
    values that differ without an override, such as a recipe's learning rate for a task, belong to the task.
    """
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for overrides, record in jobs:
        if record["status"] == "done" and record["task"] in TASKS:
            unread = ("task=", "ratio=") if record["codec"] in NO_CODEC else ("task=",)
            setting = tuple(override for override in overrides if not override.startswith(unread))
            row = {name: record[name] for name in ("model", "codec", "seed")} | {"ratio": record["ratio_asked"]}
            row = rows.setdefault(setting, row | {"overrides": list(setting), "tasks": {}})
            row["tasks"][record["task"]] = task_score(record["metrics"])
    return [row | {"average": fmean(row["tasks"].values())} for row in rows.values()]


class GlueAverage(Callback):
    """Hydra callback: at the end of a sweep, writes `glue_average.json` into its folder and prints it."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Raises LighttokenError if no job of the sweep has finished."""
        folder = Path(config.hydra.sweep.dir)
        rows = glue_average(sweep_records(folder))
        if not rows:
            raise LighttokenError(f"no job of the sweep {folder} has finished; see the errors above")
        write_atomically(folder / AVERAGE_FILE, json.dumps(rows, indent=2).encode())
        for row, overrides in zip(rows, differences([row["overrides"] for row in rows]), strict=True):
            ratio = f" at {row['ratio']:g}x" if row["ratio"] else ""
            title = [f"GLUE with {row['model']}, codec {row['codec']}{ratio}, seed {row['seed']}"]
            title += [text for text in overrides if not text.startswith(("model=", "codec=", "ratio=", "seed="))]
            scores = row["tasks"] | {f"average of {len(row['tasks'])}": row["average"]}
            print_rows(", ".join(title), [(name, f"{score:.4f}") for name, score in scores.items()])
