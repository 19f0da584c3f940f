"""All checks that need nothing but the config, and whether its sources are there, in one place, before any work.

Elsewhere: whether a device is there (`run/trainer.py`), whether the data has the rows (`tasks/`), and whether a codec
can meet the ratio (`codec/`).
"""

import math
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from lighttoken.artifact.table import METADATA_FILE
from lighttoken.backbone.embedding import Tie
from lighttoken.backbone.precision import check_precision
from lighttoken.codec import NO_CODEC
from lighttoken.codec.inputs import check_seed
from lighttoken.codec.interface import MetricCodec, resolve_device
from lighttoken.codec.quality import check_quality
from lighttoken.config.messages import one_line
from lighttoken.config.schema import Compress, Train
from lighttoken.config.signatures import check_keys, check_node, parameters
from lighttoken.errors import LighttokenError
from lighttoken.run.process import processes_started
from lighttoken.run.records import MODEL_FOLDER

RANGES = {  # of values: the least and the largest
    ("finetune", "learning_rate"): (0, math.inf),
    ("finetune", "weight_decay"): (0, math.inf),
    ("finetune", "warmup_ratio"): (0, 1),
    ("finetune", "distill_weight"): (0, 1),
    ("finetune", "distill_temperature"): (0.01, math.inf),
    ("heal", "learning_rate"): (0, math.inf),
    ("heal", "warmup_ratio"): (0, 1),
    ("task", "max_answer_length"): (1, math.inf),
}
MATMUL_PRECISIONS = ("highest", "high", "medium")  # of torch.set_float32_matmul_precision


def check(config: DictConfig) -> None:
    """Raise LighttokenError, with the values and the cure, for the first thing in a config that cannot work."""
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise LighttokenError(f"missing {', '.join(missing)}; add {missing[0]}=VALUE to the command")
    plain: Any = OmegaConf.to_container(config, resolve=True)
    schema = OmegaConf.get_type(config)
    _check_numbers(plain)
    if schema in (Train, Compress):
        check_keys("", set(map(str, plain)), set(get_type_hints(schema)))
    check_node("", plain)
    if schema is Train:
        _check_choice("tie", plain["tie"], get_args(Tie))
        _check_precisions(plain)
        _check_callbacks(plain)
        _check_trainer(plain["trainer"])
        _check_sharding(plain)
        if plain["heal"] and plain["init_from"]:
            raise LighttokenError(f"init_from={plain['init_from']} brings a body of its own; leave out heal=")
        if plain["codec"].get("name") == "stored":
            _check_stored(plain)
    if schema is Compress:
        _check_healing(plain)
        _check_goal(plain)
        _check_output(plain)


class CheckJobs(Callback):
    """Hydra callback of every sweep: before the first job, checks jobs in which every value of the sweep occurs."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Raise SystemExit with code 2, and print the line of the error, for a config that cannot work."""
        loader = GlobalHydra.instance().config_loader()
        try:
            if (processes := processes_started()) > 1:
                raise LighttokenError(
                    f"torchrun or srun has started {processes} processes, and each would run the sweep; start the "
                    "sweep without, its jobs start their own processes"
                )
            params = config.hydra.sweeper.get("params") or {}  # of an experiment; Hydra puts them before the command's
            for overrides in _jobs([f"{key}={value}" for key, value in params.items()], config.hydra.overrides.task):
                job = loader.load_sweep_config(config, overrides)
                with open_dict(job.hydra):
                    job.hydra.job.id, job.hydra.job.num = "check", 0
                    job.hydra.runtime.output_dir = job.hydra.sweep.dir
                HydraConfig.instance().set_config(job)
                with open_dict(job):
                    del job["hydra"]  # as Hydra does; a masked copy would lose the schema
                check(job)
                check_sources(job)
        except Exception as error:  # which Hydra would turn into a warning
            line = one_line(error, config.hydra.job.config_name)
            if line is None:
                raise SystemExit(traceback.format_exc()) from error
            print(f"error: {line}", file=sys.stderr)
            raise SystemExit(2) from error


