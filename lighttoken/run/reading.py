"""Reading records of other runs. What the rest of the code uses of a record is checked here, and nowhere else.

A record is a file that anybody can have written. One that is odd is left out and named; it never stops its reader.
"""

import json
import logging
import math
import os
import re
import stat
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from lighttoken.errors import LighttokenError
from lighttoken.run.process import is_gone

log = logging.getLogger(__name__)

RECORD_FILE = "record.json"
MAX_BYTES = 50_000_000  # of a file; a run writes some 15 kB
MAX_VALUES = 20_000
MAX_DEPTH = 30
MAX_TEXT, MAX_NAME = 1000, 200  # characters; longer text is cut
LARGEST = 1e30  # of a number that is drawn
# Control characters but line feed and tab, halves of surrogate pairs, characters that turn the direction of writing
# round, and what XML forbids.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
Rule = Callable[[str, Any], Any]  # (name, value) -> the value to use; raises LighttokenError


def read_records(root: Path, left_out: dict[Path, str] | None = None) -> list[dict[str, Any]]:
    """All records under a folder, as `read_record` returns them.

    An odd one is left out: a warning names the file and the reason, once in a process, and so does `left_out`.
    """
    records = []
    # Unlike Path.rglob, os.walk goes on when another process removes a folder meanwhile.
    for path in sorted(Path(folder, RECORD_FILE) for folder, _, files in os.walk(root) if RECORD_FILE in files):
        try:
            records.append(read_record(path))
        except FileNotFoundError:  # its folder was just removed
            continue
        except Exception as error:  # whatever is wrong with a file of others, the reader goes on
            leave_out(path, error, left_out)
    return records


def leave_out(path: Path, error: Exception, left_out: dict[Path, str] | None = None) -> None:
    """Name a file that is left out and the reason, in a line of the log and in `left_out`."""
    reason = reason_of(error)
    path = path.parent.resolve() / path.name  # the same for folders that overlap
    _warn_once(path_text(path), reason)
    if left_out is not None:
        left_out[path] = reason


def reason_of(error: Exception, limit: int = MAX_NAME) -> str:
    """An error in one line of `limit` characters at most."""
    text = str(error) if isinstance(error, LighttokenError) else f"{type(error).__name__}: {error}"
    return plain_text(" ".join(text.split()), limit)


@lru_cache(maxsize=10_000)
def _warn_once(path: str, reason: str) -> None:
    log.warning("left out %s: %s", path, reason)


def read_record(path: Path) -> dict[str, Any]:
    """A record, checked, with defaults for what records of earlier versions lack, and with its `directory`.

    Text is cut, and has no character that a page or a terminal could take for a command. The status of a run whose
    process is gone is `lost`. Raises LighttokenError, in one line, if the record is odd, and OSError.
    """
    record = _read(path)
    if record["status"] == "running" and is_gone(record["process"]):
        record = _read(path)  # the run may have ended after the first look
        if record["status"] == "running":
            ended = f"process {record['process']['pid']} is gone and has not said why; it was killed, or the host was"
            record |= {"status": "lost", "error": ended}
    return record


def read_json(path: Path) -> Any:
    """The JSON value in a file. Raises LighttokenError, in one line, if there is none, and OSError."""
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):  # a pipe would keep its reader waiting
        raise LighttokenError("it is no regular file")
    if info.st_size > MAX_BYTES:
        raise LighttokenError(f"it has {info.st_size:,} bytes; expected {MAX_BYTES:,} at most")
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise LighttokenError(f"it is nested more than {MAX_DEPTH} deep") from error
    except ValueError as error:
        raise LighttokenError(f"it is no JSON: {error}") from error


