"""The configs: where they are, what their keys and types may be, and one clear line when something is wrong."""

import contextlib
import difflib
import errno
import functools
import inspect
import logging
import netrc
import os
import re
import signal
import sys
import types
import typing
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lighttoken.errors import LighttokenError
from lighttoken.sweep import run_here

log = logging.getLogger(__name__)

CANNOT_WRITE = {
    errno.ENOSPC: "free space there or set another output folder",
    errno.EFBIG: "the file-size limit is reached: raise it with ulimit -f",
    errno.EDQUOT: "free space there or set another output folder",
    errno.EROFS: "it is read-only: set another output folder",
    errno.EACCES: "you have no right to; choose another folder or change its rights",
    errno.EPERM: "you have no right to; choose another folder or change its rights",
    errno.ENOTDIR: "a part of that path is a file: set another output folder",
}
SPECIAL_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_"}


@dataclass
class Train:
    """Keys and types of train.yaml; what stands below a group is checked against the class its `_target_` names."""

    model: Any = MISSING
    codec: Any = MISSING
    schedule: Any = MISSING
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
    schedule: Any = MISSING
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
    package = Path(__file__).resolve().parent
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


def door(config_name: str, run: Callable[[DictConfig], Any]) -> None:
    """Run a command: compose its config, check it, call `run`. What the user can cure is one line and exit code 2.

    With HYDRA_FULL_ERROR=1 in the environment every error comes with its traceback.
    """
    register()
    show_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # keeps Hydra from printing errors its own way, in several lines

    @contextlib.contextmanager
    def one_line_errors() -> Iterator[None]:
        try:
            yield
        except SystemExit as error:
            if type(error).__name__ == "SIGTERMException":  # Lightning's, which has no exit code
                sys.exit(128 + signal.SIGTERM)
            raise
        except Exception as error:
            message = one_line(error, config_name)
            if show_traceback or message is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            sys.exit(2)

    def checked(config: DictConfig) -> Any:
        check(config)
        told = [each for each in HydraConfig.get().overrides.task if re.match(r"\+*schedule\b", each)]
        if told and "${schedule" not in OmegaConf.to_yaml(config.codec):
            log.warning("%s changes nothing with codec=%s", " ".join(told), config.codec.name)
        return run(config)

    @functools.wraps(run)
    @one_line_errors()
    def job(config: DictConfig) -> Any:
        if HydraConfig.get().mode == RunMode.MULTIRUN and "skip_done" in config:
            return run_here(config, checked, lambda error: one_line(error, config_name))
        return checked(config)

    with one_line_errors():
        hydra.main(version_base="1.3", config_path=config_dir(), config_name=config_name)(job)()


def one_line(error: BaseException, config_name: str) -> str | None:
    """What the user can cure, as one line (Hydra and OmegaConf spread theirs over several); None for a defect."""
    if isinstance(error, HydraException) and isinstance(error.__cause__, LighttokenError):
        error = error.__cause__
    if isinstance(error, LighttokenError):
        return str(error)
    if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
        return f"cannot read or write {error.filename or 'the output'}: {error.strerror}; {CANNOT_WRITE[error.errno]}"
    if isinstance(error, ValueError) and "Config group override" in str(error):
        return "a config group takes a name, not null; logger=none is there for no logger"
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return None
    if str(error).startswith("Could not override 'experiment'"):
        return "an experiment is added, not overridden: write +experiment=NAME"
    if match := re.match(r"Could not override '([^']+)'", str(error)):
        return _unknown_key(match[1], config_name)
    if match := re.match(r"Ambiguous value for argument '([^']+)'", str(error)):
        return f"{match[1]} is a list of values; add -m to run one after another"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, wrong = (error.missing_cfg_file or "").rpartition("/")
        return f"unknown {group} {wrong!r}; choose one of {', '.join(error.options)}"
    lines = [line.strip() for line in str(error).splitlines()]
    if isinstance(error, HydraException) and isinstance(error.__cause__, OmegaConfBaseException):
        lines += [line.strip() for line in str(error.__cause__).splitlines()]
    text = " ".join(lines)
    if match := re.search(r"Error merging override (\S+)=null.* is not Optional", text):
        return f"{match[1]} is null; it needs a value"
    if match := re.search(r"Value '(.*)' of type '\w+' could not be converted to (\w+).*full_key: (\S+)", text):
        return f"{match[3]} is {match[1]!r}; it must be of type {match[2]}"
    kept = [line for line in lines if line and not line.startswith(("object_type", "reference_type"))]
    return "; ".join(dict.fromkeys(kept))


