"""experiments/evidence.py: its arithmetic, and a grid from end to end."""

import csv
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from experiments.evidence import grid, key, main, name_of, run_all, summarise, task_means
from lighttoken.run.sweep import quoted, run_process


def row(task: str, codec: str, seed: int, score: float, trainable: str = "frozen", ratio: str = "25") -> dict[str, str]:
    told = {"task": task, "codec": codec, "trainable": trainable, "ratio": "1" if codec == "none" else ratio}
    return told | {"distill": "no", "accelerator": "none", "seed": str(seed), "score": str(score)}


def test_retention_is_against_the_better_reference_on_the_same_seeds():
    rows = [row("cola", "none", seed, score) for seed, score in enumerate((0.50, 0.52, 0.90))]
    rows += [row("cola", "none", seed, score, "decoder") for seed, score in enumerate((0.54, 0.56, 0.10))]
    rows += [row("cola", "lighttoken", seed, score) for seed, score in enumerate((0.53, 0.57))]  # seeds 0 and 1 alone
    *references, line = summarise(rows)
    assert [each["codec"] for each in references] == ["none", "none"]
    assert line["reference"] == pytest.approx(0.55)
    assert line["retention"] == pytest.approx(1.0)
    # By hand: score - reference is -0.01 and 0.01, their sd 0.01 * sqrt(2), over 0.55 * sqrt(2).
    assert line["standard_error"] == pytest.approx(0.01 / 0.55)
    assert line["n"] == 2


def test_the_mean_over_tasks_leaves_squad_out():
    rows = [row(task, "none", 0, score) for task, score in (("cola", 0.5), ("rte", 0.7), ("squad", 80.0))]
    rows += [row(task, "svd", 0, score) for task, score in (("cola", 0.4), ("rte", 0.5), ("squad", 10.0))]
    (mean,) = task_means(summarise(rows))
    assert mean["task"] == "mean of cola, rte"
    assert mean["retention"] == pytest.approx(0.9 / 1.2)
    assert "standard_error" not in mean  # one seed has none


def test_the_error_of_a_mean_over_tasks_adds_those_of_the_tasks():
    rows = [row(task, "none", seed, 0.5) for task in ("cola", "rte") for seed in (0, 1)]
    rows += [row("cola", "svd", seed, score) for seed, score in enumerate((0.40, 0.46))]
    rows += [row("rte", "svd", seed, score) for seed, score in enumerate((0.30, 0.38))]
    (mean,) = task_means(summarise(rows))
    # By hand: the standard errors of the two means are 0.03 and 0.04, that of their mean sqrt(0.03^2 + 0.04^2) / 2.
    assert mean["standard_error"] == pytest.approx(0.025 / 0.5)


def test_runs_on_different_accelerators_are_not_paired():
    rows = [row("cola", "none", seed, 0.5) for seed in (0, 1)] + [row("cola", "svd", seed, 0.4) for seed in (0, 1)]
    rows += [row("cola", "svd", 0, 0.3) | {"accelerator": "NVIDIA H100"}, row("cola", "svd", 2, 0.1)]
    lines = {each["accelerator"]: each for each in summarise(rows) if each["codec"] == "svd"}
    assert "retention" not in lines["none"]  # seed 2 has no reference
    assert "retention" not in lines["NVIDIA H100"]  # its reference ran elsewhere
    rows = [*rows[:-1], row("cola", "none", 0, 0.6) | {"accelerator": "NVIDIA H100"}]
    lines = {each["accelerator"]: each for each in summarise(rows) if each["codec"] == "svd"}
    assert lines["none"]["retention"] == pytest.approx(0.8)
    assert lines["NVIDIA H100"]["retention"] == pytest.approx(0.5)
    assert {each["accelerator"] for each in task_means(list(lines.values()))} == {"none", "NVIDIA H100"}


def test_a_distilled_reference_is_compared_with_and_is_no_reference():
    rows = [row("cola", "none", 0, 0.5), row("cola", "none", 0, 0.6) | {"distill": "yes"}]
    rows += [row("cola", "svd", 0, 0.4) | {"distill": each} for each in ("no", "yes")]
    lines = {(each["codec"], each["distill"]): each for each in summarise(rows)}
    assert lines["none", "yes"]["retention"] == pytest.approx(1.2)
    assert lines["svd", "no"]["retention"] == lines["svd", "yes"]["retention"] == pytest.approx(0.8)


