"""Endings by a signal: in processes of their own. Every wait has a limit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lighttoken.run.interruption import Interrupted, raising_interrupted

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 180  # seconds


@pytest.fixture(autouse=True)
def _not_ignored():
    """A shell that starts the tests in the background has them, and the processes that they start, ignore Ctrl-C."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


def wait_for(there: Callable[[], bool], process: subprocess.Popen) -> None:
    limit = time.monotonic() + LIMIT
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)


def end(process: subprocess.Popen, number: int) -> tuple[int, str]:
    """Send a signal; returns the exit code and the last line of stderr."""
    process.send_signal(number)
    _, err = process.communicate(timeout=LIMIT)
    assert "Traceback" not in err
    return process.returncode, err.splitlines()[-1]


def debris(folder: Path) -> list[Path]:
    """Temporary files and empty folders."""
    paths = [path for path in folder.rglob("*") if path.name.startswith(".") and path.name.endswith(".tmp")]
    return paths + [path for path in folder.rglob("*") if path.is_dir() and not any(path.iterdir())]


@pytest.fixture
def start(checkpoint, tmp_path):
    """Starts a command on a small model in the working directory; ends it with the test."""
    started: list[subprocess.Popen] = []
    model = checkpoint()

    def call(name: str, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"lighttoken.{name}", f"model.path={model}", "progress=false", *arguments]
        process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def settings(sst2) -> list[str]:
    """A training that no test waits for."""
    data = ["task=sst2", f"task.data_dir={sst2}", "trainer.accelerator=cpu", "trainer.max_epochs=5000"]
    return [*data, "codec=svd", "ratio=2", "logger=none", "callbacks={}"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_training_that_a_signal_ends_says_what_is_kept(start, settings, number):
    process = start("train", *settings, "resume=true")
    wait_for(lambda: any(Path("outputs/resume").glob("*/last.ckpt")), process)
    code, line = end(process, number)
    (record,) = Path("outputs/runs").glob("*/record.json")
    (artifact,) = Path("outputs/artifacts").iterdir()
    (kept,) = Path("outputs/resume").glob("*/last.ckpt")
    assert code == 128 + number
    assert line.startswith(f"interrupted by {number.name}: kept ")
    assert all(str(path) in line for path in (record, artifact, kept))
    assert line.endswith("the same command goes on from this checkpoint")
    content = json.loads(record.read_text())
    assert (content["status"], content["error"]) == ("failed", f"Interrupted: {number.name}")
    assert not debris(Path("outputs"))


@pytest.mark.slow
def test_a_signal_before_the_training_leaves_nothing_half_made(start, settings):
    process = start("train", *settings)
    wait_for(lambda: any(Path("outputs/runs").glob("*/record.json")), process)
    code, line = end(process, signal.SIGINT)
    assert code == 130
    assert "the same command starts again; with resume=true" in line
    assert not debris(Path("outputs"))


@pytest.mark.slow
def test_a_compress_that_a_signal_ends_leaves_no_folder(start):
    process = start("compress", "output=a/b")
    wait_for(Path("a/b").is_dir, process)
    code, line = end(process, signal.SIGTERM)
    assert (code, line) == (143, "interrupted by SIGTERM: the same command starts again")
    assert not Path("a").exists()


@pytest.mark.slow
def test_a_compress_goes_on_where_a_signal_has_ended_it(start, saved_model):
    # Of few bits to a number and a wide window: a search of seconds, where a low ratio has integers.
    settings = ["model.path=CHECKPOINT", "ratio=16", "codec.state_bits=16"]
    settings += ["codec/prior=uniform", "codec.error_metric=euclidean"]
    process = start("compress", *settings, "output=interrupted")
    wait_for(lambda: any(Path().glob(".interrupted.*.parts/states-*")), process)
    code, line = end(process, signal.SIGTERM)
    (parts,) = Path().glob(".interrupted.*.parts")
    assert (code, line) == (
        143,
        f"interrupted by SIGTERM: kept {parts.absolute()}; the same command goes on from there",
    )
    for output in ("interrupted", "whole"):
        process = start("compress", *settings, f"output={output}")
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, err
    one, other = (Path(output, "compressed_table.safetensors").read_bytes() for output in ("interrupted", "whole"))
    assert one == other
    assert not list(Path().glob(".*.parts"))


@pytest.mark.slow
def test_an_interrupted_sweep_has_its_jobs_in_sweep_json(start, settings):
    process = start("train", *settings, "seed=0,1", "-m")
    wait_for(lambda: any(Path("outputs/sweeps").glob("*/*/record.json")), process)
    code, line = end(process, signal.SIGINT)
    assert code == 130
    assert line.endswith("it skips the jobs that are done")
    (path,) = Path("outputs/sweeps").glob("*/sweep.json")
    (job,) = json.loads(path.read_text())
    assert (job["status"], job["error"]) == ("failed", "Interrupted: SIGINT")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_jobs_of_a_sweep_end_with_it(start, settings, launcher, number):
    process = start("train", *settings, f"hydra/launcher={launcher}", "seed=0,1", "-m")
    wait_for(lambda: len(list(Path("outputs/sweeps").glob("*/*/record.json"))) == 2, process)
    mark = f"task.data_dir={Path('sst2').absolute()}"
    process.send_signal(number)
    process.wait(LIMIT)  # not for the end of stderr, which processes of submitit have too
    limit = time.monotonic() + 60  # of a busy machine; 10 s if it is idle
    while processes_with(mark) and time.monotonic() < limit:
        time.sleep(0.1)
    assert processes_with(mark) == []
    records = [json.loads(path.read_text()) for path in Path("outputs/sweeps").glob("*/*/record.json")]
    assert [record["status"] for record in records] == ["failed", "failed"]
    if number == signal.SIGINT:
        assert process.returncode == 130
        (path,) = Path("outputs/sweeps").glob("*/sweep.json")
        assert [job["status"] for job in json.loads(path.read_text())] == ["failed", "failed"]


def processes_with(mark: str) -> list[int]:
    """The processes that have this argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark in path.read_text().split("\0"):
                found.append(int(path.parent.name))
        except OSError:  # ended meanwhile
            continue
    return found


def test_a_second_signal_does_not_end_the_clean_up_and_a_later_one_does(monkeypatch):
    monkeypatch.setattr("lighttoken.run.interruption.REPEAT_SECONDS", 0.2)
    earlier = signal.getsignal(signal.SIGINT)
    with raising_interrupted():
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
    assert (caught.value.code, str(caught.value)) == (130, "SIGINT")
    assert signal.getsignal(signal.SIGINT) is earlier


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch):
    """As SIGHUP of a command that nohup starts."""
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raising_interrupted():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, earlier)
