"""The scores as tables: `runs.csv` and `scores.csv` for whoever computes on, `scores.md` for whoever reads."""

import csv
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from lighttoken.dashboard.gather import Point, Run, points

OURS = "lighttoken"
COLUMNS = (
    *("task", "model", "recipe", "codec", "asked", "ratio", "bytes", "nmse"),
    *("n", "mean", "std", "retention", "standard_error"),
)
RUN_COLUMNS = (
    *("task", "model", "recipe", "codec", "asked", "ratio", "bytes", "nmse"),
    *("seed", "score", "retention", "accelerator", "seconds", "git_commit", "folder"),
)
DIGITS = {"asked": "g", "ratio": ".2f", "nmse": ".4f", "bytes": ".0f"}  # the others: .4f


def write_tables(runs: Iterable[Run], folder: Path) -> list[Path]:
    """Write runs.csv, scores.csv and scores.md; the files written, none without a finished run."""
    found = points(runs)
    if not found:
        return []
    each_run = [_row_of(run) for point in found for run in sorted(point.runs, key=lambda run: run.record["seed"])]
    for name, columns, rows in (
        ("runs.csv", RUN_COLUMNS, each_run),
        ("scores.csv", COLUMNS, [_row(point) for point in found]),
    ):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    parts = []
    groups: dict[tuple[str, str, str], list[Point]] = defaultdict(list)
    for point in found:
        groups[point.runs[0].group].append(point)
    for (task, model, recipe), group in groups.items():
        title = f"{task}, {model}" + (f" ({recipe})" if recipe else "")
        parts += [f"## {title}", "", *_markdown(group), "", *comparison(group), ""]
    (folder / "scores.md").write_text("\n".join(parts))
    return [folder / "runs.csv", folder / "scores.csv", folder / "scores.md"]


def comparison(group: Iterable[Point]) -> list[str]:
    """Where another codec scores above `lighttoken`: a line for each ratio asked for, on the seeds that both have."""
    by_ratio: dict[float, list[Point]] = defaultdict(list)
    for point in group:
        if point.runs[0].codec != "none":
            by_ratio[_asked(point.runs[0])].append(point)
    lines = []
    for ratio, rivals in sorted(by_ratio.items()):
        for ours in (point for point in rivals if point.runs[0].codec == OURS and len(rivals) > 1):
            above = []
            for rival in rivals:
                theirs = _by_seed(rival)
                gains = [theirs[seed] - score for seed, score in _by_seed(ours).items() if seed in theirs]
                if gains and fmean(gains) > 0:
                    above.append(f"{rival.runs[0].label} by {fmean(gains):.4f} (n={len(gains)})")
            told = ", ".join(above) or "none of the others does"
            lines.append(f"- Above {ours.runs[0].label} at {ratio:g}x: {told}.")
    return lines


def _row(point: Point) -> dict[str, Any]:
    scores = {"n": len(point.scores), "mean": point.mean, "std": point.std} | point.retention
    return _setting(point.runs[0]) | {"ratio": point.ratio} | scores


def _row_of(run: Run) -> dict[str, Any]:
    record = run.record
    told = {"seed": record["seed"], "score": run.score, "retention": run.retention, "folder": run.name}
    told |= {"accelerator": record["hardware"].get("accelerator"), "git_commit": record["git_commit"]}
    return _setting(run) | told | {"seconds": round(sum(record["seconds"].values()))}


def _setting(run: Run) -> dict[str, Any]:
    task, model, recipe = run.group
    told = {"task": task, "model": model, "recipe": recipe, "codec": run.label, "asked": _asked(run)}
    told |= {"ratio": run.record["ratio"], "bytes": run.record["artifact_bytes"]}
    return told | {"nmse": run.record["compression"].get("nmse")}


def _markdown(group: Iterable[Point]) -> list[str]:
    columns = COLUMNS[3:]
    cells = [[_cell(name, value) for name, value in _row(point).items() if name in columns] for point in group]
    return [f"| {' | '.join(each)} |" for each in [list(columns), ["---"] * len(columns), *cells]]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, str) or name == "n" else f"{value:{DIGITS.get(name, '.4f')}}"


def _asked(run: Run) -> float:
    return float(run.ratio or 1.0)


def _by_seed(point: Point) -> dict[int, float]:
    return {run.record["seed"]: run.score for run in point.runs if run.score is not None}
