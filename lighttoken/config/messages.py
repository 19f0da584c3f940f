"""Errors of the user as one line: Hydra and OmegaConf spread theirs over several."""

import difflib
import errno
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lighttoken.config.schema import config_dir
from lighttoken.config.signatures import cure, parameters
from lighttoken.errors import LighttokenError
from lighttoken.run.secrets import masked

CANNOT_WRITE = {
    errno.ENOSPC: "free space there or set another output folder",
    errno.EFBIG: "the file-size limit is reached: raise it with ulimit -f",
    errno.EDQUOT: "free space there or set another output folder",
    errno.EROFS: "it is read-only: set another output folder",
    errno.EACCES: "you have no right to; choose another folder or change its rights",
    errno.EPERM: "you have no right to; choose another folder or change its rights",
    errno.ENOTDIR: "a part of that path is a file: set another output folder",
}


def one_line(error: BaseException, config_name: str) -> str | None:
    """The message of an error that the user can cure, in one line with the cure; None for a defect of this code.

    It has no keys and no passwords.
    """
    line = _line(error, config_name)
    return None if line is None else masked(line)


def _line(error: BaseException, config_name: str) -> str | None:
    if isinstance(error, HydraException) and isinstance(error.__cause__, LighttokenError):
        error = error.__cause__
    if isinstance(error, LighttokenError):
        return str(error)
    if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
        return (
            f"cannot read or write {error.filename or _output_folder()}: {error.strerror}; {CANNOT_WRITE[error.errno]}"
        )
    if isinstance(error, ValueError) and "Config group override" in str(error):
        return "a config group takes a name, not null; logger=none is there for no logger"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _hydra_line(error, config_name)
    return None


def shows_config(words: Sequence[str]) -> bool:
    """Whether a command only shows its config."""
    return any(word in ("-c", "--cfg") or word.startswith("--cfg=") for word in words)


def _output_folder() -> str:
    """Where the command writes, by its arguments: an error of a file that is open already has no name."""
    chosen = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    return chosen.get("output_dir") or chosen.get("output") or "outputs"


def _hydra_line(error: HydraException | OmegaConfBaseException, config_name: str) -> str:
    """The message of an error of Hydra or OmegaConf: in our words where we know it, else its lines joined."""
    if str(error).startswith("Could not override 'experiment'"):
        return "an experiment is added, not overridden: write +experiment=NAME"
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if match := re.match(r"Could not override '([^']+)'", str(error)):
        return _unknown_key(match[1], config_name)
    if match := re.match(r"Ambiguous value for argument '([^']+)'", str(error)):
        way_out = (
            "--cfg shows one job: give one of them" if shows_config(sys.argv) else "add -m to run one after another"
        )
        return f"{match[1]} is a list of values; {way_out}"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        if group.startswith("model/"):
            hub_id = f"{group.removeprefix('model/')}/{name}"
            return f"model={hub_id} is no config; for a checkpoint of the hub write model.hub_id={hub_id}"
        return f"unknown {group} {name!r}; choose one of {', '.join(error.options)}"
    lines = [line.strip() for line in str(error).splitlines()]
    if isinstance(error, HydraException) and isinstance(error.__cause__, OmegaConfBaseException):
        lines += [line.strip() for line in str(error.__cause__).splitlines()]
    text = " ".join(lines)
    if match := re.search(r"Error merging override (\S+)=null.* is not Optional", text):
        return f"{match[1]} is null; it needs a value"
    if match := re.search(r"Value '(.*)' of type '\w+' could not be converted to (\w+).*full_key: (\S+)", text):
        return f"{match[3]} is {match[1]!r}; it must be of type {match[2]}"
    useful = [line for line in lines if line and not line.startswith(("object_type", "reference_type"))]
    return "; ".join(dict.fromkeys(useful))


def _unreadable(override: str) -> str:
    """The message for an override with characters that are Hydra's syntax."""
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override!r} is no override; write KEY=VALUE"
    if value.startswith("~/"):  # a shell leaves it as it is after an equals sign
        return f'{key} is {value}; write $HOME instead of ~, in double quotes: {key}="$HOME{value[1:]}"'
    value = value.replace('"', "")
    return f"{key} is {value}; Hydra reads = ( ) [ ] {{ }} , : ~ as syntax: quote the value twice: '{key}=\"{value}\"'"


def _unknown_key(path: str, config_name: str) -> str:
    """The message for an override of an unknown key: it names the closest key of the same group."""
    chosen = {entry.lstrip("+").partition("=")[0]: entry for entry in sys.argv[1:]}
    groups = [entry for key, entry in chosen.items() if key != path and Path(config_dir(), key).is_dir()]
    with hydra.initialize_config_dir(config_dir(), version_base="1.3"):
        try:
            config = hydra.compose(config_name, groups)
        except HydraException:  # a sweep over a group
            config = hydra.compose(config_name)
    group, _, key = path.rpartition("/")
    if group and Path(config_dir(), path).is_dir():  # a group that only some choices of the group above have
        return f"{group}={config[group].name} has no {key}; leave out {path}"
    group, _, key = path.rpartition(".")
    node = OmegaConf.select(config, group) if group else config
    if not isinstance(node, DictConfig):
        known = [name for name in _paths(OmegaConf.to_container(config)) if not name.endswith("_")]
        close = difflib.get_close_matches(path, known, n=1)
        return f"unknown key {path}; " + (f"did you mean {close[0]}?" if close else "--cfg job shows them all")
    # A slip of a finger is answered at once; the classes of the config take seconds to import.
    names = list(map(str, node))
    slip = difflib.get_close_matches(key, names, n=1, cutoff=0.85) or sorted(key) in map(sorted, names)
    if not slip and "_target_" in node and key in parameters(hydra.utils.get_object(node["_target_"]))[0]:
        return f"{path} is not set so far and is added, not overridden: write +{path}=VALUE"
    return f"unknown key {path}; {cure(f'{group}.' if group else '', key, {str(name) for name in node})}"


def _paths(node: Any, path: str = "") -> list[str]:
    """Dotted paths of all keys of nested dicts."""
    if not isinstance(node, dict):
        return []
    paths = [f"{path}.{key}" if path else str(key) for key in node]
    return paths + [nested for key, inner in zip(paths, node.values(), strict=True) for nested in _paths(inner, key)]
