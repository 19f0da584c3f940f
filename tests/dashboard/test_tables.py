"""runs.csv, scores.csv and scores.md."""

import csv
from pathlib import Path

import pytest

from lighttoken.dashboard.gather import gather
from lighttoken.dashboard.tables import write_tables


def scored(value: float) -> dict:
    return {"metrics": {"val/accuracy": value, "val/loss": 0.5}}


def test_a_row_per_setting_and_a_line_per_ratio_that_says_who_is_above(run_folder):
    for seed, score in enumerate((0.80, 0.82)):
        run_folder("mrpc", "none", seed=seed, **scored(score))
        run_folder("mrpc", "lighttoken", 25.0, seed=seed, **scored(score - 0.01))
        run_folder("mrpc", "svd", 25.0, seed=seed, **scored(score - 0.2))
    run_folder("mrpc", "pq", 25.0, seed=0, **scored(0.795))
    run_folder("mrpc", "lighttoken", 103.0, seed=0, **scored(0.7))
    run_folder("mrpc", "svd", 103.0, seed=0, **scored(0.6))
    written = write_tables(gather([Path("outputs")]), Path("."))
    assert [path.name for path in written] == ["runs.csv", "scores.csv", "scores.md"]
    with Path("runs.csv").open(newline="") as file:
        each = [row for row in csv.DictReader(file) if (row["codec"], row["asked"]) == ("lighttoken", "25.0")]
    assert [(row["seed"], float(row["score"])) for row in each] == [
        ("0", pytest.approx(0.79)),
        ("1", pytest.approx(0.81)),
    ]
    assert float(each[1]["retention"]) == pytest.approx(0.81 / 0.82)
    assert each[0]["folder"].endswith("mrpc_lighttoken_25x_seed0")
    with Path("scores.csv").open(newline="") as file:
        rows = {(row["codec"], row["asked"]): row for row in csv.DictReader(file)}
    assert set(rows) == {("none", "1.0")} | {(codec, "25.0") for codec in ("lighttoken", "svd", "pq")} | {
        (codec, "103.0") for codec in ("lighttoken", "svd")
    }
    ours = rows["lighttoken", "25.0"]
    assert (ours["n"], float(ours["mean"])) == ("2", pytest.approx(0.80))
    assert float(ours["retention"]) == pytest.approx(0.80 / 0.81)
    told = Path("scores.md").read_text().splitlines()
    assert told[0] == "## mrpc, minilm_l6"
    pq = rows["pq", "25.0"]
    assert f"| pq | 25 | {float(pq['ratio']):.2f} | {pq['bytes']} | {float(pq['nmse']):.4f} | 1 | 0.7950 |" in told[7]
    # pq has seed 0 alone, where lighttoken has 0.79.
    assert "- Above lighttoken at 25x: pq by 0.0050 (n=1)." in told
    assert "- Above lighttoken at 103x: none of the others does." in told


def test_without_a_finished_run_there_is_no_table(run_folder):
    run_folder("mrpc", "svd", status="failed", metrics={})
    assert write_tables(gather([Path("outputs")]), Path(".")) == []


def test_a_setting_of_the_codec_is_compared_under_its_own_name(run_folder):
    run_folder("mrpc", "svd", 25.0, **scored(0.8))
    for trainable, score in (("frozen", 0.75), ("decoder", 0.85)):
        finetune = {"learning_rate": 5e-5, "weight_decay": 0.01, "trainable": trainable}
        run_folder("mrpc", "lighttoken", 25.0, **scored(score), config={"finetune": finetune})
    write_tables(gather([Path("outputs")]), Path("."))
    lines = [line for line in Path("scores.md").read_text().splitlines() if line.startswith("- Above")]
    assert "- Above lighttoken (trainable=frozen) at 25x: lighttoken (trainable=decoder) by 0.1000 (n=1)" in lines[1]
    assert "svd by 0.0500 (n=1)" in lines[1]
    assert lines[0] == "- Above lighttoken (trainable=decoder) at 25x: none of the others does."
