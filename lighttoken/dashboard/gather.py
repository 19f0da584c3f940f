"""Records into what the dashboard shows: runs with their curves, and points, the runs of one setting over seeds."""

import csv
import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lighttoken.run.average import task_score
from lighttoken.run.records import is_reference, read_records, recipe, retention

log = logging.getLogger(__name__)

CURVES_FILE = "metrics.csv"
CURVE_POINTS = 60  # kept of a curve at most, so that hundreds of runs fit into a page
Curves = dict[str, list[tuple[float, float]]]  # name -> (step, value)


@dataclass
class Run:
    """A record with its curves. `variant` tells settings of its codec apart, `group` what is compared with what."""

    record: dict[str, Any]
    name: str  # its folder, relative to what was read
    curves: Curves
    variant: str = ""  # such as `coefficient_precision=int8`; empty where a codec ran with one setting only
    recipe: str = ""  # likewise, of the rest of the config, among runs of the same task and model
    retention: float | None = None

    @property
    def codec(self) -> str:
        return str(self.record["codec"])

    @property
    def label(self) -> str:
        return f"{self.codec} ({self.variant})" if self.variant else self.codec

    @property
    def group(self) -> tuple[str, str, str]:
        return str(self.record["task"]), str(self.record["model"]), self.recipe

    @property
    def done(self) -> bool:
        return self.record["status"] == "done"

    @property
    def is_reference(self) -> bool:
        return is_reference(self.record)

    @property
    def ratio(self) -> float | None:
        """As asked for; as measured of a record that was not asked."""
        if self.codec == "none":
            return 1.0
        return self.record["ratio_asked"] or self.record["ratio"]

    @cached_property
    def score(self) -> float | None:
        score = task_score(self.record["metrics"]) if self.done else math.nan
        return score if math.isfinite(score) else None


@dataclass
class Point:
    """The finished runs of one task, model, recipe, codec, setting and ratio: latest of each seed."""

    runs: list[Run]
    references: dict[int, float] = field(default_factory=dict)  # score by seed of the better uncompressed setting

    @property
    def ratio(self) -> float:
        """Mean of what was measured."""
        return fmean(run.record["ratio"] for run in self.runs)

    @property
    def scores(self) -> list[float]:
        return [run.score for run in self.runs if run.score is not None]

    @property
    def mean(self) -> float:
        return fmean(self.scores)

    @property
    def std(self) -> float | None:
        """None for one seed."""
        return stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def retention(self) -> dict[str, float | None]:
        """With its standard error, over the seeds that have a reference; None where there is none."""
        pairs = [(run.score, self.references.get(run.record["seed"])) for run in self.runs]
        paired = [(score, other) for score, other in pairs if score is not None and other is not None]
        if not paired:
            return {"retention": None, "standard_error": None}
        return retention([score for score, _ in paired], [other for _, other in paired])


def gather(folders: Sequence[Path]) -> list[Run]:
    """The runs under folders, latest first. A record that cannot be made sense of is left out with a warning."""
    common = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    records = {Path(each["directory"]).resolve(): each for folder in folders for each in read_records(folder)}
    runs = []
    for directory, record in records.items():
        try:
            run = Run(_complete(record), os.path.relpath(directory, common), _read_curves(directory))
            _ = run.score, recipe(run.record["config"])
            runs.append(run)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            log.warning("left out %s: %s: %s", directory / "record.json", type(error).__name__, error)
    _tell_apart(runs)
    for point in points(runs):
        for run in point.runs:
            reference = point.references.get(run.record["seed"])
            run.retention = run.score / reference if run.score is not None and reference else None
    return sorted(runs, key=lambda run: str(run.record["started"]), reverse=True)


def points(runs: Iterable[Run]) -> list[Point]:
    """Finished, scored runs by setting, references included, in the order of task, codec and ratio."""
    settings: dict[tuple, dict[int, Run]] = defaultdict(dict)
    for run in sorted(runs, key=lambda run: str(run.record["started"])):
        if run.score is not None and run.ratio is not None and run.record["ratio"] is not None:
            settings[run.group, run.codec, run.variant, run.ratio][run.record["seed"]] = run
    found = [Point(list(seeds.values())) for _, seeds in sorted(settings.items(), key=lambda item: item[0])]
    for point in found:
        seeds = {run.record["seed"] for run in point.runs}
        candidates = [
            {run.record["seed"]: run.score for run in other.runs if run.score is not None}
            for other in found
            if other.runs[0].is_reference and other.runs[0].group == point.runs[0].group
        ]
        # The better of frozen and trained, on the same seeds; if none has them all, the one that has the most.
        shared = [{seed: each[seed] for seed in seeds & each.keys()} for each in candidates if seeds & each.keys()]
        point.references = max(shared, key=lambda each: (len(each), fmean(each.values())), default={})
    return found


def artifacts(runs: Iterable[Run]) -> list[Run]:
    """One run for each artifact that was measured, with a `nmse` and a ratio."""
    seen: dict[str, Run] = {}
    for run in runs:
        told = run.record["compression"].get("nmse"), run.record["ratio"]
        if all(isinstance(value, (int, float)) and value > 0 for value in told):
            seen.setdefault(str(run.record["artifact"] or run.name), run)
    return list(seen.values())


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined with dots."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _complete(record: dict[str, Any]) -> dict[str, Any]:
    """With what records of earlier versions lack. Raises TypeError or AttributeError for values of a wrong type."""
    lacking: dict[str, Any] = {
        "table": {},
        "compression": {},
        "ratio": None,
        "ratio_asked": None,
        "seconds": {},
        "hardware": {},
    }
    lacking |= {"error": None, "artifact": None, "artifact_bytes": None, "git_commit": None, "versions": {}}
    lacking |= {"table_bytes": None, "model_bytes": None, "stored_bytes": None}
    whole = lacking | {"task": "?", "model": "?", "seed": 0} | record
    for name in ("config", "metrics", "table", "compression", "seconds", "hardware"):
        if not isinstance(whole[name], dict):
            raise TypeError(f"{name} is {whole[name]!r}")
    if not isinstance(whole["config"].get("finetune") or {}, dict):
        raise TypeError(f"config.finetune is {whole['config']['finetune']!r}")
    numbers = {name: whole[name] for name in ("ratio", "ratio_asked") if whole[name] is not None}
    numbers |= {name: whole["compression"][name] for name in ("nmse", "weighted_nmse") if name in whole["compression"]}
    for name, value in (numbers | whole["seconds"]).items():
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise TypeError(f"{name} is {value!r}")
    for name in ("singular_values", "gaussian_bound") if whole["table"] else ():
        curve = whole["table"].get(name, {})
        if len({len(each) for each in curve.values()}) > 1 or (name == "singular_values" and not curve):
            raise TypeError(f"table.{name} is {curve!r}")
    if len(tenths := whole["compression"].get("nmse_by_frequency_tenth") or [0] * 10) != 10:
        raise TypeError(f"nmse_by_frequency_tenth is {tenths!r}")
    if not isinstance(whole["seed"], int):
        raise TypeError(f"seed is {whole['seed']!r}")
    return whole


def _tell_apart(runs: list[Run]) -> None:
    """Set `variant` and `recipe` to the settings that differ among runs that otherwise look the same."""
    codecs, recipes = defaultdict(list), defaultdict(list)
    for run in runs:
        codecs[run.codec].append(run)
        recipes[run.record["task"], run.record["model"]].append(run)

    def setting(config: dict[str, Any]) -> dict[str, Any]:
        told: dict[str, Any] = {name: config[name] for name in ("codec", "backbone_precision") if name in config}
        finetune = config.get("finetune") or {}
        told |= {name: finetune.get(name) for name in ("trainable", "distill_weight", "distill_temperature")}
        return told | {"distilled": bool(config.get("distill"))}

    def rest(record: dict[str, Any]) -> dict[str, Any]:
        config = record["config"]
        told = recipe(config)
        told["finetune"] |= {"trainable": None}
        # A seed draws other numbers on another kind of device: its runs there are no pairs.
        told["accelerator"] = record["hardware"].get("accelerator")
        return {name: value for name, value in told.items() if name != "seed"}

    for same in codecs.values():
        for run, told in zip(same, _differences([setting(run.record["config"]) for run in same]), strict=True):
            run.variant = told
    for same in recipes.values():
        for run, told in zip(same, _differences([rest(run.record) for run in same]), strict=True):
            run.recipe = told


def _differences(configs: list[dict[str, Any]]) -> list[str]:
    """Of each config, the values of the keys on which not all agree, by the last part of their name."""
    flat = [{key: json.dumps(value, sort_keys=True) for key, value in flatten(config).items()} for config in configs]
    keys = sorted({key for each in flat for key in each})
    differ = [key for key in keys if len({each.get(key) for each in flat}) > 1]
    short = [key.rpartition(".")[2] for key in differ]
    names = [last if short.count(last) == 1 else key for key, last in zip(differ, short, strict=True)]
    return [
        ", ".join(f"{name}={each.get(key, 'null')}" for key, name in zip(differ, names, strict=True)).replace('"', "")
        for each in flat
    ]


def _read_curves(directory: Path) -> Curves:
    path = directory / CURVES_FILE
    try:
        return _parse_curves(path, path.stat().st_mtime_ns)
    except (OSError, csv.Error, UnicodeDecodeError):
        return {}


@lru_cache(maxsize=10_000)
def _parse_curves(path: Path, stamp: int) -> Curves:
    """Curves of a CSV file, thinned; `stamp` makes a file that has changed be read again."""
    curves: Curves = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            step = _number(row.pop("step", None))
            for name, cell in row.items():
                value = _number(cell)
                if (
                    name
                    and name != "epoch"
                    and not name.startswith("table/")
                    and step is not None
                    and value is not None
                ):
                    curves[name].append((step, value))
    return {name: _thin(curve) for name, curve in curves.items()}


def _number(cell: Any) -> float | None:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _thin(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Evenly, both ends kept, values to four digits."""
    if len(curve) > CURVE_POINTS:
        curve = [curve[round(i * (len(curve) - 1) / (CURVE_POINTS - 1))] for i in range(CURVE_POINTS)]
    return [(step, float(f"{value:.4g}")) for step, value in curve]
