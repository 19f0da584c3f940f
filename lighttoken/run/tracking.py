"""What a W&B run is told beside its curves: a flat config, tags, a summary, tables, figures and the artifact."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lighttoken.run.average import task_score
from lighttoken.run.records import Record

DATA_DIR = "WANDB_DATA_DIR"
NOT_TOLD = ("logger", "output_dir", "progress", "resume", "skip_done")


@contextmanager
def staging_in(directory: Path) -> Iterator[None]:
    """Let W&B keep the files that it has yet to send inside a run folder, unless the user said where they go.

    For a run that is open already: where the variable differs from that of its first run in the process, W&B complains.
    """
    if DATA_DIR in os.environ:
        yield
        return
    os.environ[DATA_DIR] = str(directory / "wandb" / "data")
    try:
        yield
    finally:
        del os.environ[DATA_DIR]  # the next job of a sweep has a folder of its own


def flatten(config: dict[str, Any], path: str = "") -> dict[str, Any]:
    """A nested config with keys like `codec/name`, which W&B shows, filters and groups by as columns.

    The names of classes and what makes no difference to a run are left out.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{path}{key}/") if path or key not in NOT_TOLD else {}
        elif not key.startswith("_") and (path or key not in NOT_TOLD):
            flat[path + key] = value
    return flat


def open_run(run: Any, record: Record) -> None:
    """Tell a W&B run its config and its tags."""
    told = {"model": record.model, "task": record.task, "codec": record.codec, "ratio": record.ratio_asked or 1.0}
    run.config.update(flatten(record.config) | told)
    run.tags = (*(run.tags or ()), f"{told['ratio']:g}x")


def close_run(run: Any, record: Record, reference: dict[str, Any] | None) -> None:
    """Tell a W&B run what came out, next to the uncompressed run of the same recipe if there is one."""
    import wandb

    if run.disabled:  # it would copy the artifact for nothing
        return
    run.summary.update(summary(record, reference))
    if told := figures(asdict(record).get("table", {}), record.compression, record.codec, record.ratio):
        run.log(told)
    if record.artifact:
        artifact = wandb.Artifact(Path(record.artifact).name, type="compressed_table", metadata=record.compression)
        artifact.add_dir(record.artifact)
        run.log_artifact(artifact)


def figures(table: dict[str, Any], compression: dict[str, Any], codec: str, ratio: float | None) -> dict[str, Any]:
    """W&B tables and charts of what a record tells of the table and of the artifact, as far as it does."""
    import wandb

    told: dict[str, Any] = {}
    if tenths := compression.get("nmse_by_frequency_tenth"):
        rows = wandb.Table(columns=["tenth", "nmse"], data=[list(each) for each in enumerate(tenths, 1)])
        told["error by frequency"] = rows
        told["figures/error by frequency"] = wandb.plot.bar(rows, "tenth", "nmse", title="Error by tenth of frequency")
    if spectrum := table.get("singular_values"):
        pairs = zip(spectrum["index"], spectrum["value"], strict=True)
        rows = wandb.Table(columns=["index", "value"], data=[list(each) for each in pairs])
        told["figures/spectrum"] = wandb.plot.line(rows, "index", "value", title="Singular values of the table")
    if (bound := table.get("gaussian_bound")) and "nmse" in compression:
        ratios, errors = [bound["ratio"], [ratio]], [bound["nmse"], [compression["nmse"]]]
        names = ["Gaussian bound", codec]
        told["figures/rate-distortion"] = wandb.plot.line_series(ratios, errors, names, title="nmse", xname="ratio")
    return told


def summary(record: Record, reference: dict[str, Any] | None) -> dict[str, Any]:
    """The numbers that a run is compared by; `retention` is that of `score`, the mean of the task's scores."""
    score = task_score(record.metrics)
    told = {"score": score, "ratio": record.ratio, "bytes": record.artifact_bytes, "stored_bytes": record.stored_bytes}
    if reference and (uncompressed := task_score(reference["metrics"])):
        told["retention"] = score / uncompressed
    errors = {key: record.compression[key] for key in ("nmse", "weighted_nmse", "cosine") if key in record.compression}
    return told | errors | record.metrics | {f"seconds/{phase}": value for phase, value in record.seconds.items()}
