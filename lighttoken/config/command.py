"""The configs: where they are, what their keys and types may be, and one clear line when something is wrong."""

import contextlib
import difflib
import errno
import functools
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lighttoken.config.check import _cure, _parameters, check
from lighttoken.config.schema import config_dir, register
from lighttoken.errors import LighttokenError
from lighttoken.run.sweep import run_here

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


def _paths(node: Any, path: str = "") -> list[str]:
    """Dotted paths of all keys of nested dicts."""
    if not isinstance(node, dict):
        return []
    paths = [f"{path}.{key}" if path else str(key) for key in node]
    return paths + [below for key, inner in zip(paths, node.values(), strict=True) for below in _paths(inner, key)]
