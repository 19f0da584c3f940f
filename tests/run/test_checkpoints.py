"""A checkpoint that is not as it was written is not used."""

import json
from pathlib import Path

import pytest
import torch

from lighttoken import LighttokenError
from lighttoken.run.checkpoints import CHECKPOINT_FILE, CheckedCheckpoints, find_checkpoint, is_whole, read_checkpoint
from lighttoken.tasks.finetuner import FineTuner


def change(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "four bytes":
        content[len(content) // 2 : len(content) // 2 + 4] = bytes(byte ^ 255 for byte in content[-4:])
    path.write_bytes({"four bytes": content, "half": content[: len(content) // 2], "empty": b""}[how])


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "resume" / "key"
    best, checkpoints = folder / "best" / "epoch.ckpt", CheckedCheckpoints(resume=True)
    checkpoints.save_checkpoint({"state_dict": {"w": torch.randn(100)}}, best)
    states = {"ModelCheckpoint": {"best_model_path": str(best)}, "Timer": {"time_elapsed": {}}}
    checkpoints.save_checkpoint({"callbacks": states, "w": torch.randn(100)}, folder / CHECKPOINT_FILE)
    return folder


def test_a_whole_checkpoint_is_found(folder):
    assert find_checkpoint(folder) == folder / CHECKPOINT_FILE
    assert read_checkpoint(folder / CHECKPOINT_FILE)["w"].shape == (100,)
    assert find_checkpoint(folder.parent / "other") is None


@pytest.mark.parametrize("name", [CHECKPOINT_FILE, "best/epoch.ckpt"])
@pytest.mark.parametrize("how", ["four bytes", "half", "empty", "missing"])
def test_a_damaged_checkpoint_is_set_aside_with_one_line(folder, caplog, name, how):
    if how == "missing":
        (folder / name).unlink()
    else:
        change(folder / name, how)
    assert not is_whole(folder / name)
    assert find_checkpoint(folder) is None
    if (name, how) != (CHECKPOINT_FILE, "missing"):
        (line,) = caplog.messages
        assert line.startswith(f"{folder / name} is damaged: it is kept in {folder}.damaged")
        assert [path.name for path in folder.parent.iterdir()] == ["key.damaged"]


def test_a_damaged_checkpoint_is_not_read(folder):
    change(folder / CHECKPOINT_FILE, "four bytes")
    with pytest.raises(LighttokenError, match="is damaged: it has not the hash"):
        read_checkpoint(folder / CHECKPOINT_FILE)


def test_the_best_epoch_that_a_checkpoint_names_is_there_until_the_next_checkpoint(folder):
    checkpoints = CheckedCheckpoints(resume=True)
    best = folder / "best" / "epoch.ckpt"
    checkpoints.remove_checkpoint(best)
    assert best.exists()
    checkpoints.save_checkpoint({"callbacks": {}}, folder / CHECKPOINT_FILE)
    assert not best.exists()


@pytest.mark.slow
def test_a_run_starts_again_from_a_damaged_checkpoint_and_ends_as_an_undisturbed_one(
    command, checkpoint, sst2, monkeypatch
):
    settings = ["task=sst2", f"task.data_dir={sst2}", f"model.path={checkpoint()}", "trainer.accelerator=cpu"]
    settings += ["codec=svd", "ratio=2", "trainer.max_epochs=2", "logger=none", "callbacks={}", "progress=false"]

    def killed(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    def metrics() -> list[dict]:
        records = [json.loads(path.read_text()) for path in sorted(Path("outputs/runs").glob("*/record.json"))]
        return [record["metrics"] for record in records if record["status"] == "done"]

    assert command("train", *settings)[0] == 0
    step = FineTuner.training_step
    monkeypatch.setattr(FineTuner, "training_step", killed)
    with pytest.raises(RuntimeError, match="killed"):
        command("train", *settings, "resume=true")
    monkeypatch.setattr(FineTuner, "training_step", step)
    (path,) = Path("outputs/resume").glob("*/last.ckpt")
    change(path, "four bytes")
    code, out, err = command("train", *settings, "resume=true")
    assert code == 0, err
    assert "is damaged: it is kept in" in out
    assert len(metrics()) == 2
    assert metrics()[0] == metrics()[1]
    assert [entry.name for entry in Path("outputs/resume").iterdir()] == [f"{path.parent.name}.damaged"]


def test_a_loss_that_is_not_finite_is_not_a_result(command, checkpoint, sst2, monkeypatch):
    settings = ["task=sst2", f"task.data_dir={sst2}", f"model.path={checkpoint()}", "trainer.accelerator=cpu"]
    settings += ["codec=none", "trainer.max_epochs=1", "logger=none", "callbacks={}", "progress=false"]
    step = FineTuner.training_step
    monkeypatch.setattr(FineTuner, "training_step", lambda *arguments: step(*arguments) * torch.nan)
    code, _, err = command("train", *settings)
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("error: train/loss is nan and must be finite; lower finetune.learning_rate=")
    (record,) = Path("outputs/runs").glob("*/record.json")
    assert json.loads(record.read_text())["status"] == "failed"
