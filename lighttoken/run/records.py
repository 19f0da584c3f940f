"""record.json: the settings of a run, its phases, its results. Written at the start, finished at the end."""

import json
import logging
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from lighttoken.artifact.files import make_directory, write_atomically
from lighttoken.backbone.precision import model_bytes
from lighttoken.codec import NO_CODEC
from lighttoken.errors import LighttokenError
from lighttoken.run.memory import peak_of_process
from lighttoken.run.process import rank, this_process
from lighttoken.run.reading import RECORD_FILE, read_record, read_records
from lighttoken.run.secrets import masked
from lighttoken.version import __version__

log = logging.getLogger(__name__)

MODEL_FOLDER = "model"  # in the folder of a run with save_model=true
LIBRARIES = ("torch", "lightning", "transformers", "datasets", "torchmetrics", "hydra-core", "wandb")
# Keys that may differ between a run and the uncompressed run that its score is compared with.
NOT_RECIPE = (
    "codec",
    "schedule",  # of records made before it moved into the codec
    "ratio",
    "backbone_precision",
    "output_dir",
    "logger",
    "progress",
    "predict",
    "resume",
    "skip_done",
    "save_model",
    "distill",  # its teacher is such an uncompressed run
    "tie",
    "heal",
)
# Settings that cut a run short of its recipe, and values of them that cut nothing.
CUTS: tuple[str, ...] = ("limit_rows", "task.train_rows", "task.max_tokens", "trainer.max_steps", "trainer.max_time")
CUTS += ("trainer.limit_train_batches", "trainer.limit_val_batches", "trainer.overfit_batches", "trainer.fast_dev_run")
UNCUT = ("null", "-1", "0", "0.0", "1.0", "false")
LABEL_NAMES = ("label_names", "submit_names")
# Keys that may differ between two commands that ask for the same run.
NOT_ASKED = ("output_dir", "logger", "progress", "resume", "skip_done")


