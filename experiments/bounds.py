"""The codec against two Gaussian bounds: that of independent rows, and that of what a prediction leaves of them.

    pip install -e '.[benchmark,demo]'
    python -m experiments.bounds experiments/DATED-FOLDER [--model minilm_l6] [--ratios 10 25 50 103 200]

The weighted error is the one that the codec minimises: rows count by their weights, directions by the error metric. It
is 1 where all rows are the mean. A bound is reverse water-filling with all bytes spent on codes: every row is Gaussian
with the second moments of its tier, and the decoder, the tiers and the maps of the prediction cost nothing. The rows of
the second bound are what is left after a prediction from the true rows of their parents; a decoder has only decoded
ones. Rows in bounds.csv are not computed again. Writes bounds.csv and bounds.png.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from experiments.rows import RowFile
from lighttoken import compress_table, measure_importance
from lighttoken.codec.bound import reverse_water_filling
from lighttoken.codec.interface import Importance
from lighttoken.codec.lighttoken.method import LightToken
from lighttoken.codec.lighttoken.plan import TIER_COUNTS, assign_tiers
from lighttoken.codec.lighttoken.prediction import fit_prediction
from lighttoken.codec.lowrank import weighted_moments
from lighttoken.codec.metric_roots import metric_roots
from lighttoken.config.schema import load_backbone

matplotlib.use("agg")
import matplotlib.pyplot as plt

TIERS = max(TIER_COUNTS)
LINES = {  # column -> label, style
    "bound": ("bound of independent rows", "k--"),
    "predicted_bound": ("bound of what a prediction leaves", "k:"),
    "none": ("lighttoken, predict=none", "s-"),
    "related": ("lighttoken", "o-"),
}
COLUMNS = ("model", "ratio_asked", "ratio", *LINES, "gap_db")


class Bounds:
    """The weighted error of a table (V, d), and its two bounds at any number of bytes."""

    def __init__(self, table: Tensor, importance: Importance):
        self.table, weights, relations = table, importance.weights, importance.relations
        root, _ = metric_roots(importance.error_metric, table.shape[1])
        mean, covariance = weighted_moments(table, weights)
        self.projection = (root @ torch.linalg.eigh(root @ covariance @ root).eigenvectors.flip(1)).float()
        self.weights, coordinates = weights, (table - mean.float()) @ self.projection
        self.energy = float(weights @ coordinates.square().sum(1))
        self.independent = tier_moments(coordinates, weights)
        no_tiers, exact = torch.zeros(len(table), dtype=torch.uint8), torch.zeros(1, table.shape[1])
        fit_prediction(coordinates, weights, relations).subtract(coordinates, no_tiers, exact)
        self.predicted = tier_moments(coordinates, weights)

    def error(self, rows: Tensor) -> float:
        """That of decoded rows (V, d)."""
        return float(self.weights @ ((rows - self.table) @ self.projection).square().sum(1)) / self.energy

    def at(self, nbytes: int) -> tuple[float, float]:
        """The bounds of independent rows and of predicted ones."""
        least = (reverse_water_filling(moments, 8 * nbytes)[0] for moments in (self.independent, self.predicted))
        return tuple(error / self.energy for error in least)


def tier_moments(coordinates: Tensor, weights: Tensor) -> Tensor:
    """For every number of the table, the mean weighted square along its direction in its row's tier, (V * d,)."""
    tiers = assign_tiers(coordinates.square().sum(1) * weights, TIERS).long()
    squares = coordinates.square() * weights.unsqueeze(1)
    sums = squares.new_zeros(TIERS, squares.shape[1]).index_add_(0, tiers, squares)
    return (sums / torch.bincount(tiers, minlength=TIERS).clamp_min(1).unsqueeze(1))[tiers].flatten()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where bounds.csv and bounds.png are written")
    parser.add_argument("--model", default="minilm_l6", help="a file of conf/model, or a checkpoint's folder")
    parser.add_argument("--ratios", nargs="+", type=float, default=[10, 25, 50, 103, 200])
    arguments = parser.parse_args()
    results = RowFile(arguments.folder / "bounds.csv", COLUMNS, ("model", "ratio_asked"))
    backbone = load_backbone(arguments.model)
    if ratios := [ratio for ratio in arguments.ratios if (backbone.label, f"{ratio:g}") not in results]:
        table = backbone.table()
        importance = measure_importance(backbone, LightToken(), len(table))
        bounds = Bounds(table, importance)
    for ratio in ratios:
        row: dict[str, Any] = {"model": backbone.label, "ratio_asked": f"{ratio:g}"}
        for predict in ("none", "related"):
            compressed = compress_table(table, LightToken(predict=predict), ratio, importance=importance)
            row[predict] = bounds.error(compressed.decode())
        row |= dict(zip(("bound", "predicted_bound"), bounds.at(compressed.nbytes), strict=True))
        gap = 10 * math.log10(row["related"] / row["bound"])
        row |= {name: f"{row[name]:.5g}" for name in LINES} | {"ratio": f"{compressed.ratio:.3f}"}
        results.add(row | {"gap_db": f"{gap:.3f}"}, lambda row: (row["model"], float(row["ratio_asked"])))
        print(results.rows[-1], flush=True)
    draw(results.rows, arguments.folder / "bounds.png")


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """A panel for every model: the distance of the weighted error from the bound of independent rows, by ratio."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, panels = plt.subplots(1, len(models), figsize=(5.2 * len(models), 4.2), layout="constrained", squeeze=False)
    for axis, model in zip(panels[0], models, strict=True):
        points = [row for row in rows if row["model"] == model]
        ratios = [float(row["ratio"]) for row in points]
        for name, (label, style) in LINES.items():
            decibels = [10 * math.log10(float(row[name]) / float(row["bound"])) for row in points]
            axis.plot(ratios, decibels, style, label=label, markersize=5)
        axis.set(xscale="log", title=model, xlabel="ratio", ylabel="weighted error above the bound, dB")
        axis.set_xticks(ratios, [f"{float(row['ratio_asked']):g}x" for row in points])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    panels[0][0].legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
