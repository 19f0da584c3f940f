import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lighttoken import LighttokenError
from lighttoken.dashboard import wandb_report
from lighttoken.run.tracking import figures, flatten

ROOT = Path(__file__).resolve().parent.parent.parent


def inspect(folder: Path, *flags: str) -> str:
    """The output of W&B's own reader of a run folder."""
    reader = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", *flags, "--json", str(folder)],
        capture_output=True,
        text=True,
    )
    assert reader.returncode == 0, reader.stderr
    return reader.stdout


@pytest.fixture
def sweep(checkpoint, sst2, tmp_path) -> tuple[Path, Path]:
    """The folders of two offline runs, uncompressed and compressed.

    They run in a process of their own: W&B keeps the mode that it was first set up with.
    """
    data = [f"model.path={checkpoint()}", "task=sst2", f"task.data_dir={sst2}", "trainer.accelerator=cpu"]
    quick = ["progress=false", "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "ratio=2.5"]
    environment = os.environ | {"WANDB_MODE": "offline", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "home")}
    environment.pop("WANDB_DATA_DIR", None)
    command = [sys.executable, "-m", "lighttoken.train", "-m", *data, *quick, "codec=none,lighttoken_paper"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    none, paper = sorted(Path("outputs/sweeps").glob("*/*_seed0"))
    return none, paper


@pytest.mark.slow
def test_an_offline_run_reads_back_as_its_metrics_and_its_record(sweep, tmp_path):
    _, folder = sweep
    record = json.loads((folder / "record.json").read_text())
    reference = json.loads((sweep[0] / "record.json").read_text())
    (run,) = folder.glob("wandb/offline-run-*")
    lines = [json.loads(line) for line in inspect(run).splitlines()]

    written = set()
    with (folder / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            step = int(row.pop("step"))
            written |= {(step, key, float(value)) for key, value in row.items() if value}
    read = set()
    for line in lines:
        if line["type"] == "history":
            item = line["history"]["item"]
            step = item.get("trainer/global_step")
            read |= {(step, key, float(value)) for key, value in item.items() if isinstance(value, (int, float))}
    assert len(written) > 50
    assert {entry for entry in written if entry[1] != "epoch"} <= read

    overview = json.loads(inspect(run, "--summary"))
    assert (overview["state"], overview["exit_code"]) == ("finished", 0)
    summary = overview["summary"]
    assert {name: summary[name] for name in record["metrics"]} == pytest.approx(record["metrics"])
    assert (summary["ratio"], summary["bytes"]) == (record["ratio"], record["artifact_bytes"])
    assert summary["nmse"] == record["compression"]["nmse"]
    accuracies = [run["metrics"]["val/accuracy"] for run in (record, reference)]
    assert (summary["score"], summary["retention"]) == (accuracies[0], accuracies[0] / accuracies[1])

    assert overview["tags"] == ["sst2", "lighttoken_paper", "2.5x"]
    config = overview["config"]
    assert (config["codec"], config["ratio"], config["task"], config["model"]) == (
        "lighttoken_paper",
        2.5,
        "sst2",
        "tiny_bert",
    )
    assert config["codec/stage_bits"] == record["config"]["codec"]["stage_bits"]
    groups = {line["run"].get("run_group") for line in lines if line["type"] == "run"}
    assert groups == {folder.parent.name}

    artifacts = [line for line in lines if line["type"] == "artifact"]
    (artifact,) = [line for line in artifacts if line["artifact"]["type"] == "compressed_table"]
    assert Path(record["artifact"]).name in json.dumps(artifact)
    staged = [path for path in (folder / "wandb/data").rglob("*") if path.is_file()]
    sizes = {path.stat().st_size for path in Path(record["artifact"]).iterdir()}
    assert sizes <= {path.stat().st_size for path in staged}
    assert not (tmp_path / "home/.local/share/wandb").exists()


def test_a_run_has_the_figures_and_tables_that_its_record_has_numbers_for():
    assert figures({}, {}, "svd", 2.0) == {}
    table = {
        "singular_values": {"index": [1, 2, 8], "value": [3.0, 2.0, 1.0]},
        "gaussian_bound": {"ratio": [2.0, 4.0], "nmse": [0.1, 0.2]},
    }
    charts = figures(table, {"nmse": 0.3, "nmse_by_frequency_tenth": [0.1, 0.2, 0.3]}, "svd", 2.0)
    assert charts["error by frequency"].data == [[1, 0.1], [2, 0.2], [3, 0.3]]
    assert charts["figures/spectrum"].table.data == [[1, 3.0], [2, 2.0], [8, 1.0]]
    points = charts["figures/rate-distortion"].table.data
    assert sorted(points) == [[2.0, "Gaussian bound", 0.1], [2.0, "svd", 0.3], [4.0, "Gaussian bound", 0.2]]


def test_a_config_becomes_columns():
    config = {
        "seed": 0,
        "codec": {"_target_": "lighttoken.codec.LightToken", "name": "svd", "trainer": {"max_steps": 3}},
        "task": {"text_columns": ["sentence"]},
        "logger": {"csv": {"name": ""}},
        "output_dir": "outputs",
    }
    assert flatten(config) == {
        "seed": 0,
        "codec/name": "svd",
        "codec/trainer/max_steps": 3,
        "task/text_columns": ["sentence"],
    }


def test_the_workspace_groups_runs_and_has_all_panels():
    view = json.loads(wandb_report.workspace("someone", "lighttoken")._to_model().model_dump_json(by_alias=True))
    assert (view["entity"], view["project"]) == ("someone", "lighttoken")
    spec = json.dumps(view["spec"])
    section = view["spec"]["section"]
    names = [part["name"] for part in section["panelBankConfig"]["sections"] if part["panels"]]
    assert names == ["Score against ratio", "The table", "Training"]
    (runs,) = section["runSets"]
    assert [(key["section"], key["name"]) for key in runs["grouping"]] == [
        ("config", "task.value"),
        ("config", "codec.value"),
        ("config", "ratio.value"),
    ]
    for name in ("summary:retention", "summary:nmse", "error by frequency", "stage.*/saturation", "train/loss"):
        assert name in spec


def test_the_report_has_the_same_panels(monkeypatch):
    from wandb_workspaces.reports.v2 import interface

    monkeypatch.setattr(interface, "_get_api", lambda: None)
    monkeypatch.setattr(interface, "execute_graphql", lambda *_: {"project": {"internalId": "1"}})
    spec = json.loads(wandb_report.report("someone", "lighttoken")._to_model().spec.model_dump_json(by_alias=True))
    grids = [block for block in spec["blocks"] if block["type"] == "panel-grid"]
    assert [len(grid["metadata"]["panelBankSectionConfig"]["panels"]) for grid in grids] == [3, 3, 3]


def test_a_missing_key_or_package_is_named_with_its_cure(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(LighttokenError, match="a W&B workspace needs a key: run wandb login, or set WANDB_API_KEY"):
        wandb_report.publish("lighttoken")
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(LighttokenError, match=r"needs wandb-workspaces; run pip install 'lighttoken\[wandb\]'"):
        wandb_report.publish("lighttoken")
