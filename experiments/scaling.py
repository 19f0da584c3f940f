"""How the default codec scales with V and d, and its result on other tables.

    python -m experiments.scaling experiments/DATED-FOLDER [--model minilm_l6] [--table NAME=FILE.safetensors:KEY ...]

The synthetic tables have a real spectrum: Gaussian rows with the covariance of the model's table (interpolated where d
differs), scaled to lengths drawn from its rows. They are compressed at 25x; every `--table` at 25, 50, 103 and 200x.
All rows have the same weight. Every point runs in a process of its own. Writes scaling.csv.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from experiments.process import peak_mb, reset_peak_mb, run_alone
from experiments.rows import RowFile
from experiments.tables import bound_nmse, synthetic_table
from lighttoken import compress_table

SIZES = ((30_522, 384), (120_000, 384), (30_522, 768), (262_144, 640))
RATIOS = (25, 50, 103, 200)
COLUMNS = (
    *("table", "rows", "dim", "ratio", "nmse", "bound_nmse", "gap_db"),
    *("seconds", "seconds_per_million_numbers", "peak_memory_per_table_byte", "decode_seconds"),
)


def read_table(path: str, key: str) -> torch.Tensor:
    return load_file(path)[key].float()


def run_point(name: str, source: Callable[[], torch.Tensor], ratio: float) -> dict[str, object]:
    """One row of the results. In a process of its own, the peak memory is that of this compression."""
    table = source()
    before, start = reset_peak_mb(), time.perf_counter()
    compressed = compress_table(table, "lighttoken", ratio, progress=False)
    seconds, memory = time.perf_counter() - start, peak_mb() - before
    start = time.perf_counter()
    compressed.decode()
    decoding = time.perf_counter() - start
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where scaling.csv is written")
    parser.add_argument("--model", default="minilm_l6", help="a file of conf/model, or a checkpoint's folder")
    parser.add_argument("--table", action="append", default=[], metavar="NAME=FILE:KEY")
    arguments = parser.parse_args()
    points = [("synthetic", partial(synthetic_table, arguments.model, *size), 25) for size in SIZES]
    for entry in arguments.table:
        name, _, source = entry.partition("=")
        points += [(name, partial(read_table, *source.rsplit(":", 1)), ratio) for ratio in RATIOS]
    results = RowFile(arguments.folder / "scaling.csv", COLUMNS)
    for point in points:
        results.add(run_alone(run_point, *point))
        print(results.rows[-1], flush=True)


if __name__ == "__main__":
    main()
