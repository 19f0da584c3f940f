"""The scores as tables: `runs.csv` and `scores.csv` to compute with, `scores.md` to read, `scores.tex` to publish."""

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from lighttoken.artifact.files import write_atomically
from lighttoken.dashboard.gather import Point, Run, best_of, grouped, points
from lighttoken.dashboard.significance import Difference, comparisons

T = TypeVar("T")
OURS = "lighttoken"
NOT_AVERAGED = "squad"  # its scores are percentages, those of other tasks fractions
SIZES = ("ratio", "bytes", "nmse")
SETTING_COLUMNS = ("task", "model", "recipe", "codec", "asked", *SIZES)
COLUMNS = (*SETTING_COLUMNS, "n", "mean", "std", "retention", "standard_error")
RUN_COLUMNS = (
    *SETTING_COLUMNS,
    "epochs",
    "seed",
    "score",
    "retention",
    "accelerator",
    "seconds",
    "git_commit",
    "folder",
)
GAP_COLUMNS = (*SETTING_COLUMNS[:3], "asked", "codec", "against", "seeds", "mean", "low", "high")
LATEX = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
DIGITS = {"asked": "g", "ratio": ".2f", "bytes": ".0f", "n": "d"}  # the others: .4f
Row = dict[str, Any]


def write_tables(runs: Iterable[Run], folder: Path) -> list[Path]:
    """Write runs.csv, scores.csv, scores.md and scores.tex; returns the files, none without a finished run.

    runs.csv has a column for every metric. scores.csv has a row per setting, and a row per mean over tasks, see
    `task_means`. Where runs have kept their answers, differences.csv has `significance.comparisons`.
    """
    settings = points(runs)
    if not settings:
        return []
    run_rows = [_run_row(run) for point in settings for run in sorted(point.runs, key=lambda run: run.record["seed"])]
    means = task_means(settings)
    metrics = sorted({name for row in run_rows for name in row} - {*RUN_COLUMNS})
    written = [
        _write_csv(folder / "runs.csv", (*RUN_COLUMNS, *metrics), run_rows),
        _write_csv(folder / "scores.csv", COLUMNS, [*map(_score_row, settings), *means]),
    ]
    lines: list[str] = []
    gap_rows: list[Row] = []
    for group in grouped(settings, lambda point: point.run.group).values():
        rows, gaps = [_score_row(point) for point in group], comparisons(group)
        lines += [*_section(group[0].run.title, rows), *comparison(group), *map(_gap_line, gaps), ""]
        gap_rows += map(_gap_row, gaps)
    for names, rows in grouped(means, lambda row: (row["task"], row["model"], row["recipe"])).items():
        lines += _section(", ".join(filter(None, names)), rows)
    write_atomically(folder / "scores.md", "\n".join(lines).encode())
    groups = grouped(settings, lambda point: point.run.group).values()
    write_atomically(folder / "scores.tex", "\n\n".join(map(latex, groups)).encode() + b"\n")
    written += [folder / "scores.md", folder / "scores.tex"]
    return [*written, _write_csv(folder / "differences.csv", GAP_COLUMNS, gap_rows)] if gap_rows else written


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> Path:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows({column: _no_formula(row.get(column)) for column in columns} for row in rows)
    write_atomically(path, text.getvalue().encode())
    return path


def by_ratio(group: Iterable[Point], cell: Callable[[Point, bool], T]) -> tuple[list[float], dict[str, dict[float, T]]]:
    """The ratios of the configs, rising, and for every codec its cells by ratio.

    `cell` makes the cell of a point, given whether its score is the best of two or more at that ratio. Of several
    points to refer to, such as frozen and trained, the best counts; other uncompressed ones, such as int8, are apart.
    """
    table: dict[str, dict[float, Point]] = {}
    for point in group:
        ratio, label = point.run.ratio or 1.0, "none" if point.run.is_reference else point.run.label
        row = table.setdefault(label, {})
        row[ratio] = best_of([point, *([row[ratio]] if ratio in row else [])])
    ratios = sorted({ratio for row in table.values() for ratio in row})
    rivals = {ratio: [row[ratio] for row in table.values() if ratio in row] for ratio in ratios}
    best = {id(best_of(points)) for points in rivals.values() if len(points) > 1}
    cells = {
        label: {ratio: cell(point, id(point) in best) for ratio, point in row.items()} for label, row in table.items()
    }
    return ratios, cells


def latex(group: Sequence[Point]) -> str:
    """A table of codec by ratio for the package booktabs: mean, standard deviation over seeds, retention in brackets.

    The best score of a ratio is bold.
    """
    ratios, table = by_ratio(group, _latex_cell)
    lines = [r"\begin{table}", r"\centering", f"\\caption{{{_no_commands(group[0].run.title)}}}"]
    lines += [f"\\begin{{tabular}}{{l{'r' * len(ratios)}}}", r"\toprule"]
    lines += [" & ".join(["codec", *(f"{ratio:g}x" for ratio in ratios)]) + r" \\", r"\midrule"]
    rows = {label: [cells.get(ratio, "") for ratio in ratios] for label, cells in table.items()}
    lines += [" & ".join([_no_commands(label), *cells]) + r" \\" for label, cells in rows.items()]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def _latex_cell(point: Point, is_best: bool) -> str:
    mean = f"\\textbf{{{point.mean:.3f}}}" if is_best else f"{point.mean:.3f}"
    std = "" if point.std is None else f" $\\pm$ {point.std:.3f}"
    kept = point.retention["retention"]
    return mean + std + ("" if kept is None or point.run.codec == "none" else f" ({kept:.3f})")