def _jobs(params: Sequence[str], arguments: Sequence[str]) -> list[list[str]]:
    """The overrides of a few jobs of a sweep, in which every value of a list occurs.

    A later list replaces an earlier one of the same key.
    """
    values: dict[str, list[str]] = {}
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    for override in parser.parse_overrides([*params, *arguments]):
        key = override.get_key_element()
        if override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        elif not override.is_sweep_override():  # a range that a sweeper draws from has no values yet
            values[key] = [override.input_line or ""]
    count = max(map(len, values.values()), default=1)
    return [[options[job % len(options)] for options in values.values()] for job in range(count)]


def _check_numbers(config: dict[str, Any]) -> None:
    """Seed, ratio, and what has a range of its own."""
    for (group, key), (least, most) in RANGES.items():
        value = (config.get(group) or {}).get(key)
        if isinstance(value, (int, float)) and not least <= value <= most:
            valid = f"{least:g} or above" if most == math.inf else f"between {least:g} and {most:g}"
            raise LighttokenError(f"{group}.{key} is {value:g}; it must be {valid}")
    check_seed(config.get("seed", 0))
    if (config.get("codec") or {}).get("name", "none") not in NO_CODEC and not config.get("ratio", 25) > 1:
        raise LighttokenError(f"ratio is {config['ratio']:g}; it must be above 1, for example ratio=25")


def _check_precisions(config: dict[str, Any]) -> None:
    """Precisions that are unknown, that need a library that is not there, or that would round the scores."""
    check_precision(config["backbone_precision"])
    _check_choice("matmul_precision", config["matmul_precision"], MATMUL_PRECISIONS)
    precision = config["trainer"].get("precision")
    if str(precision) in ("16-true", "bf16-true"):
        raise LighttokenError(
            f"trainer.precision={precision} rounds labels and scores too; set trainer.precision=bf16-mixed, and "
            "backbone_precision=bfloat16 for the weights that are stored"
        )


def _check_callbacks(config: dict[str, Any]) -> None:
    """Callbacks that decide by reported scores, or by held-out rows where task.dev_fraction is 0."""
    watched = []
    for callback in (config["callbacks"] or {}).values():
        if isinstance(callback, dict) and "_target_" in callback:
            parameter = parameters(hydra.utils.get_object(callback["_target_"]))[0].get("monitor")
            monitor = callback.get("monitor", getattr(parameter, "default", None))
            watched += [monitor] if isinstance(monitor, str) else []
    if scores := [name for name in watched if not name.startswith(("dev/", "train/"))]:
        raise LighttokenError(
            f"callbacks watch {', '.join(scores)}, which is a reported score and must not decide anything; watch "
            "dev/loss instead, with task.dev_fraction=0.05"
        )
    if not config["task"].get("dev_fraction") and any(name.startswith("dev/") for name in watched):
        raise LighttokenError(
            f"callbacks watch {', '.join(watched)} and task.dev_fraction is 0; set task.dev_fraction=0.05"
        )


def _check_trainer(trainer: dict[str, Any]) -> None:
    """Training without an end, and processes that are started in a way that leaves no result."""
    epochs = trainer.get("max_epochs")
    # Lightning stops after 1,000 epochs if nothing is set, and never if max_time is.
    endless = epochs < 0 if epochs is not None else trainer.get("max_time") is not None
    if endless and trainer.get("max_steps", -1) < 0:
        raise LighttokenError(
            f"trainer.max_epochs={epochs} has no end, and the learning rate falls to 0 at the end; set "
            "trainer.max_epochs=3, or trainer.max_steps"
        )
    strategy = str(trainer.get("strategy", "auto"))
    if strategy.startswith(("ddp_spawn", "ddp_fork", "ddp_notebook")):
        raise LighttokenError(f"trainer.strategy={strategy} leaves the run without its model; set trainer=ddp")


def _check_sharding(config: dict[str, Any]) -> None:
    """A trained part of the embedding, whose learning rate and rounding need all of it, with trainer=fsdp."""
    strategy, trainable = config["trainer"].get("strategy"), (config["finetune"] or {}).get("trainable", "frozen")
    if isinstance(strategy, dict) and strategy["_target_"].endswith("ModelParallelStrategy") and trainable != "frozen":
        raise LighttokenError(
            f"finetune.trainable={trainable} trains a part of the embedding, which trainer=fsdp cannot divide; set "
            "finetune.trainable=frozen or trainer=ddp"
        )


