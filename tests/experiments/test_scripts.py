"""The scripts under experiments/: all start, and the cheap ones run on a tiny model."""

import csv
import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas
import pytest
import torch

from experiments import damaged_files, embedding_speed, scaling
from experiments.rows import RowFile, markdown
from experiments.tables import synthetic_table

FOLDER = Path(scaling.__file__).parent
SCRIPTS = [path.stem for path in sorted(FOLDER.glob("*.py")) if "__main__" in path.read_text()]


@pytest.fixture
def script(monkeypatch) -> Callable[..., None]:
    """Runs a script in this process, with the points that it would run in others."""

    def call(name: str, *arguments: str) -> None:
        module = importlib.import_module(f"experiments.{name}")
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.setattr(module, "run_alone", lambda function, *values: function(*values), raising=False)
        module.main()

    return call


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_explains_itself_and_imports_no_other(script, name, capsys):
    with pytest.raises(SystemExit, match="0"):
        script(name, "--help")
    assert f"python -m experiments.{name}" in capsys.readouterr().out
    assert not [other for other in SCRIPTS if f"experiments.{other} import" in (FOLDER / f"{name}.py").read_text()]


def test_a_csv_file_goes_on_where_it_stopped():
    path, columns, key = Path("results/rows.csv"), ("codec", "ratio", "score"), ("codec", "ratio")
    file = RowFile(path, columns, key)
    file.add({"codec": "svd", "ratio": 25, "score": 0.5, "other": 1}, order=lambda row: row["codec"])
    file.add({"codec": "pq", "ratio": 3.9}, order=lambda row: row["codec"])
    again = RowFile(path, columns, key)
    assert again.rows == [{"codec": "pq", "ratio": "3.9", "score": ""}, {"codec": "svd", "ratio": "25", "score": "0.5"}]
    assert ("svd", 25) in again
    assert ("svd", 103) not in again
    path.write_text("codec,ratio\nsvd,25\n")
    older = RowFile(path, columns, key, score="0")
    assert older.rows == [{"codec": "svd", "ratio": "25", "score": "0"}]
    assert markdown(older.rows, ("codec", "score")) == "| codec | score |\n| --- | --- |\n| svd | 0 |"
    assert RowFile(path, columns).rows == []  # without a key it starts anew


@pytest.mark.slow
def test_a_point_of_scaling(checkpoint):
    row = scaling.run_point("synthetic", partial(synthetic_table, str(checkpoint()), 3000, 48), 6)
    assert row.keys() == set(scaling.COLUMNS) - {"code", "asked"}  # which the caller adds
    assert (row["rows"], row["dim"]) == (3000, 48)
    assert row["ratio"] >= 6
    assert row["gap_db"] > 0


def test_the_large_head_repeats_the_codes_of_its_first_rows(checkpoint, monkeypatch):
    monkeypatch.setattr(embedding_speed, "HEAD", (16 * 2000, 32))
    rows = embedding_speed.large_table(str(checkpoint())).decode()
    assert rows.shape == (32_000, 32)
    assert torch.equal(rows[:2000], rows[-2000:])


def test_an_epoch_is_timed_against_a_bare_loop(script, checkpoint, sst2, capsys):
    overrides = [f"model.path={checkpoint()}", "trainer.accelerator=cpu", "task.batch_size=4"]
    script("epoch_speed", "results", "--data", str(sst2), "--overrides", *overrides)
    with Path("results/epoch_speed.csv").open(newline="") as file:
        assert [row["batches"] for row in csv.DictReader(file)] == ["10", "6"]
    assert "16 batches: " in capsys.readouterr().out


@pytest.mark.slow
def test_points_of_rate_distortion_are_computed_once(script, checkpoint):
    pairs = [("a good film", "a great movie", 4.5), ("a bad plot", "not good", 3.0), ("the film", "worst plot", 0.5)]
    Path("data/stsb").mkdir(parents=True)
    pandas.DataFrame(pairs, columns=["sentence1", "sentence2", "label"]).to_parquet("data/stsb/validation.parquet")
    arguments = [
        "results",
        "--data",
        "data",
        "--model",
        str(checkpoint()),
        "--codecs",
        "none",
        "scalar",
        "--ratios",
        "1",
    ]
    script("rate_distortion", *arguments, "3.9", "15")  # 15x is out of reach for so small a table
    path = Path("results/rate_distortion.csv")
    with path.open(newline="") as file:
        rows = [(row["codec"], row["ratio_asked"], float(row["nmse"])) for row in csv.DictReader(file)]
    assert [row[:2] for row in rows] == [("none", "1"), ("scalar", "3.9")]
    assert rows[0][2] == 0 < rows[1][2] < 0.01
    written = path.stat().st_mtime_ns
    script("rate_distortion", *arguments)
    assert path.stat().st_mtime_ns == written
    assert Path("results/rate_distortion.png").is_file()


@pytest.mark.slow
def test_settings_of_the_prior_are_compared_on_the_same_texts_and_computed_once(script, checkpoint, sst2):
    def run(*settings: str) -> list[dict[str, str]]:
        arguments = ["results", "--data", str(sst2.parent), "--model", str(checkpoint()), "--tasks", "sst2"]
        script("prior", *arguments, "--ratios", "4", "--settings", *settings)
        with Path("results/prior.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    (first,) = run("0.4,1e-7")
    assert float(first["ratio"]) >= 4
    assert 0.5 < float(first["sst2"]) == float(first["mean"]) < 1
    again, second = run("0.4,1e-7", "1,1e-7")
    assert again == first
    assert (second["exponent"], second["floor"]) == ("1", "1e-07")
    assert second["sst2"] != first["sst2"]
    with pytest.raises(SystemExit):
        run("0.4,1e-7", "--tasks", "nothing")


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_or_are_those_of_another_table(tmp_path):
    counts = damaged_files.run(tmp_path, range(60))
    assert sum(counts.values()) == 60
    bad = [row for row in counts if row[3] not in damaged_files.GOOD]
    assert not bad, bad
    assert {row[3] for row in counts} >= {"refused", "equal rows", "other rows"}
    assert "checkpoint" in {row[0] for row in counts}
