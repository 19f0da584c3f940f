"""What a sweep says at its end: which codec is best at which ratio."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lighttoken.dashboard.gather import Point, constant_score, gather, grouped, points
from lighttoken.dashboard.tables import by_ratio
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
    best score of a column is bold. Below stands the score of a constant answer, if the records have it.
    """
    ratios, rows = by_ratio(group, _cell)
    table = Table("codec", title=escape(f"{group[0].run.title}: score, retention"), title_justify="left")
    for ratio in ratios:
        table.add_column(f"{ratio:g}x", justify="right")
    for label, cells in rows.items():
        table.add_row(escape(label), *(cells.get(ratio, "") for ratio in ratios))
    if (constant := constant_score(group)) is not None:
        table.caption, table.caption_justify = f"a constant answer scores {constant:.4f}", "left"
    return table


def _cell(point: Point, bold: bool) -> str:
    count = f" n={len(point.scores)}" if len(point.scores) > 1 else ""
    retention = point.retention_text if point.run.codec != "none" else ""
    text = escape(f"{point.mean:.4f} {retention}".strip() + count)
    return f"[bold]{text}[/bold]" if bold else text
