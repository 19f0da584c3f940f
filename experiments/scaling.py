"""How the default codec scales with V and d, and what the same settings do to other tables.

    python -m experiments.scaling experiments/DATED-FOLDER [--model minilm_l6] [--table NAME=FILE.safetensors:KEY ...]

The synthetic tables have a real spectrum: Gaussian rows with the covariance of the model's table (interpolated where d
differs), scaled to lengths drawn from its rows. They are compressed at 25x; every `--table` at 25, 50, 103 and 200x.
All rows weigh the same. Each point runs in a process of its own. Writes scaling.csv.
"""

import argparse
import csv
import math
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from experiments.rate_distortion import load_backbone, peak_mb, reset_peak_mb
from lighttoken import compress_table
from lighttoken.codec.bound import reverse_water_filling
from lighttoken.codec.lowrank import weighted_moments

SIZES = ((30_522, 384), (120_000, 384), (30_522, 768))
RATIOS = (25, 50, 103, 200)


def synthetic_table(model: str, vocab_size: int, dim: int) -> torch.Tensor:
    table = load_backbone(model).table()
    variances = torch.linalg.eigvalsh(weighted_moments(table, torch.ones(len(table)))[1]).flip(0).clamp_min(0).float()
    spectrum = torch.nn.functional.interpolate(variances.view(1, 1, -1), dim, mode="linear", align_corners=True)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(vocab_size, dim, generator=generator) * spectrum.flatten().sqrt()
    rotation, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator))
    lengths = torch.linalg.vector_norm(table - table.mean(0), dim=1)
    drawn = lengths[torch.randint(len(table), (vocab_size, 1), generator=generator)]
    return torch.nn.functional.normalize(rows, dim=1) * drawn @ rotation


def read_table(path: str, key: str) -> torch.Tensor:
    return load_file(path)[key].float()


def run_point(name: str, source: Callable[[], torch.Tensor], ratio: float) -> dict[str, object]:
    """One row of the results, in a process of its own, whose peak memory is that of this compression."""
    table = source()
    before, start = reset_peak_mb(), time.perf_counter()
    compressed = compress_table(table, "lighttoken", ratio, progress=False)
    seconds, memory = time.perf_counter() - start, peak_mb() - before
    start = time.perf_counter()
    compressed.decode()
    decoding = time.perf_counter() - start
    spectrum = torch.linalg.eigvalsh(weighted_moments(table, torch.ones(len(table)))[1])
    bound = reverse_water_filling(spectrum, 8 * compressed.nbytes / len(table))[0] / float(table.var()) / table.shape[1]
    nmse = compressed.summary["nmse"]
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
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="minilm_l6")
    parser.add_argument("--table", action="append", default=[], metavar="NAME=FILE:KEY")
    arguments = parser.parse_args()
    points = [("synthetic", partial(synthetic_table, arguments.model, *size), 25) for size in SIZES]
    for each in arguments.table:
        name, _, source = each.partition("=")
        points += [(name, partial(read_table, *source.rsplit(":", 1)), ratio) for ratio in RATIOS]
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for point in points:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            rows.append(pool.submit(run_point, *point).result())
        print(rows[-1], flush=True)
        with (arguments.folder / "scaling.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
