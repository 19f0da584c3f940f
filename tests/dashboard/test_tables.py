"""runs.csv, scores.csv and scores.md."""

import csv
from pathlib import Path

import pytest

from lighttoken.dashboard.charts import PAPER, score_chart
from lighttoken.dashboard.gather import gather, points
from lighttoken.dashboard.tables import write_tables

CPU, GPU = {"hardware": {"accelerator": "none"}}, {"hardware": {"accelerator": "NVIDIA H100"}}


def scored(value: float) -> dict:
    return {"metrics": {"val/accuracy": value, "val/loss": 0.5}}


def rows_of_scores() -> dict[tuple[str, ...], dict[str, str]]:
    """The rows of scores.csv of the runs so far, by task, recipe, codec and ratio."""
    write_tables(gather([Path("outputs")]), Path("."))
    with Path("scores.csv").open(newline="") as file:
        return {tuple(row[name] for name in ("task", "recipe", "codec", "asked")): row for row in csv.DictReader(file)}


def test_a_row_per_setting_and_a_line_per_ratio_that_says_who_is_above(run_folder):
    for seed, score in enumerate((0.80, 0.82)):
        run_folder("mrpc", "none", seed=seed, **scored(score))
        run_folder("mrpc", "lighttoken", 25.0, seed=seed, **scored(score - 0.01))
        run_folder("mrpc", "svd", 25.0, seed=seed, **scored(score - 0.2))
    run_folder("mrpc", "pq", 25.0, seed=0, **scored(0.795))
    run_folder("mrpc", "lighttoken", 103.0, seed=0, **scored(0.7))
    run_folder("mrpc", "svd", 103.0, seed=0, **scored(0.6))
    written = write_tables(gather([Path("outputs")]), Path("."))
    assert [path.name for path in written] == ["runs.csv", "scores.csv", "scores.md", "scores.tex"]
    with Path("runs.csv").open(newline="") as file:
        runs = [row for row in csv.DictReader(file) if (row["codec"], row["asked"]) == ("lighttoken", "25.0")]
    assert [(row["seed"], float(row["score"])) for row in runs] == [
        ("0", pytest.approx(0.79)),
        ("1", pytest.approx(0.81)),
    ]
    assert float(runs[1]["retention"]) == pytest.approx(0.81 / 0.82)
    assert runs[0]["folder"].endswith("mrpc_lighttoken_25x_seed0")
    with Path("scores.csv").open(newline="") as file:
        rows = {(row["codec"], row["asked"]): row for row in csv.DictReader(file)}
    assert set(rows) == {("none", "1.0")} | {(codec, "25.0") for codec in ("lighttoken", "svd", "pq")} | {
        (codec, "103.0") for codec in ("lighttoken", "svd")
    }
    ours = rows["lighttoken", "25.0"]
    assert (ours["n"], float(ours["mean"])) == ("2", pytest.approx(0.80))
    assert float(ours["retention"]) == pytest.approx(0.80 / 0.81)
    assert runs[0]["bytes"] != runs[1]["bytes"]  # every seed has an artifact of its own
    assert int(ours["bytes"]) == round(sum(int(row["bytes"]) for row in runs) / 2)
    assert float(ours["nmse"]) == pytest.approx(sum(float(row["nmse"]) for row in runs) / 2)
    lines = Path("scores.md").read_text().splitlines()
    assert lines[0] == "## mrpc, minilm_l6, 3 epochs"
    pq = rows["pq", "25.0"]
    assert f"| pq | 25 | {float(pq['ratio']):.2f} | {pq['bytes']} | {float(pq['nmse']):.4f} | 1 | 0.7950 |" in lines[7]
    # pq has seed 0 alone, where lighttoken has 0.79.
    assert "- Better than lighttoken at 25x: pq by 0.0050 (n=1)." in lines
    assert "- Better than lighttoken at 103x: none of the others." in lines


def test_without_a_finished_run_there_is_no_table(run_folder):
    run_folder("mrpc", "svd", status="failed", metrics={})
    assert write_tables(gather([Path("outputs")]), Path(".")) == []


