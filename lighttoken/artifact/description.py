"""The description of a compressed table, plain JSON values: in an artifact's JSON and in a checkpoint's config."""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lighttoken.errors import LighttokenError

FORMAT_VERSION = 7
MAX_JSON = 3_000_000  # bytes; in memory, a JSON can be 30 times as large
MAX_ROWS = 2**22  # four times the largest vocabulary in use; what a form's index needs stays below 100 MB
_TYPES = {"codec": str, "form": dict, "source_sha256": str, "settings": dict, "summary": dict, "versions": dict}
# What reading damaged files raises. RuntimeError: torch, and JSON that is nested too deep.
_DAMAGES = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, SafetensorError)


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Inside, whatever a damaged file raises becomes a LighttokenError of one line that says what is damaged."""
    try:
        yield
    except LighttokenError:
        raise
    except OSError as error:
        raise LighttokenError(f"cannot read {error.filename}: {error.strerror}; check who may read it") from error
    except _DAMAGES as error:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise LighttokenError(f"{what} ({kind}{shorten(str(error), 120)}); make it again") from error


def shorten(text: str, length: int = 40) -> str:
    """A text in one line of at most so many characters."""
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises OSError, or ValueError or RecursionError if there is no such object."""
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"it has {path.stat().st_size} bytes instead of at most {MAX_JSON}")
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError(f"it holds {_seen(content)} instead of an object")
    return content


def check_version(where: str, version: Any) -> None:
    """Raise LighttokenError if this code does not read the format version of what is stored at `where`.

    Raises ValueError for what is no version.
    """
    if type(version) is not int:
        raise ValueError(f"format_version is {_seen(version)} instead of an integer")
    if not 4 <= version <= FORMAT_VERSION:
        cure = "update lighttoken" if version > FORMAT_VERSION else "compress the table again"
        raise LighttokenError(
            f"{where} has format version {shorten(str(version))}, this lighttoken reads 4 to {FORMAT_VERSION}; {cure}"
        )


def check_description(where: str, description: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """A description as format 5 has it; `tensors` are the names of the stored tensors, from which format 4 tells forms.

    Raises LighttokenError for another format version, ValueError or RecursionError if a value is missing or cannot be.
    """
    check_version(where, description.get("format_version"))
    _check_values("it", dict(description))
    checked = _upgrade(description, tensors)
    for name, kind in _TYPES.items():
        _check_type(name, checked.get(name), kind)
    _check_shape(checked.get("shape"))
    for name, version in checked["versions"].items():
        _check_type(f"version of {shorten(name)}", version, str)
    _check_type("importance", checked["settings"].get("importance", {}), dict)
    _check_summary(checked["summary"])
    return checked


def _check_values(name: str, value: Any) -> None:
    """Raise ValueError for numbers and texts that Python reads from JSON and that no description has."""
    if isinstance(value, dict):
        _check_values(name, list(value))
        for key, inner in value.items():
            _check_values(key, inner)
    elif isinstance(value, list):
        for inner in value:
            _check_values(name, inner)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{shorten(name)} has {value} instead of a finite number")
    elif isinstance(value, int) and abs(value) >= 2**64:  # the largest seed
        raise ValueError(f"{shorten(name)} has {_seen(value)} instead of a number of 64 bits")
    elif isinstance(value, str) and not value.isascii():
        value.encode()  # UnicodeEncodeError, a ValueError, for half a character, which nothing can print


def _upgrade(description: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """Format 4 did not name the form."""
    upgraded = dict(description)
    if upgraded["format_version"] == 4:
        state_bits = upgraded.get("state_bits")
        _check_type("state_bits", state_bits, int)
        if "shape" not in upgraded:  # checkpoints had it
            upgraded["shape"] = [upgraded.get("vocab_size"), upgraded.get("dim")]
        forms = {"codebooks": "codebooks", "levels": "levels", "core1": "cores"}
        name = next((form for tensor, form in forms.items() if tensor in tensors), "bits")
        upgraded["form"] = {"name": "trellis", "state_bits": state_bits} if state_bits else {"name": name}
    return upgraded


def _check_type(name: str, value: Any, *kinds: type) -> None:
    if type(value) not in kinds:  # not isinstance: True is no number
        raise ValueError(f"{name} is {_seen(value)} instead of {' or '.join(kind.__name__ for kind in kinds)}")


def _check_shape(shape: Any) -> None:
    valid = type(shape) is list and len(shape) == 2 and all(type(n) is int and 1 <= n <= MAX_ROWS for n in shape)
    if not valid:
        raise ValueError(f"shape is {_seen(shape)} instead of rows and columns, each from 1 to {MAX_ROWS}")


def _check_summary(summary: Mapping[str, Any]) -> None:
    """What the commands read of a summary."""
    for name in {"nmse", "cosine"} & summary.keys():
        _check_type(name, summary[name], int, float)
    tiers = [summary.get(name, []) for name in ("tier_rows", "tier_bits")]
    valid = all(type(numbers) is list and all(type(n) is int for n in numbers) for numbers in tiers)
    if not valid or len(tiers[0]) != len(tiers[1]):
        raise ValueError(f"tier_rows and tier_bits are {_seen(tiers)} instead of two lists of as many integers")


def _seen(value: Any) -> str:
    return shorten(repr(value))