def test_a_grid_with_distillation_has_each_run_once_more():
    told = {"tasks": ["rte"], "seeds": None, "codecs": ["svd"], "ratios": [25.0], "trainable": "frozen"}
    told["accelerator"] = "none"
    plain, taught = (grid(Namespace(**told, distill=each)) for each in (False, True))
    names = ("codec", "trainable", "distill", "seed")
    wanted = [("none", "frozen", "no"), ("none", "decoder", "no"), ("svd", "frozen", "no")]
    assert [tuple(each[name] for name in names) for each in plain] == [(*w, seed) for seed in "01" for w in wanted]
    wanted += [("svd", "frozen", "yes"), ("none", "frozen", "yes")]
    assert [tuple(each[name] for name in names) for each in taught] == [(*w, seed) for seed in "01" for w in wanted]


def test_a_grid_ends_whatever_fails_and_the_same_command_goes_on(checkpoint, sst2, monkeypatch, capsys):
    def run(*arguments: str) -> tuple[int, list[dict[str, str]], str]:
        told = ["evidence", "grid", "--data", str(sst2.parent), "--tasks", "sst2", "--codecs", "svd", "--seeds", "0"]
        told += [*arguments, "--distill", "--workers", "2", "--output", "runs_of_grid", "--overrides"]
        told += [f"model.path={checkpoint()}", "trainer.accelerator=cpu", "trainer.max_epochs=1"]
        monkeypatch.setattr(sys, "argv", told)
        with pytest.raises(SystemExit) as stop:
            main()
        with Path("grid/records.csv").open(newline="") as file:
            return int(stop.value.code or 0), list(csv.DictReader(file)), capsys.readouterr().err

    code, rows, said = run("--ratios", "2", "5000")
    assert code == 1
    names = ("codec", "trainable", "distill", "ratio")
    plain, trained = ("none", "frozen", "no", "1"), ("none", "decoder", "no", "1")
    done = [trained, plain, ("none", "frozen", "yes", "1"), ("svd", "frozen", "no", "2"), ("svd", "frozen", "yes", "2")]
    assert [tuple(row[name] for name in names) for row in rows] == done
    failed = [line for line in said.splitlines() if line.startswith("failed: ")]
    assert [line.split(": ")[1] for line in failed] == [
        f"sst2_svd_5000x_frozen_seed0{each}" for each in ("", "_distilled")
    ]
    assert all("ratio 5000 cannot be met" in line for line in failed)
    written = {path: path.stat().st_mtime_ns for path in Path("runs_of_grid/runs").glob("*/record.json")}
    Path("grid/records.csv").write_text("".join(Path("grid/records.csv").read_text().splitlines(keepends=True)[:-2]))
    code, again, _ = run("--ratios", "2")  # two rows were lost, their runs were not
    assert (code, again) == (0, rows)
    assert {path: path.stat().st_mtime_ns for path in Path("runs_of_grid/runs").glob("*/record.json")} == written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "colaa"], "unknown task colaa; choose among cola, mnli"),
        (["--codecs", "foo"], "unknown codec foo; choose among compositional_codes"),
        (["--tasks", "cola", "rte"], "has no folder rte"),
    ],
)
def test_what_is_not_there_is_told_before_the_first_run(monkeypatch, capsys, tmp_path, arguments, message):
    (tmp_path / "cola").mkdir()
    monkeypatch.setattr(sys, "argv", ["evidence", "grid", "--data", str(tmp_path), *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert message in capsys.readouterr().err
    assert not Path("grid").exists()


def test_a_run_that_is_killed_ends_no_grid(monkeypatch, tmp_path):
    told = {"data": str(tmp_path), "output": "a, folder=of 'runs'", "overrides": [], "distill": False, "workers": 2}
    arguments, ended = Namespace(**told), []
    points = [row("rte", "svd", seed, 0.0) for seed in range(4)]
    code = "import os, sys; os.kill(os.getpid(), 9 if 'seed=1' in sys.argv else 0)"

    def instead(told: list[str], folder: str) -> int:
        assert f"hydra.run.dir={quoted(folder)}" in told
        return run_process([sys.executable, "-c", code, *told], folder)

    monkeypatch.setattr("experiments.evidence.run_process", instead)
    errors = run_all(points, arguments, ended.append)
    assert errors == {name_of(points[1]): "killed by SIGKILL"}
    assert [each["seed"] for each in sorted(ended, key=key)] == ["0", "2", "3"]
