"""Parameters and types of the classes that a config names in `_target_`, and checks of keys and values against them."""

import contextlib
import difflib
import inspect
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra

from lighttoken.config.schema import config_dir
from lighttoken.errors import LighttokenError

SPECIAL_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_"}


def check_node(path: str, node: Any) -> None:
    """Raise LighttokenError for a key or a type that a class refuses, in a config and all that is nested in it."""
    if isinstance(node, list):
        for index, entry in enumerate(node):
            check_node(f"{path}[{index}]", entry)
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        _check_target(path, node)
    for key, entry in node.items():
        check_node(f"{path}.{key}" if path else str(key), entry)


def _check_target(path: str, node: dict) -> None:
    try:
        target = hydra.utils.get_object(node["_target_"])
    except Exception as error:  # the import of a user's module may raise anything
        raise LighttokenError(f"{path}._target_={node['_target_']} cannot be imported; check its spelling") from error
    known, hints = parameters(target)
    keys = set(node) - SPECIAL_KEYS
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        check_keys(path, keys, set(known))
    for key in sorted(keys):
        value, group = node[key], f"{path}.{key}".replace(".", "/")
        if isinstance(value, str) and Path(config_dir(), group).is_dir():
            raise LighttokenError(f"{path}.{key}={value} names a config of a group: write {group}={value}")
        if key not in hints:
            continue
        if not (isinstance(value, dict) and "_target_" in value) and not _fits(value, hints[key]):
            raise LighttokenError(f"{path}.{key} is {value!r}; it must be {_in_words(hints[key])}")


def check_keys(path: str, keys: set[str], known: set[str]) -> None:
    """Raise LighttokenError for a key that is not known."""
    for key in sorted(keys - known):
        prefix = f"{path}." if path else ""
        raise LighttokenError(f"unknown key {prefix}{key}; {cure(prefix, key, known)}")


def cure(prefix: str, key: str, known: set[str]) -> str:
    """The known key that is closest to an unknown one, or all known keys."""
    close = difflib.get_close_matches(key, known, n=1)
    names = ", ".join(sorted(name for name in known if not name.startswith("_")))
    if not names:  # heal=none, for one
        return f"it has no settings as it is; choose one that has, by {prefix.removesuffix('.')}=NAME"
    return f"did you mean {prefix}{close[0]}?" if close else f"known: {names}"


def parameters(target: Any) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """Parameters and type hints of a class or function.

    Where one of our classes passes **kwargs on, those of the class above it too.
    """
    known: dict[str, inspect.Parameter] = {}
    hints: dict[str, Any] = {}
    classes = inspect.getmro(target) if inspect.isclass(target) else ()
    for owner in [entry for entry in classes if "__init__" in vars(entry)] or [target]:
        function = owner.__init__ if inspect.isclass(owner) else owner
        signature = dict(inspect.signature(function).parameters)
        signature.pop("self", None)
        # A library's annotation may be for type checkers alone; its values are then not checked here.
        with contextlib.suppress(NameError, TypeError):
            hints = typing.get_type_hints(function) | hints
        passes_on = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.values())
        ours = getattr(owner, "__module__", "").startswith("lighttoken")
        variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL) if ours else ()
        known |= {name: parameter for name, parameter in signature.items() if parameter.kind not in variable}
        if not (passes_on and ours):
            break
    return known, hints


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of an annotated type; every value fits a type that is not plain."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin in (list, Sequence):
        return isinstance(value, list)
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
    if typing.get_origin(hint) in (list, Sequence):
        return "a list in brackets"
    if hint is types.NoneType:
        return "null"
    return f"of type {hint.__name__ if isinstance(hint, type) else hint}"
