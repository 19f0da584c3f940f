"""The charts, described once: the page draws them with plotly, `figures` with matplotlib."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, TypeVar
from zlib import crc32

from lighttoken.dashboard.gather import Point, Run, artifacts, points

T = TypeVar("T")
K = TypeVar("K")
INK = "ink"  # the colour of text, in the light and in the dark
# Hues that stay apart for the colour-blind (after Okabe and Ito, and Tol) and on white and black. The two forms of the
# method have the warm ones to themselves; the others also differ in their markers, two codecs to a hue.
OURS = {"lighttoken": "#d55e00", "lighttoken_paper": "#e69f00"}
HUES = ("#2e86c8", "#009e73", "#cc6699", "#8c7ae6", "#999933", "#7f8c99")
OTHERS = (
    *("svd", "pq", "rq", "scalar", "orientation_ae", "hashing_trick"),
    *("opq", "lsq", "compositional_codes", "tensor_train", "near_lossless_binary", "vocabulary_pruning"),
)
MARKERS = ("circle", "square", "triangle-up", "diamond")
STAGES = ("#2e86c8", "#d55e00", "#009e73", "#cc6699", "#8c7ae6", "#999933", "#e69f00", "#7f8c99")
PAPER = "stated by the paper, not for this model"
BOUND = "Gaussian bound"
MOST_PANELS = 12  # of settings with stages: the latest


@dataclass
class Series:
    """A line of a panel. `error` is symmetric, None where there is none; `notes` are shown on hovering."""

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
    """A pair of axes with its series; without `x_ticks` the ticks are the library's own."""

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    log_x: bool = False
    log_y: bool = False
    x_ticks: list[float] | None = None


@dataclass
class Chart:
    """Panels under one heading; `empty` says why there are none."""

    name: str
    title: str
    caption: str
    panels: list[Panel]
    empty: str = ""
    columns: int = 3  # of panels, where there is room


def make_charts(runs: Sequence[Run]) -> list[Chart]:
    """Every chart of the dashboard, in its order."""
    return [
        score_chart(points(runs)),
        distortion_chart(artifacts(runs)),
        frequency_chart(artifacts(runs)),
        spectrum_chart(runs),
        training_chart(runs),
    ]


def style(codec: str) -> dict[str, Any]:
    """Colour, marker and width of a codec: the same in every chart and on every page."""
    if codec in OURS:
        return {"colour": OURS[codec], "marker": "circle", "width": 3.5 if codec == "lighttoken" else 2.5}
    if codec == "none":
        return {"colour": INK, "marker": None, "dash": "dash"}
    place = OTHERS.index(codec) if codec in OTHERS else len(OTHERS) + crc32(codec.encode()) % len(OTHERS)
    turn, hue = divmod(place, len(HUES))
    return {"colour": HUES[hue], "marker": MARKERS[turn], "dash": "solid" if turn % 2 == 0 else "dot"}


def place(codec: str) -> int:
    """Where a codec stands in legends and tables: ours first, unknown ones last."""
    known = [*OURS, *OTHERS]
    return known.index(codec) if codec in known else len(known)


def score_chart(found: Sequence[Point]) -> Chart:
    """Score against ratio: a panel per task, model and recipe, a line per codec and setting."""
    panels = []
    for (task, model, recipe), group in _grouped(found, lambda point: point.runs[0].group).items():
        series = [
            Series(
                label,
                x=[point.ratio for point in line],
                y=[point.mean for point in line],
                error=[point.std for point in line],
                notes=[_note(point) for point in line],
                **style(line[0].runs[0].codec),
            )
            for label, line in _lines(group, lambda point: point.runs[0])
            if line[0].runs[0].codec != "none"
        ]
        references = [point for point in group if point.runs[0].is_reference]
        if references:
            best = max(references, key=lambda point: (len(point.runs), point.mean))
            ratios = [x for each in series for x in each.x] + [25.0, 103.0]
            note = f"{best.runs[0].label}: {_note(best)}"
            ends = [min(ratios) / 1.15, max(ratios) * 1.15]
            series.append(Series("uncompressed", ends, [best.mean] * 2, notes=[note] * 2, **style("none")))
            stated = ["the uncompressed score kept at 25x", "up to 6 % of it lost at 103x"]
            series.append(
                Series(PAPER, [25, 103], [best.mean, 0.94 * best.mean], INK, notes=stated, marker="star-open", width=0)
            )
        names = sorted({name for point in group for name in _score_names(point.runs[0])})
        y_label = names[0] if len(names) == 1 else f"mean of {', '.join(names)}"
        seeds = sorted({len(point.scores) for point in group})
        n = f"n = {seeds[0]}" if len(seeds) == 1 else f"n = {seeds[0]} to {seeds[-1]}"
        title = ", ".join(part for part in (task, model, recipe, n) if part)
        ticks = sorted({round(x, 1) for x in _asked(group)}) or [25.0, 103.0]
        panels.append(Panel(title, "ratio (times smaller)", y_label, series, log_x=True, x_ticks=ticks))
    return Chart(
        "score",
        "Score against ratio",
        "Mean of the validation score over seeds, with one standard deviation where there is more than one seed. "
        "Uncompressed: the better of the embedding frozen and trained. Stars: what is stated for LightToken (KDD 2023) "
        "in general, at 25x the uncompressed score and at 103x up to 6 % less, drawn against this model's own.",
        panels,
        "No finished run has a score yet.",
    )


