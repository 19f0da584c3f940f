import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from filelock import FileLock
from lightning.pytorch.utilities.exceptions import SIGTERMException
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
from wandb.errors import UsageError

from lighttoken import LighttokenError, load_table
from lighttoken.artifact.table import METADATA_FILE, TENSORS_FILE, hash_table
from lighttoken.run import artifacts
from lighttoken.run.answers import ANSWERS_FILE, read_answers
from lighttoken.run.transfer import load_teacher
from lighttoken.tasks.finetuner import FineTuner

QUICK = [
    "codec.state_bits=6",
    "codec/prior=zipf",
    "codec.error_metric_sequences=32",
    "ratio=2.5",
    "trainer.max_epochs=1",
]
PAPER = ["codec=lighttoken_paper", "codec.trainer.max_steps=20", "codec.batch_size=64", "codec.stage_bits=16"]


@pytest.fixture
def train(command, checkpoint, sst2):
    """Runs the train command on a small checkpoint and small SST-2; returns output, record and run folder."""

    def run(*arguments: str, architecture: str = "bert", code: int = 0):
        before = set(Path().glob("outputs/runs/*"))
        path = checkpoint(architecture)
        data = ["task=sst2", f"task.data_dir={sst2}", f"model.path={path}", "trainer.accelerator=cpu", "progress=false"]
        other = any(entry.startswith("codec=") for entry in arguments)
        settings = [entry for entry in QUICK if not (other and entry.startswith("codec"))]
        exit_code, out, err = command("train", *data, *settings, *arguments)
        assert exit_code == code, err
        (folder,) = set(Path().glob("outputs/runs/*")) - before
        return out, json.loads((folder / "record.json").read_text()), folder

    return run


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "architecture", ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("roberta", "deberta"))]
)
def test_a_run_leaves_exactly_these_files(train, architecture):
    out, record, folder = train(architecture=architecture)
    assert files(folder) == {
        ".hydra/config.yaml",
        ".hydra/hydra.yaml",
        ".hydra/overrides.yaml",
        "answers.safetensors",
        "hparams.yaml",
        "metrics.csv",
        "record.json",
        "train.log",
    }
    (artifact,) = Path("outputs/artifacts").iterdir()
    assert files(artifact) == {METADATA_FILE, TENSORS_FILE}
    assert record["status"] == "done"
    assert record["model"] == f"tiny_{architecture}"
    assert (record["task"], record["codec"], record["seed"], record["ratio_asked"]) == ("sst2", "lighttoken", 0, 2.5)
    assert record["artifact_bytes"] == sum(path.stat().st_size for path in artifact.iterdir())
    assert record["ratio"] == 200 * 32 * 4 / record["artifact_bytes"] >= 2.5
    assert record["metrics"].keys() == {"val/accuracy", "val/loss"}
    assert record["constant"] == {"val/accuracy": 0.5}
    answers, labels = read_answers(folder / ANSWERS_FILE)["val"]
    assert len(labels) == 24
    assert float((answers == labels).double().mean()) == pytest.approx(record["metrics"]["val/accuracy"])
    assert record["seconds"].keys() == {"load", "compress", "measure", "finetune", "evaluate"}
    assert (record["table"]["rows"], record["table"]["dim"]) == (200, 32)
    assert len(record["compression"]["nmse_by_frequency_tenth"]) == 10
    assert sum(record["compression"]["bytes_by_part"].values()) == record["artifact_bytes"]
    assert Path(record["artifact"]) == artifact
    for words in ("val/accuracy", "retention", "ratio", "share of the model", "seconds", "record.json"):
        assert words in out


def test_the_curves_of_both_modules_are_in_the_csv(train):
    _, record, folder = train(*PAPER, "trainer.log_every_n_steps=2")
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    expected = {
        "stage1/loss",
        "stage1/saturation",
        "train/loss",
        "val/accuracy",
        "lr-AdamW/pg1",
        "table/ratio",
        "table/bytes",
    }
    assert expected <= rows[0].keys()
    ratio = [float(row["table/ratio"]) for row in rows if row["table/ratio"]]
    assert ratio == [pytest.approx(record["ratio"])]


