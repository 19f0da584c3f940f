import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from lighttoken import LighttokenError
from lighttoken.config.schema import config_dir, register
from lighttoken.run.reading import RECORD_FILE, read_records
from lighttoken.run.records import Record, asked_for, find_reference, recipe

SAMPLES = Path(__file__).parents[1] / "samples/records"  # made before classes moved to other modules


def make(folder, codec="lighttoken", **config) -> Record:
    settings = {"task": {"name": "sst2"}, "seed": 0, "codec": {"name": codec}, "ratio": 25} | config
    return Record(folder, settings, model="tiny", task="sst2", codec=codec, seed=settings["seed"], ratio_asked=25.0)


def read(folder):
    return json.loads((folder / RECORD_FILE).read_text())


def test_a_record_is_there_from_the_start_and_complete_at_the_end(tmp_path):
    record = make(tmp_path / "run")
    with record.running():
        assert read(tmp_path / "run")["status"] == "running"
        with record.phase("compress"):
            pass
        record.metrics = {"val/accuracy": 0.5}
    written = read(tmp_path / "run")
    assert written["status"] == "done"
    assert written["metrics"] == {"val/accuracy": 0.5}
    assert written["seconds"].keys() == {"compress"}
    assert written["peak_memory_bytes"] > 1e7
    assert {"torch", "lighttoken", "transformers"} <= written["versions"].keys()
    assert written["hardware"]["cpu_cores"] >= 1
    assert written["config"]["ratio"] == 25
    assert [path.name for path in (tmp_path / "run").iterdir()] == [RECORD_FILE]


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), KeyboardInterrupt()])
def test_a_run_that_ends_early_is_recorded_as_failed(tmp_path, error):
    with pytest.raises(type(error)), make(tmp_path).running():
        raise error
    written = read(tmp_path)
    assert written["status"] == "failed"
    assert written["error"].startswith(type(error).__name__)


def test_a_run_that_was_interrupted_says_so(tmp_path):
    with pytest.raises(SystemExit), make(tmp_path).running():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)  # as Lightning does
    assert read(tmp_path)["error"] == "KeyboardInterrupt"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(LighttokenError, match="cannot make the folder .*file/run"),
        make(tmp_path / "file" / "run").running(),
    ):
        pytest.fail("the run must not start")


def test_scores_that_cannot_be_written_are_printed(tmp_path, caplog):
    record = make(tmp_path / "run")
    with pytest.raises(LighttokenError), record.running():
        record.metrics = {"val/accuracy": 0.875}
        (tmp_path / "run" / RECORD_FILE).unlink()
        (tmp_path / "run").rmdir()
        (tmp_path / "run").touch()
    assert "{'val/accuracy': 0.875}" in caplog.text


def test_the_reference_is_the_latest_uncompressed_run_of_the_same_recipe(tmp_path):
    def finished(name, started, codec="none", **config):
        record = replace(make(tmp_path / name, codec, **config), started=started)
        with record.running():
            pass

    finished("old", "2026-01-01")
    finished("new", "2026-01-02")
    finished("other_seed", "2026-01-03", seed=1)
    finished("other_task", "2026-01-04", task={"name": "cola"})
    finished("other_codec", "2026-01-05", codec="svd")
    finished("distilled", "2026-01-06", distill="new")
    failed = replace(make(tmp_path / "failed", "none"), started="2026-01-06")
    with pytest.raises(RuntimeError), failed.running():
        raise RuntimeError
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / RECORD_FILE).write_text("{")
    for name, content in (("list", "[1]"), ("foreign", '{"codec": "none", "status": "done"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / RECORD_FILE).write_text(content)
    reference = find_reference(make(tmp_path / "mine", ratio=103), tmp_path)
    assert reference["directory"] == str(tmp_path / "new")
    assert find_reference(make(tmp_path / "mine", seed=7), tmp_path) is None
    other_device = make(tmp_path / "mine", ratio=103)
    other_device.hardware = other_device.hardware | {"accelerator": "another"}
    assert find_reference(other_device, tmp_path) is None  # a seed draws other numbers there
    assert find_reference(make(tmp_path / "mine", ratio=103, distill="new", save_model=True), tmp_path) == reference
    taught = make(tmp_path / "mine", ratio=103, distill="new", finetune={"distill_weight": 0.9})
    assert find_reference(taught, tmp_path) == reference  # the reference learns from none
    assert len(read_records(tmp_path)) == 7


def test_folders_that_vanish_meanwhile_and_records_that_make_no_sense_are_left_out(tmp_path, monkeypatch):
    with make(tmp_path / "run").running():
        pass
    for name, config in (("null", None), ("empty", {})):
        (tmp_path / name).mkdir()
        content = read(tmp_path / "run") | {"config": config}
        (tmp_path / name / RECORD_FILE).write_text(json.dumps(content))
    (tmp_path / "resume").mkdir()
    scan = os.scandir

    def vanishing(path):
        if str(path).endswith("resume"):
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr("os.scandir", vanishing)
    assert [record["directory"] for record in read_records(tmp_path)] == [str(tmp_path / "run")]


def test_sizes_are_those_of_the_model_and_of_the_artifact(tmp_path):
    record = make(tmp_path)
    assert record.table_shares == (None, None)
    model = nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 25, bias=False))
    record.add_model(model, model[0].weight)
    assert (record.table_bytes, record.artifact_bytes, record.model_bytes) == (3200, 3200, 4000)
    record.add_artifact(320, tmp_path / "artifact", reused=True)
    assert (record.ratio, record.artifact, record.artifact_reused) == (10.0, str(tmp_path / "artifact"), True)
    record.add_stored_model(model.to(torch.float16))
    assert record.stored_bytes == 2000
    assert record.table_shares == (0.8, 0.16)


def test_records_made_before_classes_moved_pair_with_new_ones(tmp_path):
    register()
    command = ["task=sst2", "model.path=/data/tiny_bert", "task.data_dir=/data/sst2", "ratio=3", "trainer.max_epochs=1"]
    with hydra.initialize_config_dir(config_dir(), version_base="1.3"):
        config = hydra.compose("train", [*command, "logger=none", "progress=false"])
        uncompressed = hydra.compose("train", [*command, "logger=none", "progress=false", "codec=none"])
    today, none = (OmegaConf.to_container(entry, resolve=True) for entry in (config, uncompressed))
    samples = {record["codec"]: record for record in read_records(SAMPLES)}
    assert recipe(samples["lighttoken"]["config"]) == recipe(samples["none"]["config"]) == recipe(today)
    assert asked_for(samples["none"]["config"]) == asked_for(none)  # a sweep does not run it again
    assert recipe(samples["none"]["config"]) != recipe(today | {"seed": 1})
    record = replace(make(tmp_path), config=today, hardware={"accelerator": "none"})
    assert find_reference(record, SAMPLES)["directory"] == str(SAMPLES / "none")