def distortion_chart(found: Sequence[Run]) -> Chart:
    """Table error against ratio with the bound: a panel per model."""
    panels = []
    for model, group in _grouped(found, _model).items():
        series = []
        for label, line in _lines(group, lambda run: run):
            by_ratio = sorted(_grouped(line, lambda run: run.ratio).items())
            ratios = [fmean(run.record["ratio"] for run in runs) for _, runs in by_ratio]
            errors = [fmean(run.record["compression"]["nmse"] for run in runs) for _, runs in by_ratio]
            notes = [_distortion_note(runs) for _, runs in by_ratio]
            series.append(Series(label, ratios, errors, notes=notes, **style(line[0].codec)))
        bounds = [run.record["table"]["gaussian_bound"] for run in group if "gaussian_bound" in run.record["table"]]
        if bounds:
            largest = 1.5 * max(x for each in series for x in each.x)
            smallest = min(x for each in series for x in each.x) / 1.5
            least = min(y for each in series for y in each.y) / 10
            shown = [
                (x, y)
                for x, y in zip(bounds[0]["ratio"], bounds[0]["nmse"], strict=True)
                if smallest <= x <= largest and y >= least
            ]
            x, y = [list(each) for each in zip(*shown, strict=True)] if shown else ([], [])
            series.append(Series(BOUND, x, y, INK, marker=None, dash="dash"))
        ticks = sorted({round(run.ratio, 1) for run in group if run.ratio})
        panels.append(Panel(model, "ratio (times smaller)", "nmse", series, log_x=True, log_y=True, x_ticks=ticks))
    return Chart(
        "distortion",
        "Rate-distortion",
        "nmse: mean squared error of the decoded table over the variance of its entries, all rows weighing the same; "
        "mean over seeds. The bound is that of a Gaussian with the table's covariance, all bytes spent on codes "
        "(reverse water-filling). A codec may lie above others here on purpose: some weigh rows or directions.",
        panels,
        "No artifact has been measured yet.",
    )


def frequency_chart(found: Sequence[Run]) -> Chart:
    """Error by tenth of token frequency: a panel per model and ratio."""
    measured = [run for run in found if run.record["compression"].get("nmse_by_frequency_tenth")]
    panels = []
    for (model, ratio), group in sorted(_grouped(measured, lambda run: (_model(run), run.ratio)).items()):
        series = []
        for label, line in _lines(group, lambda run: run):
            tenths = zip(*(run.record["compression"]["nmse_by_frequency_tenth"] for run in line), strict=True)
            means = [fmean(each) for each in tenths]
            series.append(Series(label, [float(i + 1) for i in range(len(means))], means, **style(line[0].codec)))
        panels.append(
            Panel(f"{model} at {ratio:g}x", "tenth of the vocabulary (1: most frequent)", "nmse", series,
                  x_ticks=[float(i) for i in range(1, 11)])
        )  # fmt: skip
    return Chart(
        "frequency",
        "Error by token frequency",
        "nmse of each tenth of the vocabulary, from the most frequent tokens in English text to the rarest. The order "
        "is that of the wordfreq prior for every codec, whatever prior it follows: the tenths hold the same rows.",
        panels,
        "No record tells the error by frequency: the artifacts are of an earlier version, or the tokenizer is unknown.",
    )


