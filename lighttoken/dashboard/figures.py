"""The charts as PNG and SVG files, for papers and READMEs."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lighttoken.artifact.files import write_atomically
from lighttoken.dashboard.charts import Chart, Panel
from lighttoken.dashboard.style import INK

MARKERS = {"circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "triangle-down": "v", "cross": "P"}
MARKERS |= {"pentagon": "p", "x": "X", "star-open": "*"}
DASHES = {"solid": "-", "dash": "--", "dot": ":"}
PANEL_INCHES = (4.6, 3.4)
TITLE_WIDTH = 56  # characters that fit above a panel
MAX_PANELS, MAX_LABELS = 30, 60  # in a figure; with 60 panels, the layout takes a minute


def write_figures(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Write NAME.png and NAME.svg of every chart that has panels; returns the files."""
    written = []
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "lighttoken", "svg.fonttype": "none"}):
        for chart in charts:
            if not chart.panels:
                continue
            figure = draw(chart)
            for suffix in ("png", "svg"):
                path = folder / f"{chart.name}.{suffix}"
                metadata = {"Date": None} if suffix == "svg" else None
                content = io.BytesIO()
                figure.savefig(content, format=suffix, dpi=150, bbox_inches="tight", metadata=metadata)
                write_atomically(path, content.getbuffer())
                written.append(path)
    return written


def draw(chart: Chart) -> Figure:
    """A matplotlib figure with a subplot for every panel and one legend for all.

    It has MAX_PANELS panels and MAX_LABELS labels at most, and says so in the title; the page has all.
    """
    panels = chart.panels[:MAX_PANELS]
    columns = min(chart.columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(6.0, columns * PANEL_INCHES[0]), rows * PANEL_INCHES[1] + 1), layout="constrained")
    handles: dict[str, Any] = {}
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        for series in panel.series:
            drawn = axes.errorbar(
                series.x,
                series.y,
                yerr=None if series.error is None else [error or 0 for error in series.error],
                color="black" if series.colour == INK else series.colour,
                linestyle=DASHES[series.dash] if series.width else "none",
                linewidth=series.width or None,
                marker=MARKERS.get(series.marker or ""),
                markersize=9 if series.marker == "star-open" else 4.5,
                markerfacecolor="none" if series.marker == "star-open" else None,
                capsize=2,
                elinewidth=1,
            )
            handles.setdefault(series.label, drawn)
        _set_axes(axes, panel)
    shown = "" if len(panels) == len(chart.panels) else f": {len(panels)} of {len(chart.panels)} panels"
    if len(handles) > MAX_LABELS:
        shown += f"; {MAX_LABELS} of {len(handles)} labels"
    figure.suptitle(chart.title + shown)
    texts = [_plain(label) for label in handles][:MAX_LABELS]
    figure.legend([*handles.values()][:MAX_LABELS], texts, loc="outside lower center", ncols=2 * columns, frameon=False)
    return figure


def _set_axes(axes: matplotlib.axes.Axes, panel: Panel) -> None:
    title = textwrap.fill(panel.title, TITLE_WIDTH)  # the differences among recipes can be long
    axes.set_title(_plain(title), fontsize="medium")
    axes.set(xlabel=_plain(panel.x_label), ylabel=_plain(panel.y_label))
    axes.grid(alpha=0.25)
    if panel.log_x:
        axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log")
    if panel.x_ticks:
        axes.xaxis.set_major_locator(FixedLocator(panel.x_ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _plain(text: str) -> str:
    """Text without formulas: matplotlib starts one at a dollar sign."""
    return text.replace("$", r"\$")
