"""The Lightning trainer of a run, its callbacks and its checkpoints."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from filelock import FileLock, Timeout
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from lighttoken.artifact.files import make_directory
from lighttoken.errors import LighttokenError
from lighttoken.run.checkpoints import CHECKPOINT_FILE, CheckedCheckpoints, read_checkpoint
from lighttoken.run.process import processes_started, rank
from lighttoken.run.records import asked_for, settings_of


def make_trainer(config: DictConfig, loggers: list[Logger], directory: Path) -> L.Trainer:
    """The trainer with its callbacks.

    Raises LighttokenError for a device or a strategy that is not there.
    """
    callbacks = make_callbacks(config, loggers)
    settings = {
        "callbacks": callbacks,
        "logger": loggers,
        "default_root_dir": str(directory),
        "enable_progress_bar": config.progress,
        "use_distributed_sampler": False,  # the order of rows is the task's, whatever the strategy
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
    }
    if processes_started() == 1 and config.trainer.devices != 1 and "plugins" not in config.trainer:
        settings["plugins"] = LightningEnvironment()  # whatever cluster a single process was started on
    try:
        trainer: L.Trainer = instantiate(config.trainer, **settings)
    except InstantiationException as error:
        if not isinstance(error.__cause__, (MisconfigurationException, ValueError)):
            raise
        names = ("accelerator", "devices", "precision")
        values = ", ".join(f"trainer.{name}={config.trainer[name]}" for name in names)
        reason = str(error.__cause__).splitlines()[0].rstrip(".")
        raise LighttokenError(
            f"{values} do not work here: {reason}; trainer.accelerator=auto takes what there is"
        ) from error
    trainer.strategy.checkpoint_io = CheckedCheckpoints(config.resume)
    return trainer


def make_callbacks(config: DictConfig, loggers: list[Logger]) -> list[L.Callback]:
    """The callbacks of the config and, with `resume`, those that write the checkpoint to continue from."""
    callbacks: list[L.Callback] = list(instantiate(config.callbacks or {}).values())
    if config.resume:
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint):  # in another folder it would forget which epoch was best
                callback.dirpath = str(resume_folder(config) / "best")
        last = ModelCheckpoint(resume_folder(config), filename=Path(CHECKPOINT_FILE).stem, save_on_train_epoch_end=True)
        callbacks += [last, Timer()]
    if not loggers:  # LearningRateMonitor raises an error without one
        callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
    return callbacks


def load_best(trainer: L.Trainer, module: L.LightningModule, keep: bool) -> None:
    """Load the epoch that a checkpoint callback found best on held-out rows; without one the last epoch stays.

    `keep` leaves the file, for a run that continues from here. Raises LighttokenError if it is damaged.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            module.load_state_dict(read_checkpoint(Path(callback.best_model_path))["state_dict"])
            trainer.strategy.barrier()  # until all processes have read it
            if not keep and trainer.is_global_zero:
                Path(callback.best_model_path).unlink()


def check_finite(scores: Mapping[str, Any], config: DictConfig) -> None:
    """Raise LighttokenError, with the first loss or score that is not finite, if there is one."""
    for name, score in scores.items():
        if not math.isfinite(score):
            rate = config.finetune.get("learning_rate")
            cure = f"lower ratio={config.ratio:g}" if rate is None else f"lower finetune.learning_rate={rate}"
            raise LighttokenError(
                f"{name} is {float(score)} and must be finite; {cure}, or change "
                f"backbone_precision={config.backbone_precision} or trainer.precision={config.trainer.precision}"
            )


def resume_folder(config: DictConfig) -> Path:
    """Where a run keeps its checkpoint until it is done: the same folder for the same command."""
    key = hashlib.sha256(json.dumps(asked_for(settings_of(config)), sort_keys=True).encode()).hexdigest()[:16]
    return Path(config.output_dir) / "resume" / key


@contextmanager
def resumable(config: DictConfig) -> Iterator[None]:
    """Inside, with `resume`, the checkpoint to continue from is this process's; once the run is done it is removed.

    Raises LighttokenError if another process runs the same command. Its lock is free when it dies.
    """
    if not config.resume or rank():
        yield
        return
    folder = resume_folder(config)
    path = Path(config.output_dir) / "locks" / f"resume_{folder.name}.lock"
    make_directory(path.parent)
    try:
        lock = FileLock(path).acquire(timeout=0)
    except Timeout as error:
        raise LighttokenError(
            f"another process runs this command and writes {folder / CHECKPOINT_FILE}; wait for it, or set resume=false"
        ) from error
    with lock:
        yield
        shutil.rmtree(folder, ignore_errors=True)