def _no_commands(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return re.sub(r"([\\{}$&#^_~%])", lambda match: LATEX.get(match[1], f"\\{match[1]}"), text)


def comparison(group: Iterable[Point]) -> list[str]:
    """The codecs that score better than `lighttoken`, on the seeds that both have: a line per ratio of the configs."""
    by_ratio = grouped((point for point in group if point.run.codec != "none"), lambda point: point.run.ratio or 1.0)
    lines = []
    for ratio, rivals in sorted(by_ratio.items()):
        for ours in (point for point in rivals if point.run.codec == OURS and len(rivals) > 1):
            above = []
            for rival in rivals:
                gains = [rival.by_seed[seed] - score for seed, score in ours.by_seed.items() if seed in rival.by_seed]
                gains = [-gain for gain in gains] if ours.run.lower_is_better else gains
                if gains and fmean(gains) > 0:
                    above.append(f"{rival.run.label} by {fmean(gains):.4f} (n={len(gains)})")
            names = ", ".join(above) or "none of the others"
            lines.append(_no_markup(f"- Better than {ours.run.label} at {ratio:g}x: {names}."))
    return lines


def task_means(settings: Iterable[Point]) -> list[Row]:
    """A row per codec and ratio of several tasks: the mean score and its retention against the tasks' references.

    `n` is the number of tasks. SQuAD, perplexities, and seeds without a reference, are left out. The standard error
    combines those of the tasks, in units of score, as of independent tasks.
    """
    scored = (p for p in settings if p.retention["retention"] is not None and not p.run.lower_is_better)
    averaged = (p for p in scored if p.run.group[0] != NOT_AVERAGED)
    rows = []
    for group in grouped(averaged, lambda point: (point.run.group[1:], point.run.label, point.run.ratio)).values():
        scores = [fmean(point.by_seed[seed] for seed in point.references) for point in group]
        references = [fmean(point.references.values()) for point in group]
        pairs = zip((point.retention["standard_error"] for point in group), references, strict=True)
        errors = [error * reference for error, reference in pairs if error is not None]
        row = _setting(group[0].run) | dict.fromkeys((*SIZES, "std", "standard_error"))
        row |= {"task": f"mean of {', '.join(point.run.group[0] for point in group)}", "n": len(group)}
        row |= {"mean": fmean(scores), "retention": sum(scores) / sum(references)}
        if len(errors) == len(group):  # one seed has none
            row["standard_error"] = math.hypot(*errors) / abs(sum(references))
        rows.append(row)
    return [row for row in rows if row["n"] > 1]


def _gap_row(gap: tuple[Point, Point, Difference]) -> Row:
    point, other, difference = gap
    names: Row = dict(zip(COLUMNS[:3], point.run.group, strict=True))
    names |= {"asked": float(point.run.ratio or 1.0), "codec": point.run.label, "against": other.run.label}
    return names | {"seeds": difference.seeds} | {name: getattr(difference, name) for name in ("mean", "low", "high")}


def _gap_line(gap: tuple[Point, Point, Difference]) -> str:
    point, other, difference = gap
    names = f"{point.run.label} at {point.run.ratio:g}x minus {other.run.label}"
    return _no_markup(f"- {names}: {difference.text}, 95 % over the rows, n = {difference.seeds}.")


def _score_row(point: Point) -> Row:
    """Means over the runs; of the sizes too, as every seed has an artifact of its own."""
    runs = [_setting(run) for run in point.runs]
    sizes = {name: fmean(run[name] for run in runs) for name in SIZES if None not in [run[name] for run in runs]}
    if "bytes" in sizes:
        sizes["bytes"] = round(sizes["bytes"])
    scores = {"n": len(point.scores), "mean": point.mean, "std": point.std} | point.retention
    return _setting(point.run) | sizes | scores


def _run_row(run: Run) -> Row:
    row = {name: run.record[name] for name in ("seed", "git_commit")} | {"score": run.score, "folder": run.name}
    row |= {"epochs": run.epochs}
    row |= {"accelerator": run.record["hardware"].get("accelerator"), "retention": run.retention}
    row |= {"seconds": round(sum(run.record["seconds"].values()))}
    metrics = {name.removeprefix("val/"): value for name, value in run.record["metrics"].items()}
    return metrics | _setting(run) | row


def _setting(run: Run) -> Row:
    sizes = run.record["ratio"], run.record["artifact_bytes"], run.record["compression"].get("nmse")
    return dict(zip(SETTING_COLUMNS, (*run.group, run.label, float(run.ratio or 1.0), *sizes), strict=True))


def _section(title: str, rows: Sequence[Row]) -> list[str]:
    """A titled Markdown table of rows of one task, model and recipe."""
    columns = COLUMNS[3:]
    lines = [list(columns), ["---"] * len(columns), *([_cell(name, row[name]) for name in columns] for row in rows)]
    table = [f"| {' | '.join(cells)} |" for cells in lines]
    return [_no_markup(f"## {title}"), "", *table, ""]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    return _no_markup(value).replace("|", r"\|") if isinstance(value, str) else f"{value:{DIGITS.get(name, '.4f')}}"


def _no_markup(text: str) -> str:
    """Text whose tags and links a Markdown viewer shows as they are."""
    return re.sub(r"([<\[])", r"\\\1", text)


def _no_formula(value: Any) -> Any:
    """A cell that a spreadsheet does not compute: text that starts as a formula does gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
