"""What the metrics of a run say: the score of its task, whether a lower one is better, and how much of it is kept."""

import math
from collections.abc import Iterable, Mapping
from statistics import fmean, stdev
from typing import Any

from lighttoken.errors import LighttokenError

LOWER_IS_BETTER = ("perplexity",)  # the only ones: whoever compares two scores asks `lower_is_better`
BESIDE = ("loss", "kl_divergence", "top1_agreement")  # no part of a task's score


def is_score(name: str) -> bool:
    """Whether a metric, such as `val/f1`, is part of its task's score."""
    return name.rpartition("/")[2] not in BESIDE


def task_score(metrics: dict[str, float], rows: str = "val") -> float:
    """The mean of a task's validation scores, as the GLUE site counts tasks with two scores (Wang et al. 2019).

    With `rows="dev"` the mean over the rows held out of the training split. NaN without any.
    """
    scores = [value for name, value in metrics.items() if name.startswith(rows) and is_score(name)]
    return fmean(scores) if scores else math.nan


def lower_is_better(metrics: Iterable[str]) -> bool:
    """Whether, of two scores of these metrics, the lower one is better."""
    return any(name.rpartition("/")[2] in LOWER_IS_BETTER for name in metrics)


def check_metrics(metrics: Mapping[str, Any]) -> None:
    """Raise LighttokenError for a metric of torchmetrics that is better when lower, under a name that says nothing."""
    for name, metric in metrics.items():
        if getattr(metric, "higher_is_better", None) is False and is_score(name) and not lower_is_better([name]):
            raise LighttokenError(
                f"task.metrics.{name} is better when it is lower, and scores are compared as better when higher; "
                "choose one that is better when higher, such as a correlation"
            )


def retention(scores: list[float], references: list[float], lower: bool = False) -> dict[str, float | None]:
    """The ratio of the means of paired scores, and its standard error (delta method); None for one pair.

    It is above 1 if the scores are better than the references: where a lower score is better, the ratio is that of the
    references to the scores. Both are None if the divisors have no mean above 0: half of a score below 0 is no share.
    """
    parts, wholes = (references, scores) if lower else (scores, references)
    whole, n = fmean(wholes), len(wholes)
    if whole <= 0:
        return {"retention": None, "standard_error": None}
    ratio = fmean(parts) / whole
    if n == 1:
        return {"retention": ratio, "standard_error": None}
    left = [part - ratio * other for part, other in zip(parts, wholes, strict=True)]
    return {"retention": ratio, "standard_error": stdev(left) / (whole * math.sqrt(n))}