def plain_text(text: str, limit: int = MAX_TEXT) -> str:
    """Text of others, fit for a page, a picture and a terminal: cut to `limit` characters, without commands to them."""
    if len(text) <= limit and text.isprintable():  # most text: nothing to replace
        return text
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def path_text(path: Path | str) -> str:
    """A path as text that can be printed; two paths have different texts."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], os.fsdecode(path))


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise LighttokenError(f"it is a {type(content).__name__}, not the record of a run")
    if missing := sorted(REQUIRED - content.keys()):
        raise LighttokenError(f"it lacks {', '.join(missing)}")
    record = DEFAULTS | _clean(content, [MAX_VALUES])
    return record | {name: rule(name, record[name]) for name, rule in RULES.items()} | {"directory": str(path.parent)}


def _clean(node: Any, budget: list[int], depth: int = 1) -> Any:
    """A JSON value with all its text plain. `budget`: how many values it may still have."""
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        limit = f"nested more than {MAX_DEPTH} deep" if depth > MAX_DEPTH else f"of more than {MAX_VALUES:,} values"
        raise LighttokenError(f"it is {limit}")
    kind = type(node)  # JSON has no subclasses
    if kind is str:
        return plain_text(node)
    if kind is list:
        if {*map(type, node)} <= {int, float} and depth < MAX_DEPTH and len(node) <= budget[0]:  # nothing to clean
            budget[0] -= len(node)
            return node
        return [_clean(value, budget, depth + 1) for value in node]
    if kind is dict:
        return {_one_line(key[: 2 * MAX_NAME]): _clean(value, budget, depth + 1) for key, value in node.items()}
    return node


@lru_cache(maxsize=10_000)  # thousands of records have the same keys
def _one_line(text: str) -> str:
    return plain_text(" ".join(text.split()), MAX_NAME)


def _require(valid: bool, name: str, value: Any, expected: str) -> None:
    if not valid:
        raise LighttokenError(f"{name} is {plain_text(repr(value), 60)}; expected {expected}")


# ---- rules


def _number(low: float, high: float, kinds: tuple[type, ...] = (int, float)) -> Rule:
    def rule(name: str, value: Any) -> Any:
        # NaN lies in no range. To Python, True is an int.
        valid = type(value) in kinds and low <= value <= high
        _require(valid, name, value, f"{'a number' if float in kinds else 'an integer'} from {low:g} to {high:g}")
        return value

    return rule


def _score(name: str, value: Any) -> float:
    """A number, or NaN or infinity, as a run that has diverged writes them."""
    if isinstance(value, float) and not math.isfinite(value):
        return value
    return float(_number(-LARGEST, LARGEST)(name, value))


def _text(name: str, value: Any) -> str:
    _require(isinstance(value, str), name, value, "text")
    return value


def _name(name: str, value: Any) -> str:
    value = _one_line(_text(name, value)[: 2 * MAX_NAME])
    _require(bool(value), name, value, "a name")
    return value


def _status(name: str, value: Any) -> str:
    _require(value in ("running", "done", "failed"), name, value, "running, done or failed")
    return value


def _optional(rule: Rule) -> Rule:
    return lambda name, value: None if value is None else rule(name, value)


def _mapping(name: str, value: Any) -> dict[str, Any]:
    _require(isinstance(value, dict), name, value, "a mapping")
    return value


def _each(rule: Rule) -> Rule:
    return lambda name, value: {key: rule(f"{name}.{key}", entry) for key, entry in _mapping(name, value).items()}


def _parts(**rules: Rule) -> Rule:
    """A mapping whose parts of these names, where it has them, follow these rules."""

    def rule(name: str, value: Any) -> dict[str, Any]:
        known = {key: part for key, part in rules.items() if key in _mapping(name, value)}
        return value | {key: part(f"{name}.{key}", value[key]) for key, part in known.items()}

    return rule


def _numbers(name: str, value: Any) -> list[float]:
    _require(isinstance(value, list), name, value, "a list of numbers")
    if {*map(type, value)} <= {int, float} and all(0 <= entry <= LARGEST for entry in value):
        return [*map(float, value)]
    return [float(_number(0, LARGEST)(f"{name}[{i}]", entry)) for i, entry in enumerate(value)]


def _tenths(name: str, value: Any) -> list[float]:
    _require(isinstance(value, list) and len(value) == 10, name, value, "ten numbers")
    return _numbers(name, value)


def _curve(x: str, y: str) -> Rule:
    def rule(name: str, value: Any) -> dict[str, list[float]]:
        curve = {key: _numbers(f"{name}.{key}", _mapping(name, value).get(key)) for key in (x, y)}
        _require(len(curve[x]) == len(curve[y]), name, value, f"as many of {x} as of {y}")
        return curve

    return rule


def _table(name: str, value: Any) -> dict[str, Any]:
    if not _mapping(name, value):
        return value
    table = _parts(singular_values=_curve("index", "value"), gaussian_bound=_curve("ratio", "nmse"))(name, value)
    values = table.get("singular_values", {}).get("value")
    _require(bool(values and values[0] > 0), f"{name}.singular_values", values, "numbers, the first above 0")
    return table


def _config(name: str, value: Any) -> dict[str, Any]:
    config = _parts(codec=_mapping, finetune=_optional(_mapping))(name, value)
    _require("codec" in config, f"{name}.codec", None, "a mapping")
    return config


_SIZE, _RATIO = _optional(_number(0, 1e18, (int,))), _optional(_number(1e-6, 1e9))
RULES: dict[str, Rule] = {
    "status": _status,
    "config": _config,
    "metrics": _each(_score),
    "constant": _each(_score),
    "started": _text,
    **dict.fromkeys(("codec", "task", "model"), _name),
    **dict.fromkeys(("error", "command", "artifact", "git_commit"), _optional(_text)),
    "seed": _number(-(2**63), 2**64, (int,)),
    **dict.fromkeys(("ratio", "ratio_asked"), _RATIO),
    **dict.fromkeys(("table_bytes", "artifact_bytes", "model_bytes", "stored_bytes"), _SIZE),
    **dict.fromkeys(("peak_memory_bytes", "peak_gpu_memory_bytes"), _SIZE),
    "table": _table,
    "compression": _parts(
        nmse=_number(0, LARGEST),
        weighted_nmse=_number(0, LARGEST),
        nmse_by_frequency_tenth=_optional(_tenths),
        bytes_by_part=_optional(_each(_number(0, 1e18, (int,)))),
    ),
    "healing": _parts(texts=_text, steps=_number(0, LARGEST), cosine_before=_number(-1, 1), cosine=_number(-1, 1)),
    "seconds": _each(_number(0, 1e12)),
    "hardware": _parts(accelerator=_optional(_text)),
    "versions": _mapping,
    "process": _parts(pid=_number(1, 2**31, (int,))),
}
REQUIRED = {"status", "codec", "config", "metrics", "started"}
# What records of earlier versions lack.
DEFAULTS: dict[str, Any] = {
    **{"task": "?", "model": "?", "seed": 0},
    **{
        name: {}
        for name in ("constant", "table", "healing", "compression", "seconds", "hardware", "versions", "process")
    },
    **{name: None for name in RULES if "bytes" in name or "ratio" in name},
    **dict.fromkeys(("error", "command", "artifact", "git_commit")),
}