def test_a_setting_of_the_codec_is_compared_under_its_own_name(run_folder):
    run_folder("mrpc", "svd", 25.0, **scored(0.8))
    for trainable, score in (("frozen", 0.75), ("decoder", 0.85)):
        finetune = {"learning_rate": 5e-5, "weight_decay": 0.01, "trainable": trainable}
        run_folder("mrpc", "lighttoken", 25.0, **scored(score), config={"finetune": finetune})
    write_tables(gather([Path("outputs")]), Path("."))
    lines = [line for line in Path("scores.md").read_text().splitlines() if line.startswith("- Better than")]
    assert (
        "- Better than lighttoken (trainable=frozen) at 25x: lighttoken (trainable=decoder) by 0.1000 (n=1)" in lines[1]
    )
    assert "svd by 0.0500 (n=1)" in lines[1]
    assert lines[0] == "- Better than lighttoken (trainable=decoder) at 25x: none of the others."


def test_retention_is_against_the_better_reference_on_the_same_seeds(run_folder):
    for trainable, scores in (("frozen", (0.50, 0.52, 0.90)), ("decoder", (0.54, 0.56, 0.10))):
        finetune = {"learning_rate": 5e-5, "weight_decay": 0.01, "trainable": trainable}
        for seed, score in enumerate(scores):
            run_folder("cola", "none", seed=seed, **scored(score), config={"finetune": finetune})
    for seed, score in enumerate((0.53, 0.57)):  # seeds 0 and 1 alone
        run_folder("cola", "lighttoken", seed=seed, **scored(score))
    row = rows_of_scores()["cola", "", "lighttoken", "25.0"]
    assert float(row["retention"]) == pytest.approx(1.0)
    # By hand: score - reference is -0.01 and 0.01, their sd 0.01 * sqrt(2), over 0.55 * sqrt(2).
    assert float(row["standard_error"]) == pytest.approx(0.01 / 0.55)
    assert row["n"] == "2"


def test_the_mean_over_tasks_leaves_squad_out(run_folder):
    for task, reference, score in (("cola", 0.5, 0.0), ("rte", 0.7, 0.5), ("squad", 80.0, 10.0)):
        run_folder(task, "none", **scored(reference))
        run_folder(task, "svd", **scored(score))
    row = rows_of_scores()["mean of cola, rte", "", "svd", "25.0"]
    assert (row["n"], float(row["mean"]), row["bytes"]) == ("2", pytest.approx(0.25), "")
    assert float(row["retention"]) == pytest.approx(0.5 / 1.2)
    assert row["standard_error"] == ""  # one seed has none
    lines = Path("scores.md").read_text().splitlines()
    table = lines[lines.index("## mean of cola, rte, minilm_l6") :]
    assert "| svd | 25 |  |  |  | 2 | 0.2500 |  | 0.4167 |  |" in table


def test_the_error_of_a_mean_over_tasks_combines_those_of_the_tasks(run_folder):
    for task, scores in (("cola", (0.40, 0.46)), ("rte", (0.30, 0.38))):
        for seed, score in enumerate(scores):
            run_folder(task, "none", seed=seed, **scored(0.5))
            run_folder(task, "svd", seed=seed, **scored(score))
    row = rows_of_scores()["mean of cola, rte", "", "svd", "25.0"]
    # By hand: the standard errors of the two means are 0.03 and 0.04, that of their mean sqrt(0.03^2 + 0.04^2) / 2.
    assert float(row["standard_error"]) == pytest.approx(0.025 / 0.5)


def test_runs_on_different_accelerators_are_not_paired(run_folder):
    for task in ("cola", "rte"):
        for seed in (0, 1):
            run_folder(task, "none", seed=seed, **scored(0.5), **CPU)
            run_folder(task, "svd", seed=seed, **scored(0.4), **CPU)
        run_folder(task, "svd", **scored(0.3), **GPU)
    on_cpu, on_gpu = "accelerator=none", "accelerator=NVIDIA H100"
    rows = rows_of_scores()
    assert rows["cola", on_gpu, "svd", "25.0"]["retention"] == ""  # its reference ran on another device
    assert ("mean of cola, rte", on_gpu, "svd", "25.0") not in rows
    for task in ("cola", "rte"):
        run_folder(task, "none", **scored(0.6), **GPU)
    rows = rows_of_scores()
    for task in ("cola", "mean of cola, rte"):
        assert float(rows[task, on_cpu, "svd", "25.0"]["retention"]) == pytest.approx(0.8)
        assert float(rows[task, on_gpu, "svd", "25.0"]["retention"]) == pytest.approx(0.5)


