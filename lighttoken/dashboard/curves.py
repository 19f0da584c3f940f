"""The curves of a run, from its metrics.csv."""

import csv
import stat
import sys
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from lighttoken.run.reading import LARGEST, MAX_NAME, plain_text

CURVES_FILE = "metrics.csv"
MAX_CURVE_BYTES = 200_000_000  # of a metrics.csv
MAX_CURVES = 300  # of a run
CURVE_POINTS = 60  # of a curve at most, so that hundreds of runs fit into a page
Curves = dict[str, list[tuple[float, float]]]  # name -> (step, value)


def read_curves(directory: Path) -> Curves:
    """The thinned curves of a run folder; none if its file cannot be read."""
    path = directory / CURVES_FILE
    try:
        info = path.stat()
        # A pipe would keep its reader waiting.
        is_readable = stat.S_ISREG(info.st_mode) and info.st_size <= MAX_CURVE_BYTES
        return _parse_curves(path, info.st_mtime_ns) if is_readable else {}
    except (OSError, csv.Error, UnicodeDecodeError):
        return {}


@lru_cache(maxsize=10_000)
def _parse_curves(path: Path, changed: int) -> Curves:
    """The thinned curves of a CSV file. `changed` is its time of change: a changed file is not taken from the cache."""
    curves: Curves = defaultdict(list)
    with path.open(newline="") as file:
        rows = csv.reader(file)
        columns = {name: index for index, name in enumerate(next(rows, []))}
        step_at = columns.pop("step", sys.maxsize)
        kept = [(i, name) for name, i in columns.items() if name not in ("", "epoch") and name[:6] != "table/"]
        for row in rows:
            step = _number(row[step_at]) if step_at < len(row) else None
            if step is None:
                continue
            for index, name in kept:
                if index < len(row) and row[index] and (value := _number(row[index])) is not None:
                    curves[name].append((step, value))
    names = sorted(curves)[:MAX_CURVES]
    return {plain_text(" ".join(name.split()), MAX_NAME): _thin(curves[name]) for name in names}


def _number(cell: Any) -> float | None:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if abs(value) <= LARGEST else None  # nor infinity, nor NaN


def _thin(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points at even distances with both ends, values to four digits."""
    if len(curve) > CURVE_POINTS:
        curve = [curve[round(i * (len(curve) - 1) / (CURVE_POINTS - 1))] for i in range(CURVE_POINTS)]
    return [(step, float(f"{value:.4g}")) for step, value in curve]
