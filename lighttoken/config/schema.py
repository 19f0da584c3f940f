"""The keys and types of the configs, where the configs are, and what Hydra knows of them."""

import netrc
import os
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf

from lighttoken.config.help import explained_values
from lighttoken.errors import LighttokenError

if TYPE_CHECKING:
    from lighttoken.backbone.source import Backbone


@dataclass
class Train:
    """Keys and types of train.yaml. The keys below a group are checked against the class of its `_target_`."""

    model: Any = MISSING
    codec: Any = MISSING
    task: Any = MISSING
    heal: Any = MISSING
    finetune: Any = MISSING
    trainer: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING
    ratio: float = MISSING
    tie: str = MISSING
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
    heal: Any = MISSING
    ratio: float = MISSING
    quality: float | None = None
    measure: str = MISSING
    seed: int = MISSING
    output: str = MISSING
    overwrite: bool = MISSING
    checkpoint: bool = MISSING
    tie: str = MISSING
    progress: bool = MISSING


SCHEMAS: dict[str, type] = {"train": Train, "compress": Compress}


def config_dir() -> str:
    """The folder of the configs: `conf` of the checkout, or the copy inside an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    in_checkout = (package.parent / "pyproject.toml").is_file() and (package.parent / "conf" / "train.yaml").is_file()
    return str(package.parent / "conf" if in_checkout else package / "conf")


def choices(group: str) -> list[str]:
    """The names of the configs of a group."""
    return sorted(path.stem for path in Path(config_dir(), group).glob("*.yaml"))


def load_backbone(source: str) -> "Backbone":
    """The backbone of a checkpoint's folder or of a `model=` name. Raises LighttokenError if it is neither."""
    import hydra

    from lighttoken.backbone.source import Backbone

    names = choices("model")
    if source in names:
        register()
        with hydra.initialize_config_dir(config_dir(), version_base="1.3"):
            return hydra.utils.instantiate(hydra.compose("compress", [f"model={source}"]).model)
    if not Path(source, "config.json").is_file():
        raise LighttokenError(f"{source} is no checkpoint; give the folder of one, or a name: {', '.join(names)}")
    return Backbone(source, path=source)


def register() -> None:
    """Register the schemas and resolvers with Hydra; a second call changes nothing."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)
    resolvers: dict[str, Any] = {
        "wandb_offline": _wandb_is_offline,
        "sweep_name": _sweep_name,
        "by_task": _by_task,
        "choices": lambda *groups: "\n".join(f"{group}: {', '.join(choices(group))}" for group in groups),
        "values": explained_values,
        "config_dir": config_dir,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def _sweep_name() -> str | None:
    """The name of the sweep's folder, in jobs of a sweep."""
    hydra_config = HydraConfig.get()
    sweep = Path(hydra_config.sweep.dir).absolute()
    return sweep.name if Path(hydra_config.runtime.output_dir).parent == sweep else None


def _by_task(default: Any, others: DictConfig, *, _root_: DictConfig) -> Any:
    """A recipe's value for the task of a config: one of `others` by the task's name, or the default."""
    return others.get(_root_.task.name, default)


def _wandb_is_offline() -> bool:
    """Whether W&B has no key to log in with; `WANDB_MODE` in the environment decides if it is set."""
    if "WANDB_MODE" in os.environ:  # Lightning's offline logger sets dryrun, for all later runs of the process
        return os.environ["WANDB_MODE"] in ("offline", "dryrun")
    return not has_wandb_key()


def has_wandb_key() -> bool:
    """Whether W&B has a key to log in with, in the environment or from `wandb login`."""
    host = urllib.parse.urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        saved = netrc.netrc().authenticators(host)
    except (OSError, netrc.NetrcParseError):
        saved = None
    return bool(os.environ.get("WANDB_API_KEY") or saved)