def test_a_distilled_reference_is_compared_with_and_is_no_reference(run_folder):
    for codec, plain, distilled in (("none", 0.5, 0.6), ("svd", 0.4, 0.4)):
        run_folder("cola", codec, **scored(plain))
        run_folder("cola", codec, **scored(distilled), config={"distill": "outputs/teacher"})
    retention = {key[2]: float(row["retention"]) for key, row in rows_of_scores().items()}
    assert retention == pytest.approx(
        {
            "none (distilled=false)": 1.0,
            "none (distilled=true)": 1.2,
            "svd (distilled=false)": 0.8,
            "svd (distilled=true)": 0.8,
        }
    )


def test_a_lower_perplexity_is_the_better_score_everywhere(run_folder):
    def perplexity(value: float) -> dict:
        metrics = {"val/perplexity": value, "val/kl_divergence": 0.5, "val/top1_agreement": 0.9}
        return {"metrics": metrics, "config": {"finetune": {}}}

    run_folder("perplexity", "none", **perplexity(20.0))
    for codec, value in (("lighttoken", 25.0), ("pq", 24.0), ("svd", 40.0)):
        run_folder("perplexity", codec, 25.0, **perplexity(value))
        run_folder("mrpc", codec, 25.0, **scored(0.5))
    run_folder("mrpc", "none", **scored(0.5))
    runs = gather([Path("outputs")])
    kept = {run.codec: run.retention for run in runs if run.record["task"] == "perplexity"}
    assert kept == pytest.approx({"none": 1, "lighttoken": 0.8, "pq": 20 / 24, "svd": 0.5})
    assert {run.label for run in runs} == {"none", "lighttoken", "pq", "svd"}  # no settings of a training in the labels
    write_tables(runs, Path("."))
    text = Path("scores.md").read_text()
    assert "- Better than lighttoken at 25x: pq by 1.0000 (n=1)." in text
    assert "mean of" not in text
    (panel,) = [panel for panel in score_chart(points(runs)).panels if "perplexity" in panel.title]
    assert panel.y_label == "val/perplexity (lower is better)"
    assert PAPER not in {series.label for series in panel.series}


def test_runs_have_a_column_for_every_metric(run_folder):
    run_folder("mrpc", "svd", metrics={"val/accuracy": 0.8, "val/f1": 0.9})
    run_folder("cola", "svd", metrics={"val/matthews_corrcoef": 0.3, "val/loss": 0.6})
    write_tables(gather([Path("outputs")]), Path("."))
    with Path("runs.csv").open(newline="") as file:
        rows = {row["task"]: row for row in csv.DictReader(file)}
    names = ("accuracy", "f1", "matthews_corrcoef", "loss")
    assert [rows["mrpc"][name] for name in names] == ["0.8", "0.9", "", ""]
    assert [rows["cola"][name] for name in names] == ["", "", "0.3", "0.6"]


def test_latex_has_codecs_by_ratio_and_no_command_of_a_name(run_folder):
    for seed, score in enumerate((0.80, 0.82)):
        run_folder("mrpc", "none", seed=seed, **scored(score))
        run_folder("mrpc", "lighttoken", 25.0, seed=seed, **scored(score - 0.01))
    run_folder("mrpc", "a_b\\input{x}", 25.0, **scored(0.7))
    run_folder("mrpc", "svd", 103.0, **scored(0.6))
    write_tables(gather([Path("outputs")]), Path("."))
    lines = Path("scores.tex").read_text().splitlines()
    assert lines[2:5] == [r"\caption{mrpc, minilm\_l6, 3 epochs}", r"\begin{tabular}{lrrr}", r"\toprule"]
    assert r"codec & 1x & 25x & 103x \\" in lines
    assert r"none & 0.810 $\pm$ 0.014 &  &  \\" in lines
    assert r"lighttoken &  & \textbf{0.800} $\pm$ 0.014 (0.988) &  \\" in lines
    assert r"a\_b\textbackslash{}input\{x\} &  & 0.700 (0.875) &  \\" in lines
    assert r"svd &  &  & 0.600 (0.750) \\" in lines
