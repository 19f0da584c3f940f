"""Checks of a config against the classes that it names."""

import contextlib
import difflib
import inspect
import types
import typing
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from lighttoken.config.schema import Compress, Train
from lighttoken.errors import LighttokenError

SPECIAL_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_"}


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
