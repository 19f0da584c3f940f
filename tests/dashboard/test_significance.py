"""Differences between runs that have kept their answers, with their intervals."""

import csv
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchmetrics.classification import BinaryAccuracy, BinaryF1Score, MulticlassAccuracy, MulticlassF1Score
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef

from lighttoken.dashboard.gather import gather, points
from lighttoken.dashboard.significance import comparisons, difference, draws
from lighttoken.dashboard.tables import write_tables
from lighttoken.run.answers import ANSWERS_FILE, read_answers
from lighttoken.tasks.glue import MatthewsCorrCoef
from tests.dashboard.conftest import page_of, read_data

ROWS = 60
LABELS = (torch.arange(ROWS) % 3 > 0).int()
CLASSES = {"accuracy": BinaryAccuracy(), "f1": BinaryF1Score(), "matthews_corrcoef": MatthewsCorrCoef()}
THREE = {"accuracy": MulticlassAccuracy(3, average="micro"), "f1": MulticlassF1Score(3, average="macro")}
NUMBERS = {"pearson": PearsonCorrCoef(), "spearman": SpearmanCorrCoef()}


def wrong(share: float, labels: torch.Tensor = LABELS, seed: int = 0) -> torch.Tensor:
    """The labels, but a share of them another class."""
    hit = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(hit, (labels + 1) % (int(labels.max()) + 1), labels)


def run_of(run_folder, codec: str, answers: torch.Tensor, labels=LABELS, metrics=CLASSES, seed: int = 0) -> Path:
    """A run of these answers; its metrics are those of the answers."""
    scores = {f"val/{name}": float(metric(answers, labels)) for name, metric in metrics.items()}
    folder = run_folder("mrpc", codec, seed=seed, metrics=scores | {"val/loss": 0.5})
    save_file({"val/answers": answers, "val/labels": labels}, folder / ANSWERS_FILE)
    return folder


def found() -> dict:
    return {point.run.codec: point for point in points(gather([Path("outputs")]))}


def numbers(seed: int) -> torch.Tensor:
    return torch.arange(ROWS) / 10 + torch.randn(ROWS, generator=torch.Generator().manual_seed(seed))


def test_a_class_that_is_answered_and_no_row_has_is_scored_too(run_folder):
    answers = torch.where(torch.arange(ROWS) % 7 == 0, 2, LABELS).int()  # the labels are 0 and 1
    run_of(run_folder, "svd", answers, metrics=THREE)
    run_of(run_folder, "none", LABELS.clone(), metrics=THREE)
    runs = found()
    gap = difference(runs["svd"], runs["none"])
    assert gap is not None
    assert gap.mean < 0


