"""The README's figure, from records: retention against ratio on CoLA, the hardest task, and the mean of five tasks.

    python -m experiments.claim experiments/2026-11-26-ratios experiments/2026-11-26-baselines

The first folder has summary.md of `lighttoken` over ratios, the second scores.csv of every codec on CoLA. Writes
retention.png into the first. A retention of several recipes is their mean, weighted by the number of seeds.
"""

import argparse
import re
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.rows import read_rows
from lighttoken.dashboard.style import style

RATIOS = (5, 25, 50, 103, 200)
STATED = {25: 1.0, 103: 0.94}  # by the paper, for its models


def lighttoken_over_ratios(folder: Path, task: str) -> dict[float, float]:
    """Retention by ratio, from the rows of a task in summary.md."""
    lines = (folder / "summary.md").read_text().splitlines()
    names, *rows = ([cell.strip() for cell in line.strip("| ").split("|")] for line in lines if line.startswith("|"))
    found = (dict(zip(names, row, strict=False)) for row in rows)
    return {
        float(row["ratio"]): float(row["retention"])
        for row in found
        if row["task"] == task and row["codec"] == "lighttoken" and re.fullmatch(r"[\d.]+", row.get("retention", ""))
    }


def on_cola(folder: Path, codec: str) -> dict[float, float]:
    """Retention by measured ratio."""
    rows = [row for row in read_rows(folder / "scores.csv") if row["codec"] == codec and row["retention"]]
    points: dict[float, float] = {}
    for asked in {row["asked"] for row in rows}:
        same = [row for row in rows if row["asked"] == asked]
        seeds = sum(int(row["n"]) for row in same)
        ratio = sum(float(row["ratio"]) * int(row["n"]) for row in same) / seeds
        points[ratio] = sum(float(row["retention"]) * int(row["n"]) for row in same) / seeds
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ratios", type=Path, help="record of lighttoken over ratios")
    parser.add_argument("baselines", type=Path, help="record of every codec on CoLA")
    arguments = parser.parse_args()
    five = "mean of cola, mrpc, rte, sst2, stsb"
    lines = {
        "lighttoken, mean of five tasks": (lighttoken_over_ratios(arguments.ratios, five), "lighttoken", "-", 3),
        "lighttoken, CoLA": (lighttoken_over_ratios(arguments.ratios, "cola"), "lighttoken", "--", 1.5),
        "the published form, CoLA": (on_cola(arguments.baselines, "lighttoken_paper"), "lighttoken_paper", "--", 1.5),
        "product quantization, CoLA": (on_cola(arguments.baselines, "pq"), "pq", "--", 1.5),
    }
    figure = Figure(figsize=(7.6, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(1, color="black", linewidth=1, linestyle=":", label="uncompressed")
    for label, (points, codec, dash, width) in lines.items():
        x = sorted(points)
        colour = style(codec, 0)["colour"]
        axes.plot(x, [points[ratio] for ratio in x], dash, color=colour, linewidth=width, marker="o", label=label)
    stated: dict[str, Any] = {
        "color": "black",
        "markersize": 10,
        "fillstyle": "none",
        "label": "stated by the paper, for its models",
    }
    axes.plot([*STATED], [*STATED.values()], "*", **stated)
    axes.set(xscale="log", xlabel="times smaller", ylabel="share of the score that is kept", ylim=(-0.05, 1.1))
    axes.xaxis.set_major_locator(FixedLocator(RATIOS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.grid(alpha=0.25)
    axes.legend(loc="lower left", frameon=False)
    figure.savefig(arguments.ratios / "retention.png", dpi=150)


if __name__ == "__main__":
    main()
