"""The curves of a run, from its metrics.csv."""

import csv
import stat
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

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
    with path.open(newline="") as file:
        columns = {name: cells for name, *cells in zip_longest(*csv.reader(file), fillvalue="")}
    steps, curves = [*map(_number, columns.pop("step", []))], {}
    for name, cells in columns.items():
        if name not in ("", "epoch") and not name.startswith("table/"):
            filled = [(step, cell) for step, cell in zip(steps, cells, strict=False) if step is not None and cell]
            curves[name] = [(step, value) for step, cell in filled if (value := _number(cell)) is not None]
    names = sorted(name for name, curve in curves.items() if curve)[:MAX_CURVES]
    return {plain_text(" ".join(name.split()), MAX_NAME): _thin(curves[name]) for name in names}


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if abs(value) <= LARGEST else None  # nor infinity, nor NaN


def _thin(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points at even distances with both ends, values to four digits."""
    if len(curve) > CURVE_POINTS:
        curve = [curve[round(i * (len(curve) - 1) / (CURVE_POINTS - 1))] for i in range(CURVE_POINTS)]
    return [(step, float(f"{value:.4g}")) for step, value in curve]
