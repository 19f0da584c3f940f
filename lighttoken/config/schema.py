"""Keys and types of the configs, where they are, and what Hydra is told of them."""

import netrc
import os
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf


@dataclass
class Train:
    """Keys and types of train.yaml; what stands below a group is checked against the class its `_target_` names."""

    model: Any = MISSING
    codec: Any = MISSING
    task: Any = MISSING
    finetune: Any = MISSING
    trainer: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING
    ratio: float = MISSING
    backbone_precision: str = MISSING
    matmul_precision: str = MISSING
    limit_rows: int | None = None
    predict: bool = MISSING
    resume: bool = MISSING
    skip_done: bool = MISSING
    init_from: str | None = None
    distill: str | None = None
    save_model: bool = MISSING
    seed: int = MISSING
    output_dir: str = MISSING
    progress: bool = MISSING


@dataclass
class Compress:
    """Keys and types of compress.yaml."""

    model: Any = MISSING
    codec: Any = MISSING
    ratio: float = MISSING
    quality: float | None = None
    measure: str = MISSING
    seed: int = MISSING
    output: str = MISSING
    overwrite: bool = MISSING
    checkpoint: bool = MISSING
    tie: str = MISSING
    progress: bool = MISSING


def config_dir() -> str:
    """The folder of the configs: `conf` of the checkout, or the copy inside an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    in_checkout = (package.parent / "pyproject.toml").is_file() and (package.parent / "conf" / "train.yaml").is_file()
    return str(package.parent / "conf" if in_checkout else package / "conf")


def register() -> None:
    """Make the schemas and resolvers known to Hydra; repeating it changes nothing."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=Train)
    store.store(name="compress_schema", node=Compress)
    OmegaConf.register_new_resolver("wandb_offline", _wandb_is_offline, replace=True)
    OmegaConf.register_new_resolver("sweep_name", _sweep_name, replace=True)
    OmegaConf.register_new_resolver("by_task", _by_task, replace=True)
    OmegaConf.register_new_resolver("choices", _choices, replace=True)
    OmegaConf.register_new_resolver("config_dir", config_dir, replace=True)


def _choices(*groups: str) -> str:
    """What there is to choose from in groups of configs, a line for each."""
    found = {group: sorted(path.stem for path in Path(config_dir(), group).glob("*.yaml")) for group in groups}
    return "\n".join(f"{group}: {', '.join(names)}" for group, names in found.items())


def _sweep_name() -> str | None:
    """The name of the sweep's folder, in jobs of a sweep."""
    hydra_config = HydraConfig.get()
    sweep = Path(hydra_config.sweep.dir).absolute()
    return sweep.name if Path(hydra_config.runtime.output_dir).parent == sweep else None


def _by_task(default: Any, others: DictConfig, *, _root_: DictConfig) -> Any:
    """A recipe's value for the task of a config: one of `others` by the task's name, or the default."""
    return others.get(_root_.task.name, default)


def _wandb_is_offline() -> bool:
    """Whether there is no key to log in to W&B with; `WANDB_MODE` in the environment decides where it is set."""
    if "WANDB_MODE" in os.environ:  # Lightning's offline logger sets dryrun, for all later runs of the process
        return os.environ["WANDB_MODE"] in ("offline", "dryrun")
    return not has_wandb_key()


def has_wandb_key() -> bool:
    """Whether W&B finds a key to log in with, in the environment or as `wandb login` left it."""
    host = urllib.parse.urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        saved = netrc.netrc().authenticators(host)
    except (OSError, netrc.NetrcParseError):
        saved = None
    return bool(os.environ.get("WANDB_API_KEY") or saved)
