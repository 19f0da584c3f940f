"""The loggers of a run. All get the config, the sizes and the curves; W&B a summary, charts and the artifact too.

`start`, `log_result` and `finish` dispatch on the class of the logger, so that a run treats all loggers alike.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import singledispatch
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from lighttoken.codec import Stored
from lighttoken.errors import LighttokenError
from lighttoken.run.records import NOT_ASKED, Record
from lighttoken.run.scores import lower_is_better, retention, task_score
from lighttoken.tasks.data import first_line

log = logging.getLogger(__name__)
DATA_DIR = "WANDB_DATA_DIR"


@contextmanager
def open_loggers(loggers: Sequence[Logger], record: Record) -> Iterator[None]:
    """Loggers are started inside and finished at the end, with exit code 1 after an error.

    Raises LighttokenError if W&B cannot open its run.
    """
    exit_code = 1
    started: list[Logger] = []
    try:
        for logger in loggers:
            start(logger, record)
            started.append(logger)
        with staging_in(record.directory):
            yield
        exit_code = 0
    finally:
        for logger in started:
            finish(logger, exit_code)


def log_sizes(loggers: list[Logger], record: Record) -> None:
    """Log the measured ratio and the bytes of the artifact."""
    sizes: dict[str, Any] = {"table/ratio": record.ratio, "table/bytes": record.artifact_bytes}
    for logger in loggers:
        logger.log_metrics(sizes, step=0)


@singledispatch
def start(logger: Logger, record: Record) -> None:
    """Open the logger's run and log the config."""
    logger.log_hyperparams(record.config)


@singledispatch
def log_result(logger: Logger, record: Record, reference: dict[str, Any] | None) -> None:
    """Log the result of a run, next to the uncompressed run if there is one; most loggers take only curves."""


@singledispatch
def finish(logger: Logger, exit_code: int) -> None:
    """Close the logger's run; most loggers need nothing."""


@start.register
def _(logger: WandbLogger, record: Record) -> None:
    """A flat config, and the ratio as a tag. Of what W&B prints, a line is left: where the run is.

    Raises LighttokenError if W&B cannot open the run.
    """
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        run: Any = logger.experiment
    except wandb.Error as error:
        reason = first_line(error).partition(". ")[0]
        raise LighttokenError(
            f"W&B cannot open a run: {reason}; run wandb login, or keep the run here with logger.wandb.offline=true"
        ) from error
    if run.offline:
        log.info("the W&B run is offline; to send it: wandb sync %s", Path(run.dir).parent)
    elif run.url:
        log.info("the W&B run is %s", run.url)
    columns = {"model": record.model, "task": record.task, "codec": record.codec}
    run.config.update(flatten(record.config) | columns)
    if record.codec != Stored.name:  # whose ratio is not known yet
        _name_ratio(run, record.ratio_asked or 1.0)


def _name_ratio(run: Any, ratio: float) -> None:
    """Give a W&B run its ratio as a column and as a tag."""
    run.config.update({"ratio": ratio}, allow_val_change=True)
    run.tags = (*(run.tags or ()), f"{ratio:g}x")


@log_result.register
def _(logger: WandbLogger, record: Record, reference: dict[str, Any] | None) -> None:
    """A summary, charts and the artifact."""
    import wandb

    run: Any = logger.experiment
    if run.disabled:  # it would copy the artifact for nothing
        return
    if record.codec == Stored.name and record.ratio:
        _name_ratio(run, round(record.ratio, 1))
    run.summary.update(summary(record, reference))
    if charts := figures(record.table, record.compression, record.codec, record.ratio):
        run.log(charts)
    if record.artifact:
        artifact = wandb.Artifact(Path(record.artifact).name, type="compressed_table", metadata=record.compression)
        artifact.add_dir(record.artifact)
        run.log_artifact(artifact)


@finish.register
def _(logger: WandbLogger, exit_code: int) -> None:
    """Close the W&B run, so that the next job of the process opens another."""
    logger.experiment.finish(exit_code=exit_code)


@contextmanager
def staging_in(directory: Path) -> Iterator[None]:
    """Let W&B keep the files that it has yet to send inside a run folder, unless the user has set WANDB_DATA_DIR.

    For use after the W&B run is open: W&B complains where the variable differs from that of its first run in the
    process.
    """
    if DATA_DIR in os.environ:
        yield
        return
    os.environ[DATA_DIR] = str(directory / "wandb" / "data")
    try:
        yield
    finally:
        del os.environ[DATA_DIR]  # the next job of a sweep has another folder


def flatten(config: dict[str, Any], path: str = "") -> dict[str, Any]:
    """A nested config with keys like `codec/name`, which W&B shows, filters and groups by as columns.

    Class names and keys that make no difference to a result are left out.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{path}{key}/") if path or key not in NOT_ASKED else {}
        elif not key.startswith("_") and (path or key not in NOT_ASKED):
            flat[path + key] = value
    return flat


def figures(table: dict[str, Any], compression: dict[str, Any], codec: str, ratio: float | None) -> dict[str, Any]:
    """W&B tables and charts of the `table` and the `compression` of a record, as far as it has their numbers."""
    import wandb

    charts: dict[str, Any] = {}
    if tenths := compression.get("nmse_by_frequency_tenth"):
        rows = wandb.Table(columns=["tenth", "nmse"], data=[list(pair) for pair in enumerate(tenths, 1)])
        charts["error by frequency"] = rows
        charts["figures/error by frequency"] = wandb.plot.bar(
            rows, "tenth", "nmse", title="Error by tenth of frequency"
        )
    if spectrum := table.get("singular_values"):
        pairs = zip(spectrum["index"], spectrum["value"], strict=True)
        rows = wandb.Table(columns=["index", "value"], data=[list(pair) for pair in pairs])
        charts["figures/spectrum"] = wandb.plot.line(rows, "index", "value", title="Singular values of the table")
    if (bound := table.get("gaussian_bound")) and "nmse" in compression:
        ratios, errors = [bound["ratio"], [ratio]], [bound["nmse"], [compression["nmse"]]]
        names = ["Gaussian bound", codec]
        charts["figures/rate-distortion"] = wandb.plot.line_series(ratios, errors, names, title="nmse", xname="ratio")
    return charts


def summary(record: Record, reference: dict[str, Any] | None) -> dict[str, Any]:
    """The numbers that runs are compared by; `retention` is that of `score`, the mean of the task's scores."""
    score = task_score(record.metrics)
    numbers: dict[str, Any] = {"score": score, "ratio": record.ratio}
    numbers |= {"bytes": record.artifact_bytes, "stored_bytes": record.stored_bytes}
    if reference:
        kept = retention([score], [task_score(reference["metrics"])], lower_is_better(record.metrics))["retention"]
        numbers |= {} if kept is None else {"retention": kept}
    errors = {key: record.compression[key] for key in ("nmse", "weighted_nmse", "cosine") if key in record.compression}
    return numbers | errors | record.metrics | {f"seconds/{phase}": value for phase, value in record.seconds.items()}
