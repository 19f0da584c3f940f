"""Records as the dashboard shows them: runs with their curves, and points, the runs of one setting over seeds."""

import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeVar

from lighttoken.dashboard.curves import Curves, read_curves
from lighttoken.dashboard.settings import codec_settings, differences, dotted, recipe_settings, table_settings
from lighttoken.dashboard.style import style
from lighttoken.run.reading import RECORD_FILE, leave_out, path_text, read_records
from lighttoken.run.records import is_reference
from lighttoken.run.scores import lower_is_better, retention, task_score

T = TypeVar("T")
K = TypeVar("K")


@dataclass
class Run:
    """A record with its curves.

    `variant` has the settings that differ among runs of the same codec, such as `coefficient_precision=int8`;
    `table_variant` those of them that the artifact depends on. `recipe` has those that differ in the rest of the config
    among runs of the same task and model, and those that cut the run short. All may be empty. Scores of runs of one
    `group` are compared with each other.
    """

    record: dict[str, Any]
    name: str  # its folder, relative to the one that all folders of the report share
    curves: Curves
    variant: str = ""
    table_variant: str = ""
    numbers: tuple[int, int] = (0, 0)  # of the variant and of the table's variant among those of the codec
    recipe: str = ""
    retention: float | None = None

    @property
    def codec(self) -> str:
        return str(self.record["codec"])

    @property
    def model(self) -> str:
        return str(self.record["model"])

    @property
    def label(self) -> str:
        return f"{self.codec} ({self.variant})" if self.variant else self.codec

    @property
    def table_label(self) -> str:
        """The name of its artifact: runs that differ in healing or fine-tuning alone share it."""
        return f"{self.codec} ({self.table_variant})" if self.table_variant else self.codec

    @property
    def look(self) -> dict[str, Any]:
        """Colour, marker, dash and width, see `style`."""
        return style(self.codec, self.numbers[0])

    @property
    def table_look(self) -> dict[str, Any]:
        return style(self.codec, self.numbers[1])

    @property
    def group(self) -> tuple[str, str, str]:
        return str(self.record["task"]), self.model, self.recipe

    @cached_property
    def epochs(self) -> int | None:
        """The epochs of its training at most; None for a task without training."""
        epochs = dotted(self.record["config"]).get("trainer.max_epochs")
        return epochs if self.trains and isinstance(epochs, int) and epochs > 0 else None

    @property
    def title(self) -> str:
        """The heading of its group: task, model, epochs, recipe."""
        named = self.epochs is None or "max_epochs=" in self.recipe
        epochs = "" if named else f"{self.epochs} epoch{'s' if self.epochs != 1 else ''}"
        return ", ".join(filter(None, [*self.group[:2], epochs, self.recipe]))

    @property
    def trains(self) -> bool:
        """Whether the task trains the model, so that settings of the training make a difference."""
        return bool(self.record["config"].get("finetune"))

    @property
    def is_reference(self) -> bool:
        return is_reference(self.record)

    @property
    def ratio(self) -> float | None:
        """The ratio in the config, else the measured one."""
        if self.codec == "none":
            return 1.0
        return self.record["ratio_asked"] or self.record["ratio"]

    @cached_property
    def score(self) -> float | None:
        """The mean of the task's validation scores; None for a run that is not finished."""
        score = task_score(self.record["metrics"]) if self.record["status"] == "done" else math.nan
        return score if math.isfinite(score) else None

    @property
    def constant(self) -> float | None:
        """The score of one answer for all rows; None for a record without it."""
        score = task_score(self.record["constant"])
        return score if math.isfinite(score) else None

    @property
    def lower_is_better(self) -> bool:
        """Whether, of two scores of this task, the lower one is better."""
        return lower_is_better(self.record["metrics"])


@dataclass
class Point:
    """The finished runs of one task, model, recipe, codec, variant and ratio: the latest of every seed."""

    runs: list[Run]
    reference: "Point | None" = None  # the uncompressed one

    @property
    def run(self) -> Run:
        """One of the runs, for the properties that they share."""
        return self.runs[0]

    @property
    def ratio(self) -> float:
        """The mean of the measured ratios."""
        return fmean(run.record["ratio"] for run in self.runs)

    @cached_property
    def by_seed(self) -> dict[int, float]:
        return {run.record["seed"]: run.score for run in self.runs if run.score is not None}

    @property
    def references(self) -> dict[int, float]:
        """The scores of the uncompressed runs of the same seeds."""
        scores = self.reference.by_seed if self.reference else {}
        return {seed: score for seed, score in scores.items() if seed in self.by_seed}

    @property
    def scores(self) -> list[float]:
        return [*self.by_seed.values()]

    @property
    def mean(self) -> float:
        return fmean(self.scores)

    @cached_property
    def std(self) -> float | None:
        """None for one seed."""
        return stdev(self.scores) if len(self.scores) > 1 else None

    @cached_property
    def retention(self) -> dict[str, float | None]:
        """`retention` and its `standard_error` over the seeds that have a reference; None if no seed has one."""
        pairs = [(score, self.references[seed]) for seed, score in self.by_seed.items() if seed in self.references]
        if not pairs:
            return {"retention": None, "standard_error": None}
        scores, references = ([pair[side] for pair in pairs] for side in (0, 1))
        return retention(scores, references, self.run.lower_is_better)

    @property
    def retention_text(self) -> str:
        """Such as `0.981 ± 0.004`; empty without a reference."""
        mean, error = self.retention["retention"], self.retention["standard_error"]
        if mean is None:
            return ""
        return f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.3f}"


