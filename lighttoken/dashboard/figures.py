"""The charts as PNG and SVG files for READMEs, and as PDF and SVG files for papers."""

import io
import logging
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lighttoken.artifact.files import make_directory, write_atomically
from lighttoken.dashboard.charts import Chart, Panel, Series
from lighttoken.dashboard.style import INK

MARKERS = {"circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "triangle-down": "v", "cross": "P"}
MARKERS |= {"pentagon": "p", "x": "X", "star-open": "*"}
DASHES = {"solid": "-", "dash": "--", "dot": ":"}
DPI = 150
PANEL_INCHES = (4.6, 3.4)
TITLE_WIDTH = 56  # characters that fit above a panel
COLUMN_INCHES = (3.3, 2.4)  # a figure in a column of a paper, without its legend
PAPER_STYLE: dict[Any, Any] = {
    **{"font.size": 8, "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7},
    **{"axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "grid.linewidth": 0.4},
    **{"svg.hashsalt": "lighttoken", "svg.fonttype": "none", "pdf.fonttype": 42},  # text stays text
}
MAX_PANELS, MAX_LABELS = 30, 60  # in a figure; with 60 panels, the layout takes a minute


def write_figures(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Write NAME.png and NAME.svg of every chart that has panels; returns the files."""
    written = []
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "lighttoken", "svg.fonttype": "none"}):
        for chart in charts:
            if not chart.panels:
                continue
            figure = draw(chart)
            written += [_write(figure, folder / f"{chart.name}.{suffix}") for suffix in ("png", "svg")]
    return written


def write_paper_figures(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Write a PDF and an SVG of every panel in the style of a paper, as CHART_PANEL.pdf; returns the files."""
    written: list[Path] = []
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # which tells of every table of a font
    with matplotlib.rc_context(PAPER_STYLE):
        for chart in charts:
            markers = distinct_markers(chart)
            for number, panel in enumerate(chart.panels[:MAX_PANELS], 1):
                title = re.sub(r", n = .*", "", panel.title.lower())  # more seeds do not change the name
                name = "_".join(filter(None, [chart.name, re.sub(r"[^a-z0-9]+", "-", title).strip("-")[:60]]))
                name += f"_{number}" if folder / f"{name}.pdf" in written else ""
                make_directory(folder)
                figure = draw_column(panel, markers)
                written += [_write(figure, folder / f"{name}.{suffix}") for suffix in ("pdf", "svg")]
    return written


def draw_column(panel: Panel, markers: dict[str, str]) -> Figure:
    """A panel as wide as a column of a paper: equal lines, a marker for every label, no headline."""
    count, longest = len(panel.series), max(len(_short(series.label)) for series in panel.series)
    columns = 3 if longest <= 12 else 2 if longest <= 24 else 1
    rows = min(-(-count // columns), MAX_LABELS)
    figure = Figure(figsize=(COLUMN_INCHES[0], COLUMN_INCHES[1] + 0.15 * rows), layout="constrained")
    axes = figure.add_subplot()
    for series in panel.series:
        _draw_series(axes, series, 1.0 if series.width else 0, markers.get(series.label, ""), 3.5)
    _set_axes(axes, panel, "small")
    handles, labels = axes.get_legend_handles_labels()
    texts = [_plain(_short(label)) for label in labels[:MAX_LABELS]]
    figure.legend(handles[:MAX_LABELS], texts, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def distinct_markers(chart: Chart) -> dict[str, str]:
    """A marker for every label of a chart, so that nobody needs the colours; none for lines of reference."""
    labels = {series.label: series for panel in chart.panels for series in panel.series}
    coloured = [label for label, series in labels.items() if series.colour != INK]
    cycle = [marker for marker in MARKERS.values() if marker != "*"]
    markers = {label: cycle[i % len(cycle)] for i, label in enumerate(coloured)}
    return {label: MARKERS.get(series.marker or "", "") for label, series in labels.items()} | markers


def _write(figure: Figure, path: Path) -> Path:
    content, kind = io.BytesIO(), path.suffix[1:]
    # The layout takes seconds with many panels. `savefig` would make it again for every format, and draw twice.
    if layout := figure.get_layout_engine():
        layout.execute(figure)
        figure.set_layout_engine("none")
    figure.dpi = DPI
    if kind == "png":
        FigureCanvasAgg(figure).print_png(content)
    elif kind == "svg":
        FigureCanvasSVG(figure).print_svg(content, metadata={"Date": None})
    else:
        from matplotlib.backends.backend_pdf import FigureCanvasPdf  # here: its fonts take half a second to import

        FigureCanvasPdf(figure).print_pdf(content, metadata={"CreationDate": None})
    write_atomically(path, content.getbuffer())
    return path


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
            drawn = _draw_series(axes, series, series.width, MARKERS.get(series.marker or "", ""), 4.5)
            handles.setdefault(series.label, drawn)
        _set_axes(axes, panel)
    shown = "" if len(panels) == len(chart.panels) else f": {len(panels)} of {len(chart.panels)} panels"
    if len(handles) > MAX_LABELS:
        shown += f"; {MAX_LABELS} of {len(handles)} labels"
    figure.suptitle(chart.title + shown)
    texts = [_plain(label) for label in handles][:MAX_LABELS]
    figure.legend([*handles.values()][:MAX_LABELS], texts, loc="outside lower center", ncols=2 * columns, frameon=False)
    return figure


def _draw_series(axes: matplotlib.axes.Axes, series: Series, width: float, marker: str, size: float) -> Any:
    return axes.errorbar(
        series.x,
        series.y,
        yerr=None if series.error is None else [error or 0 for error in series.error],
        color="black" if series.colour == INK else series.colour,
        linestyle=DASHES[series.dash] if series.width else "none",
        linewidth=width or None,
        marker=marker,
        markevery=max(1, len(series.x) // 12),
        markersize=2 * size if marker == "*" else size,
        markerfacecolor="none" if marker == "*" else None,
        capsize=size / 2,
        elinewidth=min(1, width or 1),
        label=series.label if not series.label.startswith("_") else f" {series.label}",  # which would hide it
    )


def _set_axes(axes: matplotlib.axes.Axes, panel: Panel, title_size: str = "medium") -> None:
    title = textwrap.fill(panel.title, TITLE_WIDTH)  # the differences among recipes can be long
    axes.set_title(_plain(title), fontsize=title_size)
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


def _short(label: str) -> str:
    """A label for a narrow legend; the caption has to say what the paper's points are."""
    return label.removesuffix(", not for this model")


def _plain(text: str) -> str:
    """Text without formulas: matplotlib starts one at a dollar sign."""
    return text.replace("$", r"\$")
