"""What a sweep says at its end: which codec is best at which ratio."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lighttoken.dashboard.gather import Point, gather, grouped, points
from lighttoken.run.sweep import sweep_records


class Answer(Callback):
    """Hydra callback of every sweep: prints a table of codec by ratio for every task, and the command of the report."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Jobs that were skipped count with the record that they were skipped for."""
        records = sweep_records(Path(config.hydra.sweep.dir))
        folders = list(dict.fromkeys(Path(record["directory"]) for _, record in records))
        found = points(gather(folders)) if folders else []
        console = Console(soft_wrap=True, highlight=False)
        for group in grouped(found, lambda point: point.run.group).values():
            if len(group) > 1:  # a single setting has its closing table
                console.print(pivot(group))
        if found:
            console.print(escape(f"all of it, with curves: python -m lighttoken.report {config.output_dir}"))


def pivot(group: Sequence[Point]) -> Table:
    """The points of one task, model and recipe: a row per codec, a column per ratio of the configs.

    A cell has the mean score, the retention with its standard error, and the number of seeds if it is above one. The
    best score of a column is bold.
    """
    task, model, recipe = group[0].run.group
    title = ", ".join(filter(None, [f"{task} with {model}: score, retention", recipe]))
    table = Table(title=escape(title), title_justify="left")
    table.add_column("codec")
    reference = [point for point in group if point.run.codec == "none"]
    columns = grouped((point for point in group if point.run.codec != "none"), lambda point: point.run.ratio)
    ratios = sorted(columns, key=lambda ratio: ratio or 0.0)
    names = (["none"] if reference else []) + [f"{ratio:g}x" for ratio in ratios]
    for name in names:
        table.add_column(name, justify="right")
    if reference:
        best = _best(reference)
        table.add_row("none", _cell(best, bold=False), *[""] * len(ratios))
    for label in dict.fromkeys(point.run.label for ratio in ratios for point in columns[ratio]):
        cells = [""] if reference else []
        for ratio in ratios:
            here = [point for point in columns[ratio] if point.run.label == label]
            bold = len(columns[ratio]) > 1 and here == [_best(columns[ratio])]
            cells.append(_cell(here[0], bold) if here else "")
        table.add_row(escape(label), *cells)
    return table


def _best(rivals: Sequence[Point]) -> Point:
    sign = -1 if rivals[0].run.lower_is_better else 1
    return max(rivals, key=lambda point: sign * point.mean)


def _cell(point: Point, bold: bool) -> str:
    count = f" n={len(point.scores)}" if len(point.scores) > 1 else ""
    retention = point.retention_text if point.run.codec != "none" else ""
    text = escape(f"{point.mean:.4f} {retention}".strip() + count)
    return f"[bold]{text}[/bold]" if bold else text