@dataclass
class Record:
    """One execution. Sizes are in bytes, times in seconds; `ratio` is measured, `ratio_asked` is the config's."""

    directory: Path
    config: dict[str, Any]
    model: str
    task: str
    codec: str
    seed: int
    ratio_asked: float | None
    status: str = "running"  # then done or failed; readers say lost of a run whose process is gone
    error: str | None = None
    command: str | None = None  # that made it
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    ratio: float | None = None
    table_bytes: int | None = None  # V * d * 4
    artifact_bytes: int | None = None
    model_bytes: int | None = None  # all parameters of the uncompressed model, in float32
    stored_bytes: int | None = None  # the model as it was evaluated
    artifact: str | None = None
    artifact_reused: bool = False
    peak_memory_tables: float | None = None  # of making the artifact, besides what was in use, in float32 tables
    tie: str | None = None  # of an output head that shares the table; None for a model without one
    resumed: str | None = None  # checkpoint that fine-tuning continued from
    table: dict[str, Any] = field(default_factory=dict)  # `lighttoken.run.measure.measure_table`
    healing: dict[str, Any] = field(default_factory=dict)  # `lighttoken.run.healing`: texts, steps, cosines
    compression: dict[str, Any] = field(default_factory=dict)  # the artifact's summary, and `measure_artifact`
    metrics: dict[str, float] = field(default_factory=dict)
    constant: dict[str, float] = field(default_factory=dict)  # the same metrics of `TaskData.constant_scores`
    seconds: dict[str, float] = field(default_factory=dict)  # per phase
    peak_memory_bytes: int | None = None  # resident, of the process up to the end of this run
    peak_gpu_memory_bytes: int | None = None  # allocated by torch during this run
    hardware: dict[str, Any] = field(default_factory=lambda: hardware())
    versions: dict[str, str] = field(
        default_factory=lambda: {"lighttoken": __version__} | {name: version(name) for name in LIBRARIES}
    )
    git_commit: str | None = field(default_factory=lambda: _git_commit())
    process: dict[str, Any] = field(default_factory=this_process)  # readers call its run lost once it is gone

    def save(self) -> None:
        """Write record.json whole or not at all, without keys and passwords.

        Raises LighttokenError if the run folder cannot be written.
        """
        if rank():  # only the first process of a run writes
            return
        content = {"status": self.status} | {k: v for k, v in asdict(self).items() if k != "directory"}
        make_directory(self.directory)
        write_atomically(self.directory / RECORD_FILE, masked(json.dumps(content, indent=2)).encode())

    def add_model(self, model: nn.Module, table: torch.Tensor) -> None:
        """Enter the sizes of the uncompressed model and of its table, both in float32."""
        self.table_bytes = self.artifact_bytes = 4 * table.numel()
        self.model_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
        if table.data_ptr() not in {parameter.data_ptr() for parameter in model.parameters()}:  # a compressed one
            self.model_bytes += self.table_bytes

    def add_artifact(self, nbytes: int | None, directory: Path | None = None, reused: bool = False) -> None:
        """Enter the artifact and the measured ratio. With codec=none the artifact is the table and has no directory."""
        self.artifact_bytes, self.artifact_reused = nbytes, reused
        self.artifact = None if directory is None else str(directory)
        self.ratio = _quotient(self.table_bytes, nbytes)

    def add_stored_model(self, model: nn.Module) -> None:
        """Enter the size of the model as it is stored and evaluated."""
        self.stored_bytes = model_bytes(model)

    @property
    def table_shares(self) -> tuple[float | None, float | None]:
        """The table's share of the uncompressed model, and the artifact's share of the stored model."""
        return _quotient(self.table_bytes, self.model_bytes), _quotient(self.artifact_bytes, self.stored_bytes)

    @contextmanager
    def running(self) -> Iterator["Record"]:
        """The record says `running` inside, then `done`, or `failed` with the error, whatever it was."""
        self.save()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            yield self
            self.status = "done"
        except BaseException as reason:
            interrupted = type(reason) is SystemExit and isinstance(reason.__context__, KeyboardInterrupt)
            error = reason.__context__ if interrupted else reason  # Lightning turns Ctrl-C into an exit
            self.status, self.error = "failed", f"{type(error).__name__}: {error}".removesuffix(": ")
            raise
        finally:
            self.peak_memory_bytes = peak_of_process()
            if torch.cuda.is_available():
                self.peak_gpu_memory_bytes = torch.cuda.max_memory_allocated()
            try:
                self.save()
            except LighttokenError:
                log.error("%s cannot be written; the scores were %s", RECORD_FILE, self.metrics)
                raise

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside to the phase of that name."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 2)


def settle(config: DictConfig) -> None:
    """Bring a config into the form in which runs are compared.

    Paths that a run reads become absolute. What a task without training does not read is taken out.
    """
    paths = [(config.task, "data_dir"), (config.task, "file"), (config, "init_from"), (config, "distill")]
    paths += [(config.model, "path"), (config.heal, "file"), (config.codec.get("prior"), "file")]
    for node, key in paths:
        if node and node.get(key):
            node[key] = str(Path(node[key]).expanduser().resolve())
    if not getattr(get_object(config.task._target_), "trains", True):
        config.finetune, config.trainer.max_epochs = {}, 0
        with open_dict(config.task):
            config.task.pop("batch_size", None)  # of a recipe


def command_line() -> str:
    """The command of this run, as a shell takes it; of a job of a sweep, that of the job alone."""
    config = HydraConfig.get()
    mode = [value for value in config.overrides.hydra if value == "hydra.mode=RUN"]  # where an experiment is a sweep
    command = ["python", "-m", f"lighttoken.{config.job.name}", *config_folders(config), *config.overrides.task, *mode]
    return masked(shlex.join(command))


