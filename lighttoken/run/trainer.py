"""The Lightning trainer of a run: loggers, callbacks, precisions, checkpoints."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, Timer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from lighttoken.backbone.precision import check_precision
from lighttoken.errors import LighttokenError
from lighttoken.run.records import Record, asked_for
from lighttoken.run.tracking import open_run, staging_in

CHECKPOINT_FILE = "last.ckpt"


MATMUL_PRECISIONS = ("highest", "high", "medium")  # of torch.set_float32_matmul_precision


def check_precisions(config: DictConfig) -> None:
    """Raise LighttokenError for precisions that are unknown, cannot be made here, or round scores."""
    check_precision(config.backbone_precision)
    if config.matmul_precision not in MATMUL_PRECISIONS:
        raise LighttokenError(
            f"unknown matmul_precision={config.matmul_precision!r}; choose one of {', '.join(MATMUL_PRECISIONS)}"
        )
    if str(config.trainer.precision) in ("16-true", "bf16-true"):
        raise LighttokenError(
            f"trainer.precision={config.trainer.precision} rounds labels and scores too; set "
            "trainer.precision=bf16-mixed, and backbone_precision=bfloat16 for the weights that are stored"
        )


def make_trainer(config: DictConfig, loggers: list[Logger], directory: Path) -> L.Trainer:
    """The trainer with its callbacks.

    Raises LighttokenError for callbacks that watch rows which are only ever scored, or held-out rows if there are none,
    for more than one process, for devices that are not there and for training without an end.
    """
    callbacks: list[L.Callback] = list(instantiate(config.callbacks or {}).values())
    if config.resume:
        for each in callbacks:  # the same folder when it goes on, or it would forget which epoch was best
            if isinstance(each, ModelCheckpoint):
                each.dirpath = str(resume_folder(config) / "best")
        last = ModelCheckpoint(resume_folder(config), filename=Path(CHECKPOINT_FILE).stem, save_on_train_epoch_end=True)
        callbacks += [last, Timer()]
    if not loggers:  # it refuses to work without one
        callbacks = [each for each in callbacks if not isinstance(each, LearningRateMonitor)]
    watched = [str(name) for each in callbacks if (name := getattr(each, "monitor", None))]
    if scored := [name for name in watched if not name.startswith(("dev/", "train/"))]:
        raise LighttokenError(
            f"callbacks watch {', '.join(scored)}, which is reported and must not be chosen by; watch dev/loss "
            "instead, with task.dev_fraction=0.05"
        )
    if not config.task.dev_fraction and any(name.startswith("dev/") for name in watched):
        raise LighttokenError(
            f"callbacks watch {', '.join(watched)} and task.dev_fraction is 0; set task.dev_fraction=0.05"
        )
    told = {
        "callbacks": callbacks,
        "logger": loggers,
        "default_root_dir": str(directory),
        "enable_progress_bar": config.progress,
        "enable_checkpointing": any(isinstance(each, ModelCheckpoint) for each in callbacks),
    }
    try:
        trainer: L.Trainer = instantiate(config.trainer, **told)
    except InstantiationException as error:
        if not isinstance(error.__cause__, MisconfigurationException):
            raise
        asked = ", ".join(f"trainer.{name}={config.trainer[name]}" for name in ("accelerator", "devices", "precision"))
        said = str(error.__cause__).splitlines()[0].rstrip(".")
        raise LighttokenError(
            f"{asked} do not work here: {said}; trainer.accelerator=auto takes what there is"
        ) from error
    if trainer.max_steps < 0 and (trainer.max_epochs is None or trainer.max_epochs < 0):
        raise LighttokenError(
            f"trainer.max_epochs={config.trainer.max_epochs} has no end, which the learning rate falls towards; set "
            "trainer.max_epochs=3, or trainer.max_steps"
        )
    if trainer.world_size > 1:
        raise LighttokenError(
            f"trainer.devices={config.trainer.devices} makes {trainer.world_size} processes and a run is one; set "
            "trainer.devices=1 and, to use more devices, run the jobs of a sweep at once with hydra/launcher=joblib"
        )
    return trainer


def load_best(trainer: L.Trainer, module: L.LightningModule, keep: bool) -> None:
    """Take the weights that a checkpoint callback found best on held-out rows; the last ones stay if none was asked.

    `keep` leaves the file, for a run that is resumed from here.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            module.load_state_dict(torch.load(callback.best_model_path, weights_only=True)["state_dict"])
            if not keep:
                Path(callback.best_model_path).unlink()


def resume_folder(config: DictConfig) -> Path:
    """Where a run keeps its checkpoint until it is done: the same for the same command."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    key = hashlib.sha256(json.dumps(asked_for(plain), sort_keys=True).encode()).hexdigest()[:16]
    return Path(config.output_dir) / "resume" / key


@contextmanager
def open_loggers(config: DictConfig, record: Record) -> Iterator[list[Logger]]:
    """The configured loggers, told the whole config; a W&B run is closed at the end: the next job opens its own."""
    loggers: list[Logger] = list(instantiate(config.logger or {}).values())
    exit_code = 1
    try:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                open_run(logger.experiment, record)
            else:
                logger.log_hyperparams(record.config)
        with staging_in(record.directory):
            yield loggers
        exit_code = 0
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=exit_code)
