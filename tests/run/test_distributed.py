"""Runs of two real processes on CPUs, which gloo connects."""

import json
import os
import random
import shutil
import sys
import traceback
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from lightning.fabric.utilities.rank_zero import rank_zero_only
from transformers import AutoModelForMaskedLM

from lighttoken.train import main

WORDS = ["a", "bad", "film", "good", "great", "movie", "not", "plot", *(f"word{i}" for i in range(40))]
PROCESSES = ["trainer=ddp", "trainer.devices=2"]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # processes draw different numbers
TOLERANCE = {"rel": 1e-6, "abs": 1e-5}  # halves of a batch are added in another order; a perplexity of 200 has 7 digits


@pytest.fixture
def model(tmp_path, make_model, tokenizer):
    """The folder of a small language model without dropout."""
    folder = tmp_path / "tiny"
    make_model("bert", AutoModelForMaskedLM, **NO_DROPOUT).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def texts(rows: int, longest: int = 12) -> list[str]:
    draw = random.Random(rows)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, longest))) for _ in range(rows)]


def write_cola(folder: Path) -> list[str]:
    """67 rows are batches of 16 and one of 3; 29 and 13 rows have odd last batches too."""
    folder.mkdir(exist_ok=True)
    for split, rows in (("train", 67), ("validation", 29), ("test", 13)):
        labels = [-1 if split == "test" else int("good" in text) for text in texts(rows)]
        columns = {"sentence": texts(rows), "label": labels, "idx": list(range(rows))}
        Dataset.from_dict(columns).to_parquet(folder / f"{split}.parquet")
    return ["task=cola", f"task.data_dir={folder}", "task.batch_size=16", "task.eval_batch_size=8"]


def write_squad(folder: Path) -> list[str]:
    """Contexts of many windows: those of a question are in several batches, and of both processes."""
    folder.mkdir()
    for split, rows in (("train", 21), ("validation", 11)):
        contexts = texts(rows, 60)
        spans = [context.split(" ", 1)[1].split(" ")[:2] for context in contexts]
        answers = [
            {"text": [" ".join(span)], "answer_start": [len(text.split(" ")[0]) + 1]}
            for span, text in zip(spans, contexts, strict=True)
        ]
        columns = {"id": [f"{split}{i}" for i in range(rows)], "question": texts(rows, 5), "context": contexts}
        Dataset.from_dict(columns | {"answers": answers}).to_parquet(folder / f"{split}.parquet")
    windows = ["task.max_length=24", "task.stride=8", "task.max_question_length=6"]
    return ["task=squad", f"task.data_dir={folder}", *windows, "task.batch_size=8", "task.eval_batch_size=6"]


def write_sts(folder: Path) -> list[str]:
    folder.mkdir()
    pairs = {"sentence1": texts(19), "sentence2": texts(20)[:19], "label": [i % 5 + 0.5 for i in range(19)]}
    Dataset.from_dict(pairs).to_parquet(folder / "sts.parquet")
    return ["task=sts", f"task.file={folder}/sts.parquet", "task.eval_batch_size=4"]


def write_perplexity(folder: Path) -> list[str]:
    folder.mkdir()
    (folder / "text.txt").write_text(" ".join(texts(40)))
    return ["task=perplexity", f"task.file={folder}/text.txt", "task.window=32", "task.mask_every=4"]