def config_folders(hydra: Any) -> list[str]:
    """The flags `--config-dir` of a command, given Hydra's part of its config."""
    added = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return [f"--config-dir={path.removeprefix('file://')}" for path in added]


def settings_of(config: DictConfig) -> dict[str, Any]:
    """A config as a record has it: plain JSON values, without secrets."""
    return json.loads(masked(json.dumps(OmegaConf.to_container(config, resolve=True))))


def asked_for(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that makes it another run. Without a codec, the ratio does not."""
    ignored = NOT_ASKED + (("ratio", "schedule", "tie", "heal") if config["codec"].get("name") in NO_CODEC else ())
    ignored += () if config.get("heal") else ("heal",)  # which configs of before lack
    return {key: _comparable(value) for key, value in config.items() if key not in ignored}


def recipe(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that two runs must share for their scores to be compared: all but the codec and its like."""
    shared = {key: _comparable(value) for key, value in config.items() if key not in NOT_RECIPE}
    finetune = shared.get("finetune") or {}
    shared["finetune"] = {key: value for key, value in finetune.items() if not key.startswith("distill_")}
    # The run to start from has a codec of its own; its task counts.
    return shared | {"init_from": source_of(config.get("init_from"), codec=False)}


def source_of(run: Any, codec: bool = True) -> str | bool:
    """What a run starts or learns from, whichever its seed: the task, perhaps the codec, and what cuts it short.

    True if there is no run in that folder any more, False if there was none.
    """
    return _source_of(str(run), codec) if run else False


@lru_cache(maxsize=10_000)
def _source_of(run: str, codec: bool) -> str | bool:
    try:
        record = read_record(Path(run, RECORD_FILE))
    except (OSError, ValueError):  # of a damaged record, whose text is no path, too
        return True
    config = record["config"]
    ratio = f" {record['ratio_asked']:g}x" if record["ratio_asked"] else ""
    words = [record["task"], f"{record['codec']}{ratio}"] if codec else [record["task"]]
    for path in CUTS:
        group, _, key = path.rpartition(".")
        node = config.get(group) if group else config
        value = json.dumps(node.get(key)) if isinstance(node, dict) else "null"
        words += [f"{key}={value}"] if value not in UNCUT else []
    return " ".join(words)


def _comparable(node: Any) -> Any:
    """A config as configs are compared, though keys are added and classes move to other modules.

    `_target_`s are bare class names; keys that are null, and names of labels, which change no training, are left out.
    """
    if isinstance(node, list):
        return [_comparable(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if value is not None and key not in LABEL_NAMES}
    return {
        key: str(value).rpartition(".")[2] if key == "_target_" else _comparable(value) for key, value in kept.items()
    }


def is_reference(record: dict[str, Any]) -> bool:
    """Whether a record is of an uncompressed model in float32 that learned from no teacher."""
    unchanged = record["config"].get("backbone_precision", "float32") == "float32"
    return record.get("codec") == "none" and unchanged and not record["config"].get("distill")


def find_reference(record: Record, root: Path) -> dict[str, Any] | None:
    """The latest finished uncompressed record under a folder with the same recipe, seed and kind of device, or None.

    Another kind of device draws other random numbers from the same seed.
    """
    references = [
        other
        for other in read_records(root)
        if is_reference(other) and other["status"] == "done" and recipe(other["config"]) == recipe(record.config)
        if other["hardware"].get("accelerator") == record.hardware.get("accelerator")
    ]
    return max(references, key=lambda other: other["started"], default=None)


def hardware() -> dict[str, Any]:
    """The machine that a run is on."""
    accelerator = torch.accelerator.current_accelerator()
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else str(accelerator or "none"),
    }


def _quotient(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None


def _git_commit() -> str | None:
    """The commit of the checkout that this code runs from, with `-dirty` if it has changes; None outside a checkout."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None  # an installed package: git would describe whatever repository it lies in
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
