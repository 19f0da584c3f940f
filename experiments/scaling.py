"""How the default codec scales with V and d, and its result on other tables.

    python -m experiments.scaling experiments/DATED-FOLDER [--model minilm_l6] [--before CLONE] \
        [--sizes 262144x640 ...] [--table NAME=FILE.safetensors:KEY ...]

The synthetic tables have a real spectrum: Gaussian rows with the covariance of the model's table (interpolated where d
differs), scaled to lengths drawn from its rows. They are compressed at 25x; every `--table` at 25, 50, 103 and 200x.
All rows have the same weight. Every point runs in a process of its own; with `--before` every synthetic one runs with
the code of another clone too, at once after. Seconds are CPU seconds of all threads; with OMP_NUM_THREADS=1 other work
raises them less than the time on the clock. Writes scaling.csv, prints the exponents of V and d, and goes on where it
stopped.
"""

import argparse
import itertools
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from experiments.process import peak_mb, reset_peak_mb, run_alone
from experiments.rows import Row, RowFile
from experiments.tables import bound_nmse, synthetic_table
from lighttoken import compress_table

VOCAB_SIZES = (30_522, 60_000, 120_000, 262_144)
DIMS = (384, 640, 768)
RATIOS = (25, 50, 103, 200)
KEY = ("code", "table", "rows", "dim", "asked")
COLUMNS = (
    *KEY,
    *("ratio", "nmse", "bound_nmse", "gap_db"),
    *("seconds", "seconds_per_million_numbers", "peak_memory_per_table_byte", "decode_seconds"),
)


def read_table(path: str, key: str) -> torch.Tensor:
    return load_file(path)[key].float()


def run_point(name: str, source: Callable[[], torch.Tensor], ratio: float) -> dict[str, object]:
    """One row of the results. In a process of its own, the peak memory is that of this compression."""
    table = source()
    before, start = reset_peak_mb(), time.process_time()
    compressed = compress_table(table, "lighttoken", ratio, progress=False)
    seconds, memory = time.process_time() - start, peak_mb() - before
    start = time.process_time()
    compressed.decode()
    decoding = time.process_time() - start
    nmse, bound = compressed.summary["nmse"], bound_nmse(table, compressed.nbytes)
    return {
        "table": name,
        "rows": table.shape[0],
        "dim": table.shape[1],
        "ratio": round(compressed.ratio, 2),
        "nmse": round(nmse, 4),
        "bound_nmse": round(bound, 4),
        "gap_db": round(10 * math.log10(nmse / bound), 2),
        "seconds": round(seconds, 1),
        "seconds_per_million_numbers": round(seconds / table.numel() * 1e6, 2),
        "peak_memory_per_table_byte": round(memory * 2**20 / table.numel() / 4, 2),
        "decode_seconds": round(decoding, 2),
    }


def exponents(rows: Sequence[Row]) -> tuple[float, float]:
    """b and c of the least-squares fit seconds = a V^b d^c, over logarithms."""
    logarithms = torch.tensor([[1.0, *(math.log(float(row[name])) for name in ("rows", "dim"))] for row in rows])
    seconds = torch.tensor([[math.log(float(row["seconds"]))] for row in rows])
    _, by_rows, by_dim = torch.linalg.lstsq(logarithms, seconds).solution.flatten().tolist()
    return by_rows, by_dim


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where scaling.csv is written")
    parser.add_argument("--model", default="minilm_l6", help="a file of conf/model, or a checkpoint's folder")
    parser.add_argument("--before", type=Path, metavar="CLONE", help="a clone of this project at an earlier commit")
    parser.add_argument("--table", action="append", default=[], metavar="NAME=FILE:KEY")
    parser.add_argument(
        "--sizes", nargs="+", metavar="VxD", help="synthetic sizes, such as 262144x640; else all twelve"
    )
    arguments = parser.parse_args()
    sizes = itertools.product(VOCAB_SIZES, DIMS)
    if arguments.sizes:
        sizes = (tuple(map(int, size.split("x"))) for size in arguments.sizes)
    points: list[tuple[Any, ...]] = []
    for size in sizes:
        source = partial(synthetic_table, arguments.model, *size)
        points += [(code, "synthetic", *size, source, 25) for code in ("now", *["before"] * bool(arguments.before))]
    for entry in arguments.table:
        name, _, file = entry.partition("=")
        path, key = file.rsplit(":", 1)
        with safe_open(path, "pt") as tensors:
            size = tensors.get_slice(key).get_shape()
        points += [("now", name, *size, partial(read_table, path, key), ratio) for ratio in RATIOS]
    results = RowFile(arguments.folder / "scaling.csv", COLUMNS, KEY)
    for *point, source, ratio in points:
        if (*point, ratio) not in results:
            clone = arguments.before.resolve() if point[0] == "before" else None
            row = dict(zip(KEY, (*point, ratio), strict=True)) | run_alone(
                run_point, point[1], source, ratio, clone=clone
            )
            results.add(row)
            print(results.rows[-1], flush=True)
    for code in ("now", "before"):
        if len(rows := [row for row in results.rows if row["code"] == code and row["table"] == "synthetic"]) > 2:
            print("{}: seconds grow with V^{:.2f} and d^{:.2f}".format(code, *exponents(rows)))


if __name__ == "__main__":
    main()