def test_the_artifact_is_that_of_the_checkpoints_table_and_made_once(train, checkpoint):
    _, first, _ = train()
    table = load_file(checkpoint() / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert load_table(first["artifact"]).source_sha256 == hash_table(table)
    stamp = Path(first["artifact"], TENSORS_FILE).stat().st_mtime_ns
    _, second, _ = train("finetune.learning_rate=1e-4")
    assert second["artifact"] == first["artifact"]
    assert (first["artifact_reused"], second["artifact_reused"]) == (False, True)
    assert second["peak_memory_tables"] is None
    if sys.platform == "linux":
        assert first["peak_memory_tables"] >= 0
    assert second["compression"] == first["compression"]  # measured again
    assert second["table"] == first["table"]
    assert Path(second["artifact"], TENSORS_FILE).stat().st_mtime_ns == stamp
    _, other_seed, _ = train("seed=1")
    assert other_seed["artifact"] != first["artifact"]


@pytest.mark.slow
def test_an_edited_codec_makes_its_own_artifact(train, monkeypatch, tmp_path):
    _, first, _ = train()
    package = Path(artifacts.__file__).parents[1]
    copy = shutil.copytree(package, tmp_path / "lighttoken")
    source = artifacts._source
    moved = lambda module: copy / file.relative_to(package) if (file := source(module)) else None  # noqa: E731
    monkeypatch.setattr(artifacts, "_source", moved)
    assert train()[1]["artifact_reused"]
    for path, reused in (
        ("codec/baselines/svd.py", True),  # another codec
        ("codec/refine.py", False),
        ("artifact/trellis.py", False),
        ("codec/error_metric.py", False),
    ):
        with (copy / path).open("a") as file:
            file.write("# edited\n")
        _, edited, _ = train()
        assert edited["artifact_reused"] == reused, path
        assert (edited["artifact"] == first["artifact"]) == reused, path


def test_a_damaged_artifact_is_made_again(train, caplog):
    _, first, _ = train()
    file = Path(first["artifact"], TENSORS_FILE)
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    train()
    assert file.read_bytes() == good


def test_two_runs_of_a_seed_score_alike_and_seed_0_is_a_seed(train):
    losses = [train(f"seed={seed}")[1]["metrics"]["val/loss"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_retention_is_printed_once_the_uncompressed_run_is_there(train):
    _, reference, _ = train("codec=none")
    assert reference["ratio"] == 1.0
    assert reference["artifact_bytes"] == 200 * 32 * 4
    assert reference["ratio_asked"] is None
    out, record, _ = train()
    retention = record["metrics"]["val/accuracy"] / reference["metrics"]["val/accuracy"]
    assert f"{retention:.4f} of {reference['metrics']['val/accuracy']:.4f}" in out
    assert "retention of val/accuracy" not in train("seed=3")[0]


def test_codec_and_int8_are_measured_against_the_same_run_in_float32(train):
    _, none, _ = train("codec=none")
    _, int8, _ = train("codec=none", "backbone_precision=int8")
    out, both, _ = train("backbone_precision=int8")
    assert none["model_bytes"] > int8["stored_bytes"] > both["stored_bytes"]
    assert f"of {none['metrics']['val/accuracy']:.4f}" in out
    assert "backbone in int8" in out


def test_a_reference_of_zero_is_named_and_not_divided_by(train):
    _, _, folder = train("codec=none")
    record = json.loads((folder / "record.json").read_text())
    record["metrics"]["val/accuracy"] = 0.0
    (folder / "record.json").write_text(json.dumps(record))
    assert "the reference scored 0" in train()[0]


def test_the_uncompressed_run_and_a_compressed_one_start_from_the_same_head_and_batches(train, checkpoint):
    """Factors of rank 4 in float32 lose nothing of a table of rank 4: the two runs end alike."""
    folder = checkpoint()
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"] = torch.randn(200, 4) @ torch.randn(4, 32) * 0.02
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _, reference, _ = train("codec=none", "trainer.max_epochs=3")
    lossless = ["codec=svd", "codec.rank=4", "codec.coefficient_precision=float32", "codec.matrix_precision=float32"]
    _, record, _ = train(*lossless, "trainer.max_epochs=3")
    assert record["compression"]["nmse"] < 1e-12  # of rounding to float32
    assert record["metrics"]["val/loss"] == pytest.approx(reference["metrics"]["val/loss"], rel=1e-4)


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_a_run_that_a_signal_ends_is_not_recorded_as_done(train, monkeypatch, sweep):
    def end(self, batch, batch_idx):
        raise SIGTERMException

    monkeypatch.setattr(FineTuner, "training_step", end)
    folder = f"hydra.{'sweep' if sweep else 'run'}.dir=outputs/runs/it"
    train(folder, "hydra.sweep.subdir=.", *sweep, code=143)
    record = json.loads(Path("outputs/runs/it/record.json").read_text())
    assert (record["status"], record["error"]) == ("failed", "SIGTERMException")


def test_a_failed_run_is_recorded_with_its_error(train):
    _, record, _ = train("ratio=5000", code=2)
    assert record["status"] == "failed"
    assert "ratio 5000 cannot be met" in record["error"]


def test_a_run_needs_no_logger(train):
    _, record, folder = train("logger=none")
    assert record["status"] == "done"
    assert not (folder / "metrics.csv").exists()


def test_early_stopping_watches_held_out_rows(train):
    _, record, _ = train("callbacks=early_stopping", "task.dev_fraction=0.3", "trainer.max_epochs=2")
    assert {"dev/accuracy", "dev/loss", "val/accuracy"} <= record["metrics"].keys()


def test_the_best_weights_on_held_out_rows_are_evaluated(train):
    rate = "finetune.learning_rate=0.02"  # so that later epochs are worse
    _, record, folder = train(
        "trainer.max_epochs=4", rate, "callbacks=best_checkpoint", "task.dev_fraction=0.3", "logger=csv"
    )
    with (folder / "metrics.csv").open() as file:
        losses = [float(row["dev/loss"]) for row in csv.DictReader(file) if row["dev/loss"]]
    assert len(losses) == 5  # four epochs, then the evaluation
    assert losses[-1] == record["metrics"]["dev/loss"] == min(losses[:4])
    assert not list(folder.rglob("*.ckpt"))


def test_early_stopping_without_held_out_rows_is_refused(command, checkpoint, sst2):
    arguments = [f"model.path={checkpoint()}", "task=sst2", f"task.data_dir={sst2}", "codec=none", "progress=false"]
    code, _, err = command("train", *arguments, "callbacks=early_stopping")
    assert code == 2
    assert err == "error: callbacks watch dev/loss and task.dev_fraction is 0; set task.dev_fraction=0.05\n"
    assert not list(Path("outputs").rglob("record.json"))


def test_a_table_with_nan_is_refused(command, checkpoint, sst2):
    folder = checkpoint()
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][7, 1] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    code, _, err = command("train", f"model.path={folder}", "task=sst2", f"task.data_dir={sst2}", "progress=false")
    assert code == 2
    assert "NaN or infinite values in 1 of 200 rows, the first in row 7" in err


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(command, checkpoint, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = command("train", f"output_dir={tmp_path}/file/outputs")
    assert code == 2
    assert err.startswith(f"error: cannot read or write {tmp_path}/file/outputs")
    assert err.count("\n") == 1
    code, _, err = command(
        "compress", f"model.path={checkpoint()}", f"output={tmp_path}/file/artifact", "progress=false"
    )
    assert (code, err) == (
        2,
        f"error: cannot make the folder {tmp_path}/file/artifact: Not a directory; choose another one\n",
    )


def test_a_sweep_runs_every_job(command, checkpoint, sst2):
    arguments = [f"model.path={checkpoint()}", "task=sst2", f"task.data_dir={sst2}", "progress=false", "logger=csv"]
    code, _, err = command(
        "train", "-m", *arguments, "codec=svd", "ratio=2,2.5", "trainer.max_steps=2", "codec.rank=null"
    )
    assert code == 0, err
    records = [json.loads(path.read_text()) for path in sorted(Path().glob("outputs/sweeps/*/*/record.json"))]
    assert [record["ratio_asked"] for record in records] == [2.0, 2.5]
    assert all(record["status"] == "done" for record in records)


def test_wandb_without_a_key_is_one_line(command, checkpoint, sst2, monkeypatch):
    def refuse(**settings):
        raise UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr("wandb.init", refuse)
    arguments = [f"model.path={checkpoint()}", "task=sst2", f"task.data_dir={sst2}", "progress=false", "codec=none"]
    code, _, err = command("train", *arguments, "logger=wandb", "logger.wandb.offline=false")
    assert code == 2
    assert err.splitlines()[-1] == (
        "error: W&B cannot open a run: No API key configured; run wandb login, or keep the run here with "
        "logger.wandb.offline=true"
    )


@pytest.mark.slow
def test_every_job_of_a_sweep_has_a_wandb_run_of_its_own(checkpoint, sst2):
    """In a process of its own: within one, W&B keeps the mode that it was first set up with."""
    arguments = [f"model.path={checkpoint()}", "task=sst2", f"task.data_dir={sst2}", "progress=false", "codec=none"]
    done = subprocess.run(
        [sys.executable, "-m", "lighttoken.train", "-m", *arguments, "seed=0,1", "trainer.max_steps=2"],
        env=os.environ | {"WANDB_MODE": "offline"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert (done.stdout + done.stderr).count("to send it: wandb sync") == 2
    assert "Run summary" not in done.stdout + done.stderr
    assert len(list(Path().glob("outputs/sweeps/*/*/wandb/offline-run-*/*.wandb"))) == 2
    configs = [json.loads(path.read_text())["config"] for path in Path().glob("outputs/sweeps/*/*/record.json")]
    assert [config["logger"]["wandb"]["offline"] for config in configs] == [True, True]


def test_compress_writes_the_artifact_and_nothing_else(command, checkpoint, tmp_path):
    code, out, err = command("compress", f"model.path={checkpoint()}", "output=table", *QUICK[:4], "progress=false")
    assert code == 0, err
    assert files(Path("table")) == {METADATA_FILE, TENSORS_FILE}
    assert load_table("table").ratio >= 2.5
    assert "tiny_bert" in out
    again = ["compress", f"model.path={checkpoint()}", "output=table", *QUICK[:4], "progress=false"]
    code, _, err = command(*again)
    assert (code, err) == (
        2,
        "error: output=table holds an artifact already; choose another folder or add overwrite=true\n",
    )
    before = (Path("table") / TENSORS_FILE).read_bytes()
    assert command(*again, "overwrite=true")[0] == 0
    assert (Path("table") / TENSORS_FILE).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} <= {"table", "tiny_bert", "cache"}


@pytest.mark.parametrize("name", ["none", "stored"])
def test_compress_of_nothing_is_refused(command, name):
    code, _, err = command("compress", f"codec={name}", "output=table")
    assert code == 2
    assert f"codec={name} has nothing to compress" in err


def test_compress_to_a_quality_shows_the_plan(command, checkpoint):
    code, _, err = command("compress", "quality=0.3", "ratio=30", "output=kept")
    assert (code, err) == (2, "error: ratio=30 and quality=0.3 are two goals; give one of them\n")
    arguments = ["codec.state_bits=6", "codec/prior=zipf", "codec.error_metric=euclidean", "progress=false"]
    arguments += [f"model.path={checkpoint()}", "output=table", "quality=0.4", "measure=nmse"]
    code, out, err = command("compress", *arguments)
    assert code == 0, err
    assert load_table("table").summary["nmse"] <= 0.4
    for words in (
        "lighttoken for nmse 0.4",
        "tiers of rows",
        "share of the bits",
        "bytes by part",
        "decoder",
        "description",
    ):
        assert words in out
    code, _, err = command("compress", *arguments, "measure=beauty", "overwrite=true")
    assert (code, err) == (2, "error: unknown measure 'beauty'; choose one of weighted_nmse, nmse, cosine\n")


def test_a_killed_run_goes_on_to_the_same_weights(train, monkeypatch):
    weights: list[dict] = []
    original = FineTuner.training_step

    def killed(self, batch, batch_idx):
        if self.current_epoch == 2 and batch_idx == 1:
            raise RuntimeError("killed")
        return original(self, batch, batch_idx)

    def remember(self):
        weights.append({name: tensor.clone() for name, tensor in self.state_dict().items()})

    monkeypatch.setattr(FineTuner, "on_fit_end", remember)
    epochs = "trainer.max_epochs=4"
    _, whole, _ = train(epochs)
    monkeypatch.setattr(FineTuner, "training_step", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train(epochs, "resume=true")
    monkeypatch.setattr(FineTuner, "training_step", original)
    (checkpoint,) = Path("outputs/resume").rglob("*.ckpt")
    before = torch.load(checkpoint, weights_only=True)["callbacks"]["Timer"]["time_elapsed"]["train"]
    assert before > 0.01
    _, resumed, _ = train(epochs, "resume=true")
    assert resumed["resumed"] == str(checkpoint)
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["seconds"]["finetune"] > before + 0.01  # that of the run that was killed is in it
    first, second = weights
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not checkpoint.exists()  # the run is done; the same command starts a new one


def test_a_process_leaves_the_checkpoint_of_another_with_the_same_command(command, checkpoint, sst2, monkeypatch):
    def killed(self):
        raise RuntimeError("killed")

    settings = [f"task.data_dir={sst2}", f"model.path={checkpoint()}", "trainer.accelerator=cpu", "progress=false"]
    settings = ["train", "task=sst2", *settings, *QUICK]
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(FineTuner, "on_fit_end", killed)
        command(*settings, "resume=true")
    (kept,) = Path("outputs/resume").rglob("*.ckpt")
    (lock,) = Path("outputs/locks").glob("resume_*")
    with FileLock(lock):  # as the other process holds it
        code, _, err = command(*settings, "resume=true")
        assert (code, err.splitlines()[-1]) == (
            2,
            f"error: another process runs this command and writes {kept}; wait for it, or set resume=false",
        )
        assert command(*settings)[0] == 0
    assert kept.is_file()
    assert command(*settings, "resume=true")[0] == 0
    assert not kept.exists()


@pytest.mark.slow
@pytest.mark.parametrize("callback", ["best_checkpoint", "early_stopping"])
@pytest.mark.parametrize("phase", ["training", "evaluation"])
def test_a_killed_run_goes_on_to_the_epoch_that_held_out_rows_choose(train, monkeypatch, callback, phase):
    def killed(self, batch, batch_idx, *others):
        if self.current_epoch == 1 if phase == "training" else self.trainer.state.fn == "validate":
            raise RuntimeError("killed")
        return step(self, batch, batch_idx, *others)

    # With such a rate the first epoch is the best one, and the loss rises after it.
    settings = ["trainer.max_epochs=4", "finetune.learning_rate=0.02", "task.dev_fraction=0.3", "logger=csv"]
    settings += [f"callbacks={callback}", "codec=none"]
    _, whole, folder = train(*settings)
    with (folder / "metrics.csv").open() as file:
        epochs = len([row for row in csv.DictReader(file) if row["dev/loss"]]) - 1  # and the evaluation
    assert epochs == (2 if callback == "early_stopping" else 4)
    name = "training_step" if phase == "training" else "validation_step"
    step = getattr(FineTuner, name)
    monkeypatch.setattr(FineTuner, name, killed)
    with pytest.raises(RuntimeError, match="killed"):
        train(*settings, "resume=true")
    monkeypatch.setattr(FineTuner, name, step)
    _, resumed, _ = train(*settings, "resume=true")
    assert resumed["resumed"]
    assert resumed["metrics"] == whole["metrics"]
    assert not list(Path("outputs").rglob("*.ckpt"))


def test_a_run_learns_from_an_uncompressed_one(train, checkpoint, sst2):
    _, _, first = train("codec=none", "save_model=true")
    _, record, _ = train(f"distill={first}", "finetune.distill_weight=1.0")
    assert record["config"]["distill"] == str(first.resolve())
    student = AutoModelForSequenceClassification.from_pretrained(first / "model")
    with pytest.raises(LighttokenError, match="has no model/ in it; run the task with save_model=true first"):
        load_teacher(student, checkpoint(), "sst2")
    with pytest.raises(LighttokenError, match="is a run of task=sst2 and this is task=rte; choose one of rte"):
        load_teacher(student, first, "rte")
    roberta = AutoModelForSequenceClassification.from_pretrained(checkpoint("roberta"))
    with pytest.raises(LighttokenError, match="another backbone: it lacks .* weights of RobertaForSequence"):
        load_teacher(roberta, first, "sst2")


def test_the_debug_preset_is_a_short_run_apart_from_others(command, checkpoint, sst2):
    path = checkpoint()
    arguments = [f"task.data_dir={sst2}", f"model.path={path}", "ratio=2.5", "limit_rows=10", "progress=false"]
    code, _, err = command("train", "+experiment=debug", "task=sst2", *arguments)
    assert code == 0, err
    (folder,) = Path("outputs/debug/runs").iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert (record["status"], record["codec"], record["config"]["trainer"]["max_epochs"]) == ("done", "svd", 1)
    assert list(Path("outputs").iterdir()) == [Path("outputs/debug")]
    assert not (folder / "wandb").exists()


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_stored_model_is_scored_in_its_own_precision(train, precision):
    settings = (
        "codec=none",
        f"backbone_precision={precision}",
        "trainer.max_epochs=0",
    )  # nothing trained: equal weights
    _, plain, _ = train(*settings)
    _, mixed, _ = train(*settings, "trainer.precision=bf16-mixed")
    assert mixed["metrics"] == plain["metrics"]


def test_a_gpu_that_a_run_leaves_unused_is_not_its_accelerator(train, monkeypatch):
    monkeypatch.setattr("lighttoken.run.records.hardware", lambda: {"accelerator": "some GPU"})
    _, record, _ = train("codec=none", "trainer.max_epochs=0")
    assert record["hardware"]["accelerator"] == "none"


def test_a_run_starts_from_the_body_of_another(train, checkpoint, command, sst2):
    _, _, first = train("codec=none", "save_model=true")
    original = AutoModelForSequenceClassification.from_pretrained(first / "model")
    _, record, second = train(f"init_from={first}", "save_model=true", "finetune.learning_rate=0.0")
    model = AutoModelForSequenceClassification.from_pretrained(second / "model")
    body = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(model.get_parameter(body), original.get_parameter(body))
    assert not torch.equal(model.classifier.weight, original.classifier.weight)
    assert record["ratio"] > 2  # the table is compressed as ever
    code, _, err = command(
        "train",
        f"init_from={checkpoint()}",
        "task=sst2",
        f"task.data_dir={sst2}",
        "codec=none",
        f"model.path={checkpoint()}",
        "logger=none",
        "progress=false",
    )
    assert code == 2
    assert "has no model/ in it; run that task with save_model=true first" in err
    code, _, err = command(
        "train",
        f"init_from={first}",
        "task=sst2",
        f"task.data_dir={sst2}",
        "codec=none",
        f"model.path={checkpoint('roberta')}",
        "logger=none",
        "progress=false",
    )
    assert code == 2
    assert "is the run of another backbone" in err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "backbone_precision=int3",
            "unknown backbone_precision='int3'; choose one of float32, float16, bfloat16, int8",
        ),
        ("matmul_precision=low", "unknown matmul_precision='low'; choose one of highest, high, medium"),
        (
            "trainer.accelerator=gpu",
            "trainer.accelerator=gpu, trainer.devices=1, trainer.precision=32-true do not work here: No supported gpu",
        ),
        (
            "trainer.devices=3",
            "task.batch_size=32 is the size of a whole batch, which 3 processes cannot share; set task.batch_size=33",
        ),
        ("+trainer.num_nodes=2", "trainer.num_nodes=2 needs processes on every node; start the command with torchrun"),
        ("+trainer.strategy=dp2", "trainer.precision=32-true do not work here: You selected an invalid strategy name"),
        (
            "callbacks=early_stopping callbacks.early_stopping.monitor=val/loss task.dev_fraction=0.3",
            "callbacks watch val/loss, which is a reported score and must not decide anything; watch dev/loss instead",
        ),
        (
            "task.max_length=600",
            "task=sst2 has rows of 600 tokens and model=tiny_bert takes 40; set task.max_length=40",
        ),
        (
            "predict=true",
            "needs the split 'test' of task=sst2; found train, validation; add it, or leave out predict=true",
        ),
        ("predict=true ~task.submission.test", "task=sst2 has no test split to answer; leave out predict=true"),
        ("trainer.max_epochs=-1", "trainer.max_epochs=-1 has no end, and the learning rate falls to 0 at the end; set"),
        ("trainer.precision=bf16-true", "trainer.precision=bf16-true rounds labels and scores too; set"),
        ("codec=stored", "codec=stored keeps a compressed table, and BertForSequenceClassification has Embedding; set"),
        ("codec=stored heal=prior", "codec=stored takes the model as it is; leave out heal="),
        ("seed=5000000000", "seed is 5000000000; it must be 0 or above, and below 2^32"),
    ],
)
def test_a_run_that_cannot_end_well_is_refused_at_the_start(command, checkpoint, sst2, monkeypatch, overrides, message):
    monkeypatch.setattr("lightning.Trainer.fit", lambda *args, **kwargs: pytest.fail("it should not train"))
    arguments = ["task=sst2", f"task.data_dir={sst2}", f"model.path={checkpoint()}", "logger=none", "progress=false"]
    if "max_length" in overrides:
        long = {"sentence": ["good " * 700, "bad"], "label": [1, 0]}
        Dataset.from_dict(long).to_parquet(sst2 / "train.parquet")
    code, _, err = command("train", *arguments, "trainer.accelerator=cpu", *overrides.split())
    assert code == 2
    assert message in err


def test_a_compressed_checkpoint_is_scored_and_trained_as_it_is(train):
    _, tuned, first = train("save_model=true", "finetune.learning_rate=0.01")
    saved = f"model.path={first / 'model'}"
    out, again, second = train("codec=stored", saved, "trainer.max_epochs=0", "save_model=true")
    assert again["metrics"] == tuned["metrics"]
    sizes = ("table_bytes", "artifact_bytes", "model_bytes", "stored_bytes", "ratio")
    assert [again[name] for name in sizes] == [tuned[name] for name in sizes]
    assert (again["ratio_asked"], again["compression"]["nmse"]) == (None, tuned["compression"]["nmse"])
    assert "codec stored" in out
    _, trained, _ = train("codec=stored", f"model.path={second / 'model'}", "finetune.learning_rate=0.01", "seed=1")
    assert trained["metrics"]["val/loss"] != tuned["metrics"]["val/loss"]
    assert trained["ratio"] == tuned["ratio"]


@pytest.mark.slow
def test_a_fine_tuned_checkpoint_is_scored_with_its_table_compressed_and_nothing_trained(train, tmp_path):
    _, tuned, first = train("codec=none", "save_model=true", "finetune.learning_rate=0.01")
    settings = [f"model.path={first / 'model'}", "trainer.max_epochs=0"]
    _, dense, _ = train("codec=none", *settings)
    assert dense["metrics"] == tuned["metrics"]
    out, packed, _ = train(*settings)
    assert packed["ratio"] > 2
    assert packed["metrics"]["val/loss"] != dense["metrics"]["val/loss"]
    assert "retention of val/accuracy" in out


@pytest.mark.slow
def test_ddp_on_one_device_changes_nothing(checkpoint, sst2):
    """In processes of their own: a process group stays until its process ends."""
    arguments = [f"model.path={checkpoint()}", "task=sst2", f"task.data_dir={sst2}", "progress=false", "logger=none"]
    arguments += ["codec=none", "trainer.max_epochs=3", "finetune.learning_rate=1e-3", "trainer.accelerator=cpu"]
    for strategy in ([], ["+trainer.strategy=ddp"]):
        subprocess.run([sys.executable, "-m", "lighttoken.train", *arguments, *strategy], check=True, timeout=200)
    plain, ddp = (json.loads(path.read_text()) for path in sorted(Path().glob("outputs/runs/*/record.json")))
    assert plain["metrics"] == ddp["metrics"]