def gather(folders: Sequence[Path], left_out: dict[Path, str] | None = None) -> list[Run]:
    """The runs under folders, latest first. An odd record is left out; a warning and `left_out` say why."""
    common = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    records = [record for folder in folders for record in read_records(folder, left_out)]
    runs = []
    for directory, record in {Path(record["directory"]).resolve(): record for record in records}.items():
        record["directory"] = str(directory)
        try:
            runs.append(Run(record, path_text(os.path.relpath(directory, common)), read_curves(directory)))
        except Exception as error:  # whatever is wrong with one run, the others are shown
            leave_out(directory / RECORD_FILE, error, left_out)
    for run, text in _named(runs, lambda run: (run.codec, run.trains), codec_settings):
        run.variant = text
    for run, text in _named(runs, lambda run: (run.codec, run.model), table_settings):
        run.table_variant = text
    for group in grouped(runs, lambda run: run.codec).values():
        labels = _most_common(run.label for run in group)
        table_labels = _most_common(run.table_label for run in group)
        for run in group:
            run.numbers = labels.index(run.label), table_labels.index(run.table_label)
    for run, text in _named(runs, lambda run: (run.record["task"], run.record["model"]), recipe_settings):
        run.recipe = text
    for point in points(runs):
        for run in point.runs:
            reference = point.references.get(run.record["seed"])
            if run.score is not None and reference is not None:
                run.retention = retention([run.score], [reference], run.lower_is_better)["retention"]
    return sorted(runs, key=lambda run: str(run.record["started"]), reverse=True)


def points(runs: Iterable[Run]) -> list[Point]:
    """The points of finished runs with a score, uncompressed ones included, by task, model, recipe, codec and ratio."""
    settings: dict[tuple, dict[int, Run]] = defaultdict(dict)
    for run in sorted(runs, key=lambda run: str(run.record["started"])):  # a later run replaces an earlier one
        if run.score is not None and run.ratio is not None and run.record["ratio"] is not None:
            settings[run.group, run.codec, run.variant, run.ratio][run.record["seed"]] = run
    result = [Point([*settings[key].values()]) for key in sorted(settings)]
    references = grouped((point for point in result if point.run.is_reference), lambda point: point.run.group)
    for point in result:
        # Of the embedding frozen and trained, the one that shares more seeds, then the one that scores better on them.
        rivals = []
        for reference in references.get(point.run.group, []):
            if scores := Point(point.runs, reference).references:
                sign = -1 if point.run.lower_is_better else 1
                rivals.append((len(scores), sign * fmean(scores.values()), reference))
        point.reference = max(rivals, key=lambda rival: rival[:2], default=(0, 0.0, None))[2]
    return result


def best_of(points: Sequence[Point]) -> Point:
    """The point of the best mean score."""
    sign = -1 if points[0].run.lower_is_better else 1
    return max(points, key=lambda point: sign * point.mean)


def constant_score(group: Iterable[Point]) -> float | None:
    """The score of one answer for all rows, of the points of one task; None if no record has it."""
    return next((point.run.constant for point in group if point.run.constant is not None), None)


def artifacts(runs: Iterable[Run]) -> list[Run]:
    """One run for every measured artifact, that is one with a `nmse` and a ratio: the latest of the same settings.

    Runs with other healing or fine-tuning share an artifact, and so do copies of it in several folders.
    """
    latest: dict[tuple, Run] = {}
    for run in sorted(runs, key=lambda run: str(run.record["started"])):
        numbers = run.record["compression"].get("nmse"), run.record["ratio"]
        if all(isinstance(number, (int, float)) and number > 0 for number in numbers):
            latest[run.model, run.table_label, run.ratio, run.record["seed"]] = run
    return list(latest.values())


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by their key, in the order of the first item of every key."""
    groups: dict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _named(
    runs: Iterable[Run], key: Callable[[Run], Any], settings: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterable[tuple[Run, str]]:
    """Runs with the settings in which they differ from other runs of the same key."""
    for group in grouped(runs, key).values():
        yield from zip(group, differences([settings(run.record) for run in group]), strict=True)


def _most_common(texts: Iterable[str]) -> list[str]:
    """The texts by falling frequency, then by alphabet."""
    return [text for text, _ in sorted(Counter(texts).items(), key=lambda item: (-item[1], item[0]))]