def _check_stored(config: dict[str, Any]) -> None:
    """What needs the original model, which a compressed checkpoint has not; and what would change its body."""
    if changed := [key for key in ("heal", "init_from") if config[key]]:
        raise LighttokenError(f"codec=stored takes the model as it is; leave out {changed[0]}=")
    compared = {"kl_divergence", "top1_agreement"} & (config["task"].get("metrics") or {}).keys()
    if compared:
        raise LighttokenError(
            f"{', '.join(sorted(compared))} compare with the original model, which codec=stored does not have; add "
            + " ".join(f"'~task.metrics.{name}'" for name in sorted(compared))
        )


def _check_healing(config: dict[str, Any]) -> None:
    """A healed backbone that would not be written, and texts that this command has not."""
    texts = config["heal"].get("texts")
    if texts and not config["checkpoint"]:
        raise LighttokenError(f"heal={texts} adapts the backbone, and an artifact is the table; add checkpoint=true")
    if texts == "task":
        raise LighttokenError("heal=task reads the rows of a task, and this command has no task; choose heal=prior")


def _check_goal(config: dict[str, Any]) -> None:
    """Nothing to compress, a quality that cannot be, or a ratio and a quality at once."""
    quality = config["quality"]
    if config["codec"]["name"] in NO_CODEC:
        name = config["codec"]["name"]
        raise LighttokenError(f"codec={name} has nothing to compress; choose another, for example codec=lighttoken")
    if quality is None:
        return
    check_quality(config["measure"], quality)
    if ratio := [entry for entry in HydraConfig.get().overrides.task if entry.startswith("ratio=")]:
        raise LighttokenError(f"{ratio[0]} and quality={quality:g} are two goals; give one of them")


def _check_output(config: dict[str, Any]) -> None:
    """No folder, one that holds something already, and an unknown `tie`."""
    _check_choice("tie", config["tie"], get_args(Tie))
    if not config["output"]:
        raise LighttokenError("output is empty; give a folder, for example output=compressed")
    path = config["model"].get("path")
    if path and Path(path).resolve() == Path(config["output"]).resolve():
        raise LighttokenError(
            f"output={config['output']} is the folder of the original checkpoint, which would be lost; choose another"
        )
    found = {METADATA_FILE: "an artifact", "config.json": "a checkpoint"}
    if config["checkpoint"]:  # whose files have names that users write too, such as README.md
        files = sorted(file.name for file in Path(config["output"]).glob("[!.]*") if file.is_file())
        found |= {file: file for file in files if file not in found}
    for file, content in found.items():
        if Path(config["output"], file).exists() and not config["overwrite"]:
            raise LighttokenError(
                f"output={config['output']} holds {content} already; choose another folder or add overwrite=true"
            )


def check_sources(config: DictConfig) -> None:
    """Raise LighttokenError for a package, a checkpoint or a folder of data that is not there."""
    codec = hydra.utils.instantiate(config.codec)
    if isinstance(codec, MetricCodec):
        resolve_device(codec.device)
    hydra.utils.instantiate(config.model).source()
    hydra.utils.instantiate(config.heal)
    task: Any = config.get("task") or {}
    trains = "_target_" in task and getattr(hydra.utils.get_object(task._target_), "trains", True)
    for key in ("init_from", "distill") if trains else ():
        if (run := config.get(key)) and not Path(run, MODEL_FOLDER).is_dir():
            raise LighttokenError(f"{key}={run} has no {MODEL_FOLDER}/ in it; run that task with save_model=true first")
    file, folder = task.get("file"), task.get("data_dir")
    if file and not Path(file).is_file():
        raise LighttokenError(f"task.file={file} is no file; give one that is there")
    if folder and not Path(folder).is_dir():
        raise LighttokenError(f"task.data_dir={folder} is not a folder; give the one with the rows, train.* among them")


def _check_choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise LighttokenError(f"unknown {key}={value!r}; choose one of {', '.join(choices)}")