def spectrum_chart(runs: Sequence[Run]) -> Chart:
    """Singular values of every model seen."""
    tables = {_model(run): run.record["table"]["singular_values"] for run in runs if run.record["table"]}
    series = [
        Series(
            model,
            [float(i) for i in told["index"]],
            [value / told["value"][0] for value in told["value"]],
            colour=STAGES[i % len(STAGES)],
            notes=[f"{value:g}" for value in told["value"]],
            marker=None,
            width=2.5,
        )
        for i, (model, told) in enumerate(sorted(tables.items()))
    ]
    panel = Panel("", "index of the singular value", "singular value / largest", series, log_x=True, log_y=True)
    return Chart(
        "spectrum",
        "Singular values",
        "Of the token-embedding table of every model seen, over the largest. The flatter, the less low rank can do.",
        [panel] if series else [],
        "No record tells the singular values: they are of an earlier version.",
    )


def training_chart(runs: Sequence[Run]) -> Chart:
    """Saturation and temperature over the steps of a codec's stages: the latest run that trained each setting."""
    trained: dict[tuple, Run] = {}
    for run in runs:  # latest first
        if any(name.endswith("/saturation") for name in run.curves):
            trained.setdefault((run.label, run.ratio, _model(run)), run)
    panels = []
    for (label, ratio, model), run in sorted(
        list(trained.items())[:MOST_PANELS], key=lambda item: (item[0][2], item[0][0], item[0][1] or 0)
    ):
        where = f"{label} at {ratio:g}x, {model}" if ratio else f"{label}, {model}"
        for what, y_label in (("saturation", "share of saturated units"), ("temperature", "temperature")):
            series = _stages(run, what)
            if series:
                log_y = what == "temperature"
                panels.append(Panel(f"{what}: {where}", "step, stages in turn", y_label, series, log_y=log_y))
    return Chart(
        "training",
        "Saturation and temperature by stage",
        "Of codecs whose stages are trained by gradient, the latest run of each setting that made its artifact. A "
        "stage stops just short of saturation, where units no longer learn, and the next begins on what is left.",
        panels,
        "No run here has trained a stage and logged it: codecs without training have no such curves, and a run that "
        "reuses an artifact trains none.",
        columns=2,
    )


def _stages(run: Run, what: str) -> list[Series]:
    """The curve of every stage, each beginning where the one before ended."""
    numbers = sorted(
        int(name.partition("/")[0].removeprefix("stage"))
        for name in run.curves
        if name.endswith(f"/{what}") and name.partition("/")[0].removeprefix("stage").isdigit()
    )
    series, offset = [], 0.0
    for i, number in enumerate(numbers):
        curve = run.curves[f"stage{number}/{what}"]
        xs, ys = [offset + step for step, _ in curve], [value for _, value in curve]
        series.append(Series(f"stage {number}", xs, ys, STAGES[i % len(STAGES)], marker=None, width=2))
        offset += max(
            step for name, other in run.curves.items() if name.startswith(f"stage{number}/") for step, _ in other
        )
    return series


def _model(run: Run) -> str:
    return str(run.record["model"])


def _asked(group: Iterable[Point]) -> list[float]:
    return [run.ratio for point in group for run in point.runs if run.ratio and run.codec != "none"]


def _score_names(run: Run) -> list[str]:
    return [name for name in run.record["metrics"] if name.startswith("val") and not name.endswith("/loss")]


def _note(point: Point) -> str:
    spread = f" ± {point.std:.4f}" if point.std is not None else ""
    told = f"{point.mean:.4f}{spread}, n = {len(point.scores)}"
    kept = retention_text(point)
    return f"{told}, retention {kept}" if kept and point.runs[0].codec != "none" else told


def retention_text(point: Point) -> str:
    """Such as `0.981 ± 0.004`; empty without a reference."""
    kept = point.retention
    if kept["retention"] is None:
        return ""
    return f"{kept['retention']:.3f}" + (
        f" ± {kept['standard_error']:.3f}" if kept["standard_error"] is not None else ""
    )


def _distortion_note(runs: list[Run]) -> str:
    weighted = [
        run.record["compression"]["weighted_nmse"] for run in runs if "weighted_nmse" in run.record["compression"]
    ]
    told = f"n = {len(runs)}, {fmean(run.record['artifact_bytes'] or 0 for run in runs):,.0f} bytes"
    return told + (f", weighted nmse {fmean(weighted):.4f}" if weighted else "")


def _lines(items: Iterable[T], run_of: Callable[[T], Run]) -> list[tuple[str, list[T]]]:
    """Items by the label of their run, in the order of legends."""
    lines = _grouped(items, lambda item: run_of(item).label)
    return sorted(lines.items(), key=lambda line: (place(run_of(line[1][0]).codec), line[0]))


def _grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups
