"""Whether two points differ by more than the choice of the evaluation rows explains: a paired bootstrap over them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from lighttoken.dashboard.gather import Point, Run, best_of, grouped
from lighttoken.run.answers import ANSWERS_FILE, read_answers
from lighttoken.run.scores import is_score

RESAMPLES = 1000
CHUNK = 2**21  # numbers in memory at once
CLOSE = 1e-4  # between a score of the record and the same score of the answers
Score = Callable[[Tensor, Tensor], Tensor]  # answers (r, n), labels (r, n) -> scores (r,)


@dataclass
class Difference:
    """Score of one point minus that of another, averaged over the seeds of both, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def text(self) -> str:
        """Such as `-0.0123 (-0.0301 to 0.0054)`."""
        return f"{self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


def difference(ours: Point, theirs: Point) -> Difference | None:
    """A point compared with another one on the same rows, by a percentile bootstrap of 1,000 resamples of the rows.

    The same rows are drawn for both points and all seeds. The interval says nothing of other seeds. None if no seed has
    the answers of both.
    """
    gaps, means = [], []
    rivals = {run.record["seed"]: run for run in theirs.runs}
    for run in (run for run in ours.runs if run.record["seed"] in rivals):
        rival = rivals[run.record["seed"]]
        ours_again, theirs_again = _resampled(run), _resampled(rival)
        if ours_again and theirs_again and ours_again[0] == theirs_again[0]:  # the same rows
            gaps.append(ours_again[1] - theirs_again[1])
            means.append((run.score or 0.0) - (rival.score or 0.0))
    if not gaps:
        return None
    low, high = torch.stack(gaps).mean(0).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Difference(fmean(means), low, high, len(gaps))


def comparisons(group: Sequence[Point]) -> list[tuple[Point, Point, Difference]]:
    """Differences in the scores of one task: of every codec from the uncompressed run, and at every ratio of the best
    codec from the second; (point, other point, difference)."""
    compressed = [point for point in group if point.run.codec != "none"]
    pairs = [(point, point.reference) for point in compressed if point.reference]
    for _, rivals in sorted(grouped(compressed, lambda point: point.run.ratio or 1.0).items()):
        if len(rivals) > 1:
            best = best_of(rivals)
            pairs.append((best, best_of([point for point in rivals if point is not best])))
    found = [(point, other, difference(point, other)) for point, other in pairs]
    return [(point, other, gap) for point, other, gap in found if gap]


def _resampled(run: Run) -> tuple[int, Tensor] | None:
    """A hash of the labels, and the task's score of every resample (r,); None without answers that give the scores."""
    path = Path(run.record["directory"], ANSWERS_FILE)
    scores = tuple((name, value) for name, value in sorted(run.record["metrics"].items()) if is_score(name))
    try:
        return _resampled_file(path, path.stat().st_mtime_ns, scores)
    except OSError:
        return None


@lru_cache(maxsize=10_000)
def _resampled_file(path: Path, changed: int, scores: tuple[tuple[str, float], ...]) -> tuple[int, Tensor] | None:
    kept, columns, labels_of = read_answers(path), [], []
    for name, value in scores:
        split, _, metric = name.partition("/")
        if not split.startswith("val"):
            continue
        if split not in kept:
            return None
        answers, labels = kept[split]
        score = next((f for f in _formulas(metric, answers, labels) if _is_close(f, answers, labels, value)), None)
        if score is None:  # a metric that is not known here
            return None
        columns.append(torch.cat([score(answers[rows], labels[rows]).double() for rows in draws(len(labels))]))
        labels_of.append(labels.tolist())
    return (hash(str(labels_of)), torch.stack(columns).mean(0)) if columns else None


def draws(count: int) -> list[Tensor]:
    """Row numbers (r, n) of all resamples in parts; the same for every run of so many rows."""
    generator, size = torch.Generator().manual_seed(0), max(1, CHUNK // count)
    return [
        torch.randint(count, (len(part), count), generator=generator) for part in torch.arange(RESAMPLES).split(size)
    ]


def _is_close(score: Score, answers: Tensor, labels: Tensor, value: float) -> bool:
    return bool((score(answers.unsqueeze(0), labels.unsqueeze(0)) - value).abs() < CLOSE)


def _formulas(metric: str, answers: Tensor, labels: Tensor) -> Sequence[Score]:
    """The scores that go by this name. The one that gives the record's value is the task's."""
    from torchmetrics.functional.classification import multiclass_f1_score  # here: it takes seconds to import
    from torchmetrics.functional.regression import pearson_corrcoef, spearman_corrcoef

    if labels.is_floating_point():
        numbers = {"pearson": pearson_corrcoef, "spearman": spearman_corrcoef}
        return [lambda a, y: numbers[metric](a.T, y.T).reshape(-1)] if metric in numbers else []
    classes = max(2, int(torch.cat([answers, labels]).max()) + 1)  # few rows may lack a class that is answered
    known: dict[str, list[Score]] = {
        "accuracy": [lambda a, y: (a == y).double().mean(1)],
        "f1": [lambda a, y: multiclass_f1_score(a, y, classes, average="macro", multidim_average="samplewise")],
    }
    if classes == 2:
        known["f1"].insert(0, _binary_f1)
        known["matthews_corrcoef"] = [_matthews]
    return known.get(metric, [])


def _counts(answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """True positives, false positives, false negatives and true negatives (r,) of two classes."""
    yes, true = answers == 1, labels == 1
    tp, fp, fn = (kind.double().sum(1) for kind in (yes & true, yes & ~true, ~yes & true))
    return tp, fp, fn, labels.shape[1] - tp - fp - fn


def _binary_f1(answers: Tensor, labels: Tensor) -> Tensor:
    tp, fp, fn, _ = _counts(answers, labels)
    return 2 * tp / (2 * tp + fp + fn).clamp_min(1)


def _matthews(answers: Tensor, labels: Tensor) -> Tensor:
    """As `lighttoken.tasks.glue.MatthewsCorrCoef`."""
    tp, fp, fn, tn = _counts(answers, labels)
    square = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / square.clamp_min(1).sqrt()
