"""Table error of the published form against ratio, and how the stages of one artifact trained.

    python -m experiments.ratio_error experiments/DATED-FOLDER

Compresses the table of MiniLM-L6 with `lighttoken_paper` (3 seeds) and `svd` at several ratios. Ratios are measured on
the bytes of the artifact on disk. Writes ratio_error.csv, stages.csv and ratio_error.png; points in the CSV are not
computed again.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import matplotlib
from lightning.pytorch.loggers import CSVLogger
from tqdm import tqdm

from experiments.rows import Row, RowFile, read_rows
from lighttoken import compress_table
from lighttoken.config.schema import load_backbone

matplotlib.use("agg")
import matplotlib.pyplot as plt

RATIOS = (5, 10, 25, 50, 103, 200)
POINTS = [("svd", ratio, 0) for ratio in RATIOS] + [("lighttoken_paper", r, seed) for seed in (0, 1, 2) for r in RATIOS]
COLUMNS = ("codec", "ratio_asked", "seed", "ratio", "bytes", "rank", "bits_per_row", "nmse", "cosine", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where ratio_error.csv is written")
    parser.add_argument("--model", default="minilm_l6", help="a file of conf/model, or a checkpoint's folder")
    arguments = parser.parse_args()
    folder = arguments.folder
    table = load_backbone(arguments.model).table()
    results = RowFile(folder / "ratio_error.csv", COLUMNS, ("codec", "ratio_asked", "seed"))
    for codec, ratio, seed in tqdm([point for point in POINTS if point not in results], unit="artifact"):
        curves = tempfile.mkdtemp()
        start = time.perf_counter()
        loggers = [CSVLogger(curves, name="", version="")] if codec == "lighttoken_paper" else []
        compressed = compress_table(table, codec, ratio, seed=seed, progress=False, loggers=loggers)
        seconds = time.perf_counter() - start
        if (codec, ratio, seed) == ("lighttoken_paper", 25, 0):
            shutil.copy(Path(curves) / "metrics.csv", folder / "stages.csv")
        row = {
            "codec": codec,
            "ratio_asked": ratio,
            "seed": seed,
            "ratio": compressed.ratio,
            "bytes": compressed.nbytes,
        }
        results.add({"bits_per_row": 0} | compressed.summary | row | {"seconds": round(seconds, 1)})
    draw(results.rows, read_rows(folder / "stages.csv"), folder / "ratio_error.png")


def draw(rows: list[Row], stages: list[Row], path: Path) -> None:
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


def curve(rows: list[Row], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one logged metric."""
    logged = [row for row in rows if row[name]]
    return [int(row["step"]) for row in logged], [float(row[name]) for row in logged]


if __name__ == "__main__":
    main()
