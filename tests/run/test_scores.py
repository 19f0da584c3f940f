import pytest
from torchmetrics.classification import BinaryAccuracy
from torchmetrics.regression import MeanSquaredError
from torchmetrics.text import Perplexity

from lighttoken.errors import LighttokenError
from lighttoken.run.scores import check_metrics, lower_is_better, retention, task_score


def test_a_task_with_two_scores_counts_with_their_mean():
    metrics = {"val/accuracy": 0.8, "val/f1": 0.9, "val/loss": 3.0, "val_mm/accuracy": 0.4, "dev/accuracy": 0.1}
    assert task_score(metrics) == pytest.approx(0.7)


def test_one_pair_has_no_standard_error_and_a_reference_of_zero_no_retention():
    assert retention([0.4], [0.5]) == {"retention": pytest.approx(0.8), "standard_error": None}
    assert retention([0.4, 0.2], [0.0, 0.0]) == {"retention": None, "standard_error": None}
    assert retention([0.1], [-0.02]) == {"retention": None, "standard_error": None}  # nor does one below 0


def test_where_lower_is_better_retention_is_the_reference_over_the_score():
    metrics = {"val/perplexity": 25.0, "val/kl_divergence": 0.1, "val/top1_agreement": 0.8, "val/loss": 3.0}
    assert task_score(metrics) == 25
    assert lower_is_better(metrics)
    assert not lower_is_better({"val/accuracy": 0.9, "val/loss": 3.0})
    assert retention([25.0], [20.0], lower=True)["retention"] == pytest.approx(0.8)
    # The reciprocal of the pairs, so the error is that of the reciprocal too.
    assert retention([25.0, 24.0], [20.0, 18.0], lower=True) == retention([20.0, 18.0], [25.0, 24.0])


def test_a_metric_that_is_better_when_lower_is_refused_unless_its_name_says_so():
    check_metrics({"accuracy": BinaryAccuracy(), "perplexity": Perplexity(), "loss": MeanSquaredError()})
    with pytest.raises(LighttokenError, match="task.metrics.mse is better when it is lower, and scores are compared"):
        check_metrics({"accuracy": BinaryAccuracy(), "mse": MeanSquaredError()})