def run(count: int, *arguments: str) -> list[int]:
    """Run the train command in processes that are started as torchrun does; returns their exit codes.

    They are forks of this process: what they import is imported already.
    """
    cluster = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    cluster["MASTER_PORT"] = str(20_000 + os.getpid() % 30_000)
    children = []
    for rank in range(count):
        if (child := os.fork()) == 0:
            code = 1
            try:
                os.environ.pop("HYDRA_FULL_ERROR", None)  # that a command in this process has left
                os.environ |= cluster | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}
                rank_zero_only.rank = rank  # Lightning reads it from the environment when it is imported
                torch.set_num_threads(1)  # threads do not survive a fork
                sys.argv = ["train", *arguments]
                main()
                code = 0
            except SystemExit as stop:
                code = int(stop.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def result(root: str) -> tuple[dict, dict[str, bytes]]:
    """The record and the files of the only run under a folder."""
    (folder,) = Path(root, "runs").iterdir()
    return json.loads((folder / "record.json").read_text()), files(folder)


TRAINED = ["trainer.max_epochs=2", "finetune.learning_rate=1e-3", "predict=true"]
EVERYTHING = ["codec=svd", "ratio=2.5", "heal=task", "heal.steps=3", "heal.batch_size=8", "task.dev_fraction=0.2"]
EVERYTHING += ["callbacks=best_checkpoint", "resume=true", "save_model=true", "+trainer.accumulate_grad_batches=2"]


@pytest.mark.parametrize(
    ("write", "overrides", "trainers"),
    [
        (write_cola, [*EVERYTHING, *TRAINED], ["ddp", "fsdp"]),
        (write_squad, ["codec=none", *TRAINED], ["ddp"]),
        (write_sts, ["codec=none"], ["ddp"]),
        (write_perplexity, ["codec=svd", "ratio=2.5"], ["ddp"]),
    ],
    ids=["cola", "squad", "sts", "perplexity"],
)
def test_two_processes_give_the_result_of_one(tmp_path, model, write, overrides, trainers):
    settings = [f"model.path={model}", "trainer.accelerator=cpu", "progress=false", "logger=csv"]
    settings += [*write(tmp_path / "data"), *overrides]
    assert run(1, *settings, "output_dir=one") == [0]
    one, files_of_one = result("one")
    answers = [name for name in files_of_one if name.startswith("predictions/")]
    assert len(answers) == ("predict=true" in overrides)
    for trainer in trainers:
        assert run(2, *settings, f"output_dir={trainer}", "trainer.devices=2", f"trainer={trainer}") == [0, 0]
        record, files_of_two = result(trainer)
        assert record["metrics"] == pytest.approx(one["metrics"], **TOLERANCE)
        # One record, one set of answers, one model, one set of curves.
        assert files_of_two.keys() == files_of_one.keys()
        assert all(files_of_two[name] == files_of_one[name] for name in answers)
        assert not any(Path(trainer, "resume").glob("*"))


def test_a_process_that_cannot_share_a_batch_is_refused(tmp_path, model, capfd):
    settings = [f"model.path={model}", "trainer.accelerator=cpu", "codec=none", *write_cola(tmp_path / "data")]
    assert run(2, *settings, *PROCESSES, "task.batch_size=15") == [2, 2]
    assert (
        "task.batch_size=15 is the size of a whole batch, which 2 processes cannot share; set" in capfd.readouterr().err
    )
    assert run(2, *settings) == [2, 2]
    assert (
        "2 processes were started and trainer.devices=1 on 1 nodes makes 1; set trainer.devices"
        in capfd.readouterr().err
    )
    assert run(2, "-m", *settings, "seed=0,1", *PROCESSES) == [2, 2]
    assert "torchrun or srun has started 2 processes, and each would run the sweep" in capfd.readouterr().err


FAILING = """
from pathlib import Path
import lightning as L
from lighttoken import LighttokenError

class Failing(L.Callback):
    def __init__(self, epoch: int):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, module):
        if trainer.global_rank == 1 and trainer.current_epoch == self.epoch and not Path("lucky").exists():
            raise LighttokenError("no luck today")
"""


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """Overrides that make the second process fail at the start of an epoch, unless there is a file `lucky`."""
    Path("failing.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    return "+callbacks.failing._target_=failing.Failing"


@pytest.mark.parametrize("trainer", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_process_that_fails_ends_all_and_the_run_goes_on_from_its_checkpoint(
    tmp_path, model, failing, trainer, capfd
):
    settings = [f"model.path={model}", "trainer.accelerator=cpu", "codec=none", "logger=csv", "progress=false"]
    settings += [*write_cola(tmp_path / "data"), *TRAINED, "task.dev_fraction=0.2", "callbacks=best_checkpoint"]
    settings += [failing, "+callbacks.failing.epoch=1", "resume=true"]
    assert run(1, *settings, "output_dir=one") == [0]
    settings += ["output_dir=two", "trainer.devices=2", f"trainer={trainer}"]
    assert run(2, *settings) == [2, 2]
    assert "error: another process of this run has ended; its error is in its own output" in capfd.readouterr().err
    assert result("two")[0]["status"] == "failed"
    shutil.rmtree("two/runs")
    Path("lucky").touch()
    assert run(2, *settings) == [0, 0]
    one, two = result("one")[0], result("two")[0]
    assert two["resumed"].endswith("last.ckpt")
    assert two["metrics"] == pytest.approx(one["metrics"], **TOLERANCE)
    assert not any(Path("two", "resume").iterdir())


@pytest.mark.enable_socket
def test_jobs_of_a_sweep_start_their_processes_and_end_them(tmp_path, model, command, failing):
    settings = [f"model.path={model}", "trainer.accelerator=cpu", "codec=none", "logger=csv", "progress=false"]
    settings += [*write_cola(tmp_path / "data"), "trainer.max_epochs=1", "limit_rows=16", *PROCESSES]
    code, out, err = command("train", "-m", *settings, failing, "+callbacks.failing.epoch=9,0")
    assert code == 1
    assert "sweep of 2 jobs: 1 done, 0 skipped, 1 failed" in out
    records = [json.loads(path.read_text()) for path in sorted(Path("outputs").glob("sweeps/*/*/record.json"))]
    assert [record["status"] for record in records] == ["done", "failed"]
    assert records[1]["error"].startswith("LighttokenError: process 1 of 0 to 1 failed: no luck today; see ")
    assert err.count("no luck today") == 1
    assert not list(Path("outputs").glob("runs/*"))
    assert len(list(Path("outputs").glob("sweeps/*"))) == 1
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} & os.environ.keys()