def _unknown_key(path: str, config_name: str) -> str:
    """What is said of an override of a key that is not there: the key that was probably meant, in the same group."""
    groups = [each for each in sys.argv[1:] if (Path(config_dir()) / each.lstrip("+").partition("=")[0]).is_dir()]
    with hydra.initialize_config_dir(config_dir(), version_base="1.3"):
        try:
            config = hydra.compose(config_name, groups)
        except HydraException:  # a sweep over a group
            config = hydra.compose(config_name)
    group, _, key = path.rpartition(".")
    node = OmegaConf.select(config, group) if group else config
    if not isinstance(node, DictConfig):
        known = [each for each in _paths(OmegaConf.to_container(config)) if not each.endswith("_")]
        close = difflib.get_close_matches(path, known, n=1)
        return f"unknown key {path}; " + (f"did you mean {close[0]}?" if close else "--cfg job shows them all")
    if "_target_" in node and key in _parameters(hydra.utils.get_object(node["_target_"]))[0]:
        return f"{path} is not set so far and is added, not overridden: write +{path}=VALUE"
    return f"unknown key {path}; {_cure(f'{group}.' if group else '', key, {str(each) for each in node})}"


def check(config: DictConfig) -> None:
    """Raise LighttokenError for missing values, and for keys and types that the classes behind the config refuse."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise LighttokenError(f"missing {', '.join(missing)}; add {missing[0]}=VALUE to the command")
    if "seed" in config and not 0 <= config.seed < 2**32:
        raise LighttokenError(f"seed is {config.seed}; it must be 0 or above, and below 2^32")
    compresses = "codec" in config and config.codec.get("name") != "none"
    if compresses and "ratio" in config and not config.ratio > 1:
        raise LighttokenError(f"ratio is {config.ratio:g}; it must be above 1, for example ratio=25")
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    schema = OmegaConf.get_type(config)
    if schema in (Train, Compress):
        _check_keys("", set(map(str, container)), set(typing.get_type_hints(schema)))
    _check_node("", container)


def _paths(node: Any, path: str = "") -> list[str]:
    """Dotted paths of all keys of nested dicts."""
    if not isinstance(node, dict):
        return []
    paths = [f"{path}.{key}" if path else str(key) for key in node]
    return paths + [below for key, inner in zip(paths, node.values(), strict=True) for below in _paths(inner, key)]


def _check_node(path: str, node: Any) -> None:
    if isinstance(node, list):
        for index, entry in enumerate(node):
            _check_node(f"{path}[{index}]", entry)
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        _check_target(path, node)
    for key, entry in node.items():
        _check_node(f"{path}.{key}" if path else str(key), entry)


def _check_target(path: str, node: dict) -> None:
    try:
        target = hydra.utils.get_object(node["_target_"])
    except Exception as error:  # what an import of someone's module may raise is open
        raise LighttokenError(f"{path}._target_={node['_target_']} cannot be imported; check its spelling") from error
    parameters, hints = _parameters(target)
    keys = set(node) - SPECIAL_KEYS
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        _check_keys(path, keys, set(parameters))
    for key in keys & set(hints):
        value = node[key]
        if not (isinstance(value, dict) and "_target_" in value) and not _fits(value, hints[key]):
            raise LighttokenError(f"{path}.{key} is {value!r}; it must be {_in_words(hints[key])}")


def _parameters(target: Any) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """Parameters of a class or function; where a class passes **kwargs on, those of the class above it too."""
    parameters: dict[str, inspect.Parameter] = {}
    hints: dict[str, Any] = {}
    classes = inspect.getmro(target) if inspect.isclass(target) else ()
    for owner in [entry for entry in classes if "__init__" in vars(entry)] or [target]:
        function = owner.__init__ if inspect.isclass(owner) else owner
        own = dict(inspect.signature(function).parameters)
        own.pop("self", None)
        # A library's annotation may be for type checkers alone; its values then go unchecked here.
        with contextlib.suppress(NameError, TypeError):
            hints = typing.get_type_hints(function) | hints
        passes_on = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own.values())
        ours = getattr(owner, "__module__", "").startswith("lighttoken")
        parameters |= {name: p for name, p in own.items() if not (ours and p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL))}
        if not (passes_on and ours):
            break
    return parameters, hints


def _check_keys(path: str, keys: set[str], known: set[str]) -> None:
    for key in sorted(keys - known):
        prefix = f"{path}." if path else ""
        raise LighttokenError(f"unknown key {prefix}{key}; {_cure(prefix, key, known)}")


def _cure(prefix: str, key: str, known: set[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    listed = ", ".join(sorted(each for each in known if not each.startswith("_")))
    return f"did you mean {prefix}{close[0]}?" if close else f"known: {listed}"


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of an annotated type; types that are not plain are taken on trust."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint in (int, str, bool):
        return type(value) is hint
    if hint is types.NoneType:
        return value is None
    return value is not None or hint is Any


def _in_words(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_in_words, typing.get_args(hint))))
    if hint is types.NoneType:
        return "null"
    return f"of type {hint.__name__ if isinstance(hint, type) else hint}"


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
