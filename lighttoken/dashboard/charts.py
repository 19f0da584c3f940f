"""The charts, described once: the page draws them with plotly, `figures` with matplotlib."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TypeVar

from lighttoken.dashboard.gather import Point, Run, artifacts, grouped, points
from lighttoken.dashboard.style import CURVE_COLOURS, INK, legend_position, style
from lighttoken.run.scores import is_score

T = TypeVar("T")
PAPER = "stated by the paper, not for this model"
BOUND = "Gaussian bound"
MAX_PANELS = 12  # settings in the training chart: the latest ones


@dataclass
class Series:
    """A line of a panel. `error` is symmetric, None for a point without one; `notes` appear under the mouse."""

    label: str
    x: list[float]
    y: list[float]
    colour: str
    error: list[float | None] | None = None
    notes: list[str] = field(default_factory=list)
    marker: str | None = "circle"
    dash: str = "solid"  # or dash, dot
    width: float = 1.5  # 0: markers alone


@dataclass
class Panel:
    """A pair of axes with its series. Without `x_ticks` the plotting library chooses the ticks."""

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    log_x: bool = False
    log_y: bool = False
    x_ticks: list[float] | None = None


@dataclass
class Chart:
    """Panels under one heading. `empty` is the text of a chart without panels."""

    name: str
    title: str
    caption: str
    panels: list[Panel]
    empty: str = ""
    columns: int = 3  # panels side by side, if there is room


def make_charts(runs: Sequence[Run]) -> list[Chart]:
    """Every chart of the dashboard, in its order."""
    return [
        score_chart(points(runs)),
        distortion_chart(artifacts(runs)),
        frequency_chart(artifacts(runs)),
        spectrum_chart(runs),
        training_chart(runs),
    ]


def score_chart(scored: Sequence[Point]) -> Chart:
    """Score against ratio: a panel for every task, model and recipe, a line for every codec and setting."""
    return Chart(
        "score",
        "Score against ratio",
        "Mean validation score over seeds, with one standard deviation if there are several seeds. The dashed line is "
        "the uncompressed model, with the embedding frozen or trained, whichever scores better. The stars are what "
        "the paper of LightToken (KDD 2023) states in general: no loss at 25x, a loss of up to 6 % at 103x.",
        [_score_panel(group) for group in grouped(scored, lambda point: point.run.group).values()],
        "No finished run has a score yet.",
    )


def _score_panel(group: list[Point]) -> Panel:
    compressed = [point for point in group if point.run.codec != "none"]
    series = [
        Series(
            label,
            x=[point.ratio for point in line],
            y=[point.mean for point in line],
            error=[point.std for point in line],
            notes=[_note(point) for point in line],
            **line[0].run.look,
        )
        for label, line in _lines(compressed, lambda point: point.run)
    ]
    references = [point for point in group if point.run.is_reference]
    if references:
        sign = -1 if group[0].run.lower_is_better else 1
        best = max(references, key=lambda point: (len(point.runs), sign * point.mean))
        ratios = [point.ratio for point in compressed] + [25.0, 103.0]
        ends, note = [min(ratios) / 1.15, max(ratios) * 1.15], f"{best.run.label}: {_note(best)}"
        series.append(Series("uncompressed", ends, [best.mean] * 2, notes=[note] * 2, **style("none")))
        notes = ["the uncompressed score at 25x", "up to 6 % below the uncompressed score at 103x"]
        stated = [best.mean, 0.94 * best.mean]
        if not best.run.lower_is_better:  # the paper has no perplexity
            series.append(Series(PAPER, [25, 103], stated, INK, notes=notes, marker="star-open", width=0))
    metrics = {name for point in group for name in point.run.record["metrics"]}
    names = sorted(name for name in metrics if name.startswith("val") and is_score(name))
    seeds = sorted({len(point.scores) for point in group})
    n = f"n = {seeds[0]}" if len(seeds) == 1 else f"n = {seeds[0]} to {seeds[-1]}"
    y_label = names[0] if len(names) == 1 else f"mean of {', '.join(names)}"
    y_label += " (lower is better)" if group[0].run.lower_is_better else ""
    ticks = sorted({round(run.ratio, 1) for point in compressed for run in point.runs if run.ratio}) or [25.0, 103.0]
    return Panel(f"{group[0].run.title}, {n}", "ratio (times smaller)", y_label, series, log_x=True, x_ticks=ticks)


def distortion_chart(measured: Sequence[Run]) -> Chart:
    """Table error against ratio, with the bound: a panel for every model."""
    return Chart(
        "distortion",
        "Rate-distortion",
        "nmse is the mean squared error of the decoded table divided by the variance of its entries. All rows count "
        "the same. It is averaged over seeds. The bound is that of a Gaussian with the table's covariance, with all "
        "bytes spent on codes (reverse water-filling). Some codecs weigh rows or directions, and accept a higher nmse.",
        [_distortion_panel(model, group) for model, group in grouped(measured, lambda run: run.model).items()],
        "No artifact has been measured yet.",
    )


def _distortion_panel(model: str, group: list[Run]) -> Panel:
    series = []
    for label, line in _table_lines(group):
        by_ratio = [runs for _, runs in sorted(grouped(line, lambda run: run.ratio).items())]
        ratios = [fmean(run.record["ratio"] for run in runs) for runs in by_ratio]
        errors = [fmean(run.record["compression"]["nmse"] for run in runs) for runs in by_ratio]
        notes = [_distortion_note(runs) for runs in by_ratio]
        series.append(Series(label, ratios, errors, notes=notes, **line[0].table_look))
    bounds = [run.record["table"]["gaussian_bound"] for run in group if "gaussian_bound" in run.record["table"]]
    if bounds:
        # The bound is drawn a little beyond the range of the codecs.
        ratios = [ratio for line in series for ratio in line.x]
        lowest = min(error for line in series for error in line.y) / 10
        shown = [
            (ratio, error)
            for ratio, error in zip(bounds[0]["ratio"], bounds[0]["nmse"], strict=True)
            if min(ratios) / 1.5 <= ratio <= 1.5 * max(ratios) and error >= lowest
        ]
        x, y = [ratio for ratio, _ in shown], [error for _, error in shown]
        series.append(Series(BOUND, x, y, INK, marker=None, dash="dash"))
    ticks = sorted({round(run.ratio, 1) for run in group if run.ratio})
    return Panel(model, "ratio (times smaller)", "nmse", series, log_x=True, log_y=True, x_ticks=ticks)


def frequency_chart(measured: Sequence[Run]) -> Chart:
    """Error by tenth of token frequency: a panel for every model and ratio."""
    with_tenths = [run for run in measured if run.record["compression"].get("nmse_by_frequency_tenth")]
    panels = []
    for (model, ratio), group in sorted(grouped(with_tenths, lambda run: (run.model, run.ratio)).items()):
        series = []
        for label, line in _table_lines(group):
            tenths = zip(*(run.record["compression"]["nmse_by_frequency_tenth"] for run in line), strict=True)
            means = [fmean(errors) for errors in tenths]
            series.append(Series(label, [float(i + 1) for i in range(len(means))], means, **line[0].table_look))
        x_label, ticks = "tenth of the vocabulary (1: most frequent)", [float(i) for i in range(1, 11)]
        panels.append(Panel(f"{model} at {ratio:g}x", x_label, "nmse", series, x_ticks=ticks))
    return Chart(
        "frequency",
        "Error by token frequency",
        "nmse of every tenth of the vocabulary, from the most frequent tokens of English text to the rarest. The "
        "wordfreq prior orders the tokens for all codecs, whatever prior they use, so the tenths hold the same rows.",
        panels,
        "No record has the error by token frequency: the artifacts are from an earlier version, or the tokenizer is "
        "unknown.",
    )


def spectrum_chart(runs: Sequence[Run]) -> Chart:
    """Singular values of the table of every model."""
    tables = {run.model: run.record["table"]["singular_values"] for run in runs if run.record["table"]}
    series = [
        Series(
            model,
            [float(index) for index in spectrum["index"]],
            [value / spectrum["value"][0] for value in spectrum["value"]],
            colour=CURVE_COLOURS[i % len(CURVE_COLOURS)],
            notes=[f"{value:g}" for value in spectrum["value"]],
            marker=None,
            width=2.5,
        )
        for i, (model, spectrum) in enumerate(sorted(tables.items()))
    ]
    panel = Panel("", "index of the singular value", "singular value / largest", series, log_x=True, log_y=True)
    return Chart(
        "spectrum",
        "Singular values",
        "Singular values of the token-embedding table of every model, divided by the largest. The flatter the curve, "
        "the less a low-rank table can keep.",
        [panel] if series else [],
        "No record has the singular values: the records are from an earlier version.",
    )


def training_chart(runs: Sequence[Run]) -> Chart:
    """Saturation and temperature over the steps of a codec's stages: the latest run that trained a setting."""
    trained: dict[tuple, Run] = {}
    for run in runs:  # latest first
        if any(name.endswith("/saturation") for name in run.curves):
            trained.setdefault((run.model, run.table_label, run.ratio or 0), run)
    panels = []
    for (model, label, ratio), run in sorted(list(trained.items())[:MAX_PANELS], key=lambda item: item[0]):
        title = f"{label} at {ratio:g}x, {model}" if ratio else f"{label}, {model}"
        for quantity, y_label in (("saturation", "share of saturated units"), ("temperature", "temperature")):
            series = _stages(run, quantity)
            if series:
                log_y = quantity == "temperature"
                panels.append(Panel(f"{quantity}: {title}", "step, stage after stage", y_label, series, log_y=log_y))
    return Chart(
        "training",
        "Saturation and temperature by stage",
        "For codecs that train their stages by gradient descent, the latest run of every setting that made its own "
        "artifact. A saturated unit no longer learns. So a stage stops just before saturation, and the next stage "
        "starts on the residual.",
        panels,
        "No run here has trained a stage and logged it. Codecs without training have no such curves, and a run that "
        "reuses an artifact trains no stage.",
        columns=2,
    )