@pytest.mark.parametrize(
    ("labels", "ours", "theirs", "metrics"),
    [
        (LABELS, wrong(0.3), wrong(0.1, seed=1), CLASSES),
        (torch.arange(ROWS).int() % 3, wrong(0.3, torch.arange(ROWS).int() % 3), torch.arange(ROWS).int() % 3, THREE),
        (numbers(0).round(decimals=1), numbers(1), numbers(2), NUMBERS),
    ],
    ids=["binary", "three classes", "numbers"],
)
def test_the_interval_is_that_of_the_tasks_metrics_on_resampled_rows(run_folder, labels, ours, theirs, metrics):
    run_of(run_folder, "svd", ours, labels, metrics)
    run_of(run_folder, "none", theirs, labels, metrics)
    gap = difference(found()["svd"], found()["none"])
    rows = torch.cat(draws(ROWS))
    assert rows.shape == (1000, ROWS)
    plain = []
    for drawn in rows[:200]:
        pairs = [[float(metric(a[drawn], labels[drawn])) for metric in metrics.values()] for a in (ours, theirs)]
        plain.append(sum(pairs[0]) / len(metrics) - sum(pairs[1]) / len(metrics))
    spread = torch.tensor(plain, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    assert gap.mean == pytest.approx(found()["svd"].mean - found()["none"].mean)
    # 200 of the 1,000 resamples: the ends differ by a part of the interval's length.
    assert [gap.low, gap.high] == pytest.approx(spread.tolist(), abs=0.15 * (gap.high - gap.low))


def test_the_interval_of_an_accuracy_is_that_of_the_normal_distribution(run_folder):
    labels = (torch.arange(2000) % 2).int()
    ours, theirs = wrong(0.2, labels), wrong(0.15, labels, seed=1)
    metrics = {"accuracy": BinaryAccuracy()}
    run_of(run_folder, "svd", ours, labels, metrics)
    run_of(run_folder, "none", theirs, labels, metrics)
    gap = difference(found()["svd"], found()["none"])
    error = float(((ours == labels).double() - (theirs == labels).double()).std()) / math.sqrt(2000)
    assert [gap.low, gap.high] == pytest.approx([gap.mean - 1.96 * error, gap.mean + 1.96 * error], abs=0.2 * error)


def test_equal_answers_differ_by_nothing_and_seeds_are_averaged(run_folder):
    for seed in (0, 1):
        run_of(run_folder, "none", wrong(0.1, seed=seed), seed=seed)
        run_of(run_folder, "svd", wrong(0.1, seed=seed), seed=seed)
    gap = difference(found()["svd"], found()["none"])
    assert (gap.mean, gap.low, gap.high, gap.seeds) == (0, 0, 0, 2)


def test_runs_without_answers_to_the_same_rows_are_not_compared(run_folder, tmp_path):
    folder = run_of(run_folder, "svd", wrong(0.3))
    run_of(run_folder, "none", LABELS.flip(0), LABELS.flip(0))
    run_folder("mrpc", "pq")  # an old record
    assert difference(found()["svd"], found()["none"]) is None
    assert comparisons([*found().values()]) == []
    save_file({"val/answers": wrong(0.5), "val/labels": LABELS}, folder / ANSWERS_FILE)  # not those of the scores
    assert difference(found()["svd"], found()["svd"]) is None
    many, huge = torch.zeros(ROWS, dtype=torch.int32), torch.full((ROWS,), 2**31 - 1, dtype=torch.int32)
    for tensors in ({"val/answers": many}, {"val/answers": many, "val/labels": huge}, {"val/answers": many[:0]}):
        save_file(tensors, tmp_path / "odd")
        assert read_answers(tmp_path / "odd") == {}
    (tmp_path / "odd").write_bytes(b"{}" * 100)
    assert read_answers(tmp_path / "odd") == read_answers(tmp_path / "missing") == {}


def test_the_report_compares_with_the_uncompressed_run_and_the_best_with_the_second(run_folder):
    for codec, share in (("none", 0.0), ("lighttoken", 0.05), ("svd", 0.4)):
        run_of(run_folder, codec, wrong(share, seed=2))
    runs = gather([Path("outputs")])
    written = write_tables(runs, Path("."))
    assert written[-1] == Path("differences.csv")
    with Path("differences.csv").open(newline="") as file:
        rows = {(row["codec"], row["against"]): row for row in csv.DictReader(file)}
    assert rows.keys() == {("lighttoken", "none"), ("svd", "none"), ("lighttoken", "svd")}
    assert float(rows["svd", "none"]["high"]) < 0 < float(rows["lighttoken", "svd"]["low"])
    lines = Path("scores.md").read_text()
    assert "- svd at 25x minus none: -" in lines
    (answer,) = read_data(page_of(Path("outputs")))["answers"]
    cells = {row["label"]: row["cells"][0]["difference"] for row in answer["rows"]}
    assert cells["svd"] == difference(found()["svd"], found()["none"]).text
    assert [text.partition(" is ")[0] for text in answer["leads"]] == ["At 25x: lighttoken minus svd"]
