"""The table that a sweep ends with."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from lighttoken.dashboard.answer import Answer, pivot
from lighttoken.dashboard.gather import gather, points
from tests.dashboard.conftest import page_of, read_data


def scored(value: float) -> dict:
    return {"metrics": {"val/accuracy": value, "val/loss": 0.5}}


def rows_of(folder: Path) -> dict[str, list[str]]:
    """The cells of the table by its first column; markup as it is."""
    table = pivot(points(gather([folder])))
    columns = [list(column.cells) for column in table.columns]
    return {name: list(cells) for name, *cells in zip(*columns, strict=True)} | {
        "columns": [str(column.header) for column in table.columns]
    }


def test_codecs_are_rows_ratios_are_columns_and_the_best_is_bold(run_folder):
    for seed, score in enumerate((0.80, 0.82)):
        run_folder("mrpc", "none", seed=seed, **scored(score))
        run_folder("mrpc", "lighttoken", 25.0, seed=seed, **scored(score - 0.01))
        run_folder("mrpc", "svd", 25.0, seed=seed, **scored(score - 0.2))
    run_folder("mrpc", "svd", 103.0, **scored(0.4))
    assert rows_of(Path("outputs")) == {
        "columns": ["codec", "1x", "25x", "103x"],
        "none": ["0.8100 n=2", "", ""],
        "lighttoken": ["", "[bold]0.8000 0.988 ± 0.000 n=2[/bold]", ""],
        "svd": ["", "0.6100 0.753 ± 0.003 n=2", "0.4000 0.500"],
    }


def test_the_uncompressed_score_is_that_of_the_runs_to_refer_to(run_folder):
    run_folder("mrpc", "none", **scored(0.6), constant={"val/accuracy": 0.3})
    run_folder("mrpc", "none", config={"distill": "outputs/teacher"}, **scored(0.66))
    run_folder("mrpc", "none", config={"backbone_precision": "int8"}, **scored(0.64))
    run_folder("mrpc", "lighttoken", 25.0, **scored(0.57))
    run_folder("mrpc", "svd", 25.0, **scored(0.5))
    rows = rows_of(Path("outputs"))
    assert rows["none"][0].startswith("0.6000")
    assert {name for name in rows if name.startswith("none (")} == {
        "none (backbone_precision=float32, distilled=true)",
        "none (backbone_precision=int8, distilled=false)",
    }
    (answer,) = read_data(page_of(Path("outputs")))["answers"]
    assert answer["uncompressed"]["score"] == pytest.approx(0.6)
    assert answer["constant_retention"] == pytest.approx(0.5)
    assert not [row["label"] for row in answer["rows"] if row["label"].startswith("none")]


def test_the_score_of_a_constant_answer_stands_below(run_folder):
    run_folder("mrpc", "none", **scored(0.8))
    run_folder("mrpc", "svd", constant={"val/accuracy": 0.68, "val/loss": 0.0}, **scored(0.7))
    assert pivot(points(gather([Path("outputs")]))).caption == "a constant answer scores 0.6800"


def test_the_page_opens_with_the_same_table(run_folder):
    constant = {"constant": {"val/accuracy": 0.6}}
    for seed, score in enumerate((0.80, 0.82)):
        run_folder("mrpc", "none", seed=seed, **scored(score))
        run_folder("mrpc", "lighttoken", 25.0, seed=seed, **scored(score - 0.01), **constant)
    run_folder("mrpc", "svd", 25.0, **scored(0.6), **constant)
    run_folder("cola", "none", **scored(0.6))  # nothing to compare
    (answer,) = read_data(page_of(Path("outputs")))["answers"]
    assert (answer["title"], answer["ratios"]) == ("mrpc, minilm_l6, 3 epochs", [25.0])
    assert answer["uncompressed"]["score"] == pytest.approx(0.81)
    assert (answer["constant"], answer["constant_retention"]) == (0.6, pytest.approx(0.6 / 0.81))
    cells = {row["label"]: row["cells"][0] for row in answer["rows"]}
    assert (cells["lighttoken"]["best"], cells["lighttoken"]["is_constant"], cells["lighttoken"]["n"]) == (
        True,
        False,
        2,
    )
    assert (cells["svd"]["best"], cells["svd"]["is_constant"]) == (False, True)
    assert cells["svd"]["retention"] == pytest.approx(0.75)
    assert answer["scale"] >= 1


def test_of_a_perplexity_the_lowest_is_bold(run_folder):
    for codec, value in (("none", 20.0), ("svd", 30.0), ("pq", 25.0)):
        run_folder("perplexity", codec, 8.0, metrics={"val/perplexity": value}, config={"finetune": {}})
    rows = rows_of(Path("outputs"))
    assert rows["pq"] == ["", "[bold]25.0000 0.800[/bold]"]
    assert rows["svd"] == ["", "30.0000 0.667"]


def test_a_sweep_prints_it_with_the_jobs_that_it_skipped(run_folder, capsys, tmp_path):
    folders = [run_folder("mrpc", codec, ratio, **scored(0.8)) for codec, ratio in (("svd", 25.0), ("none", 1.0))]
    jobs = [{"number": i, "overrides": [], "folder": str(folder), "status": "done"} for i, folder in enumerate(folders)]
    jobs[1]["status"] = "skipped"
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/sweep.json").write_text(json.dumps(jobs))
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "sweep")}}, "output_dir": "outputs"})
    Answer().on_multirun_end(config)
    out = capsys.readouterr().out
    assert "mrpc, minilm_l6, 3 epochs: score, retention" in out
    assert "0.8000 1.000" in out
    assert "python -m lighttoken.report outputs" in out


@pytest.mark.parametrize("runs", [0, 1])
def test_a_sweep_without_two_settings_has_no_table(run_folder, capsys, tmp_path, runs):
    folders = [run_folder("mrpc", "svd") for _ in range(runs)]
    jobs = [{"number": 0, "overrides": [], "folder": str(folder), "status": "done"} for folder in folders]
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/sweep.json").write_text(json.dumps(jobs))
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "sweep")}}, "output_dir": "outputs"})
    Answer().on_multirun_end(config)
    assert "score, retention" not in capsys.readouterr().out


def test_names_with_markup_stay_text(run_folder):
    run_folder("mrpc", "[red]codec", 25.0, **scored(0.8))
    run_folder("mrpc", "svd", 25.0, **scored(0.7))
    console = Console(width=200, file=None, record=True)
    with console.capture() as captured:
        console.print(pivot(points(gather([Path("outputs")]))))
    assert "[red]codec" in captured.get()