def _stages(run: Run, quantity: str) -> list[Series]:
    """The curves of all stages, one behind the other."""
    steps: dict[int, float] = defaultdict(float)  # stage -> its last step, in any curve
    for name, curve in run.curves.items():
        stage = name.partition("/")[0].removeprefix("stage")
        if stage.isdecimal() and len(stage) < 9:
            steps[int(stage)] = max(steps[int(stage)], *(step for step, _ in curve))
    series: list[Series] = []
    offset = 0.0
    for number in sorted(steps):
        if curve := run.curves.get(f"stage{number}/{quantity}", []):
            xs, ys = [offset + step for step, _ in curve], [value for _, value in curve]
            colour = CURVE_COLOURS[len(series) % len(CURVE_COLOURS)]
            series.append(Series(f"stage {number}", xs, ys, colour, marker=None, width=2))
            offset += steps[number]
    return series


def _note(point: Point) -> str:
    note = f"{point.mean:.4f}{f' ± {point.std:.4f}' if point.std is not None else ''}, n = {len(point.scores)}"
    return f"{note}, retention {point.retention_text}" if point.retention_text and point.run.codec != "none" else note


def _distortion_note(runs: list[Run]) -> str:
    note = f"n = {len(runs)}, {fmean(run.record['artifact_bytes'] or 0 for run in runs):,.0f} bytes"
    summaries = [run.record["compression"] for run in runs]
    weighted = [summary["weighted_nmse"] for summary in summaries if "weighted_nmse" in summary]
    return note + (f", weighted nmse {fmean(weighted):.4f}" if weighted else "")


def _lines(items: Iterable[T], run_of: Callable[[T], Run]) -> list[tuple[str, list[T]]]:
    """Items by the label of their run, in the order of legends."""
    lines = grouped(items, lambda item: run_of(item).label)
    return sorted(lines.items(), key=lambda line: (legend_position(run_of(line[1][0]).codec), line[0]))


def _table_lines(measured: Iterable[Run]) -> list[tuple[str, list[Run]]]:
    """Runs by the label of their artifact, in the order of legends."""
    lines = grouped(measured, lambda run: run.table_label)
    return sorted(lines.items(), key=lambda line: (legend_position(line[1][0].codec), line[0]))
