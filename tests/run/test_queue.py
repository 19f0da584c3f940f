"""Jobs of a queue: on submitit's local executor, with a squeue made by the test, and on a real SLURM of one node."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import submitit

from lighttoken.run import queue
from lighttoken.run.queue import ENDED, Queue, QueuedJob

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 180  # seconds
# Waits at its first start until a signal ends it, and ends with a code at the second.
RESUMING = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
with open(sys.argv[1], "a") as starts:
    starts.write("start ")
if open(sys.argv[1]).read() == "start ":
    time.sleep(600)
sys.exit(int(sys.argv[2]))
"""


def wait_for(there: Callable[[], Any]) -> None:
    limit = time.monotonic() + LIMIT
    while not there():
        assert time.monotonic() < limit
        time.sleep(0.1)


class Node:
    """Starts a job as a node does, in a process of submitit. The job waits, at its first start, for a signal."""

    def __init__(self, code: int, script: str = RESUMING, sweep: dict[str, Any] | None = None) -> None:
        self.paths, self.process = submitit.core.utils.JobPaths("log/%j", "1"), None
        command = [sys.executable, "-c", script, "starts", str(code)]
        submission = submitit.helpers.DelayedSubmission(QueuedJob(command, "job", sweep, patience=5.0))
        submission.set_timeout(5, 1)  # minutes, and how often it may go on
        self.paths.folder.mkdir(parents=True)
        submission.dump(self.paths.submitted_pickle)

    def start(self) -> None:
        local = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "1", "SUBMITIT_LOCAL_GLOBALID": "0"}
        command = [sys.executable, "-m", "submitit.core._submit", "log/%j"]
        environment = os.environ | local | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start_and_send(self, number: int) -> int:
        """Send a signal to a job that waits; returns the exit code."""
        Path("starts").unlink(missing_ok=True)
        self.start()
        wait_for(lambda: Path("starts").is_file() and Path("starts").read_text() == "start ")
        self.process.send_signal(number)
        return self.process.wait(LIMIT)

    def result(self) -> Any:
        kind, value = submitit.core.utils.pickle_load(self.paths.result_pickle)
        assert kind == "success"
        return value


@pytest.fixture
def node(request) -> Iterator[Node]:
    node = Node(*request.param)
    yield node
    node.process.kill()
    node.process.wait()


@pytest.mark.parametrize("node", [(3,)], indirect=True)
def test_a_job_that_its_queue_stops_is_requeued_and_starts_again(node):
    assert node.start_and_send(signal.SIGUSR2) == submitit.local.local.LOCAL_REQUEUE_RETURN_CODE
    assert not node.paths.result_pickle.exists()
    node.start()
    assert node.process.wait(LIMIT) == 0
    assert node.result() == (3, None)
    assert Path("starts").read_text() == "start start "


@pytest.mark.parametrize("node", [(0,)], indirect=True)
def test_a_job_that_is_out_of_time_too_often_says_so(node):
    assert node.start_and_send(signal.SIGUSR2) == submitit.local.local.LOCAL_REQUEUE_RETURN_CODE
    assert node.start_and_send(signal.SIGUSR2) == 0
    assert node.result() == (
        143,
        "Job not requeued because: timed-out too many times. Raise hydra.launcher.timeout_min or slurm_max_num_timeout",
    )


@pytest.mark.parametrize("node", [(0,), (0, RESUMING.replace("sys.exit(128 + number)", "None"))], indirect=True)
def test_a_job_that_its_queue_ends_has_no_result(node):
    assert node.start_and_send(signal.SIGTERM) == 1
    assert not node.paths.result_pickle.exists()


def test_a_job_ends_with_its_sweep_though_nobody_has_waited_for_that_one():
    script = "import json; from lighttoken.run.process import this_process; print(json.dumps(this_process()))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as sweep:
        node = Node(0, sweep=json.loads(sweep.stdout.readline()))
        node.start()
        try:
            assert node.process.wait(LIMIT) == 1
        finally:
            node.process.kill()
        assert sweep.returncode is None  # a zombie until here
    assert not node.paths.result_pickle.exists()


def test_exit_codes_of_runs_that_a_queue_ends():
    assert {-15, 143, -10, 138, -12, 140} == ENDED


@pytest.fixture
def squeue(tmp_path, monkeypatch) -> Callable[[str, int], None]:
    """Writes what squeue answers from now on, and its exit code."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(queue, "LOOK_SECONDS", 0.0)

    def answer(text: str, code: int = 0) -> None:
        (folder / "squeue").write_text(f"#!/bin/sh\nprintf '{text}'\nexit {code}\n")
        (folder / "squeue").chmod(0o755)

    return answer


def test_a_job_is_over_when_two_looks_agree(squeue):
    watched = Queue()
    watched.register_job("7_0")
    squeue("7_0 PREEMPTED\\n7_1 RUNNING\\n")
    assert (watched.is_done("7_0"), watched.get_state("7_1")) == (False, "RUNNING")
    squeue("7_0 PENDING\\n")
    assert not watched.is_done("7_0")
    squeue("7_0 CANCELLED\\n")
    assert [watched.is_done("7_0") for _ in range(2)] == [False, True]
    assert watched.get_state("7_0") == "CANCELLED"


def test_a_job_that_slurm_has_forgotten_is_over_and_a_queue_that_does_not_answer_ends_none(squeue, caplog):
    watched = Queue()
    watched.register_job("7")
    squeue("slurm_load_jobs error: Unable to contact slurm controller", 1)
    assert [watched.is_done("7") for _ in range(3)] == [False] * 3
    assert "squeue does not answer" in caplog.text
    squeue("8 RUNNING\\n")
    assert [watched.is_done("7") for _ in range(2)] == [False, True]
    assert watched.get_state("7") == "GONE"


@pytest.fixture
def settings(checkpoint, sst2) -> list[str]:
    """The overrides of a small sweep on SLURM."""
    data = ["task=sst2", f"task.data_dir={sst2}", f"model.path={checkpoint()}", "trainer.accelerator=cpu"]
    slurm = ["hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=0", "hydra.launcher.mem_gb=1"]
    return [*data, *slurm, "hydra.launcher.cpus_per_task=1", "logger=csv", "codec=svd"]


def test_a_machine_without_slurm_is_named_with_the_cure(command, settings, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = command("train", "-m", *settings, "ratio=2,3")
    assert (code, err.splitlines()[-1]) == (
        2,
        "error: hydra/launcher=submitit_slurm needs SLURM, and this machine has no sbatch, srun, scancel, squeue; "
        "start the sweep on a login node of the cluster, or run its jobs here with hydra/launcher=joblib",
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hydra.launcher.nodes=2"], "hydra.launcher.nodes=2 and trainer.num_nodes=1 differ; SLURM starts a process"),
        (["hydra.launcher.tasks_per_node=4"], "hydra.launcher.tasks_per_node=4 and trainer.devices=1 differ"),
    ],
)
def test_processes_that_would_each_make_the_run_are_refused(command, settings, overrides, message):
    code, _, err = command("train", "-m", *settings, *overrides, "ratio=2,3")
    assert code == 2
    assert err.splitlines()[-1].startswith(f"error: {message}")


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Iterator[None]:
    """A SLURM of one node. Skips the test where Debian's slurm-wlm is not installed or needs another user."""
    if missing := [name for name in ("slurmctld", "slurmd", "munged", *queue.COMMANDS) if shutil.which(name) is None]:
        pytest.skip(f"no {', '.join(missing)}; apt-get install slurm-wlm")
    if os.getuid():
        pytest.skip("slurmd needs to be started by root")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PORT", str(min(free.getsockname()[1], 65_000)))
    script = [str(ROOT / "experiments/slurm.sh")]
    subprocess.run([*script, "start", "slurm"], check=True)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm/slurm.conf"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(queue, "LOOK_SECONDS", 1.0)
    yield
    subprocess.run([*script, "stop", "slurm"], check=True)


def slurm_jobs() -> dict[str, str]:
    """The ids of the SLURM jobs by the name of their run's folder."""
    paths = Path("outputs").glob("sweeps/*/.submitit/*_*/*_submitted.pkl")
    jobs = [(path.parent.name, submitit.core.utils.DelayedSubmission.load(path).function) for path in paths]
    return {Path(job.folder).name.partition("_")[0]: job_id for job_id, job in jobs}


@pytest.mark.slow
def test_jobs_of_slurm_that_are_requeued_are_cancelled_and_fail(command, settings, slurm):
    settings = [*settings, "trainer.max_epochs=300"]

    def disturb() -> None:
        wait_for(lambda: len(list(Path("outputs/resume").glob("*/last.ckpt"))) == 2)
        jobs = slurm_jobs()
        subprocess.run(["scontrol", "requeue", jobs["0"]], check=True)
        subprocess.run(["scancel", jobs["1"]], check=True)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    code, out, err = command("train", "-m", *settings, "ratio=2,2.5,5000")
    disturber.join()
    assert code == 1, err
    (path,) = Path("outputs/sweeps").glob("*/sweep.json")
    jobs = json.loads(path.read_text())
    assert [job["status"] for job in jobs] == ["done", "failed", "failed"]
    assert jobs[1]["error"] == f"job {slurm_jobs()['1']} of slurm ended as CANCELLED"
    assert "ratio 5000 cannot be met" in jobs[2]["error"]
    assert "sweep of 3 jobs: 1 done, 0 skipped, 2 failed" in out
    resumed, cancelled, failed = (json.loads(Path(job["folder"], "record.json").read_text()) for job in jobs)
    assert [record["status"] for record in (resumed, cancelled, failed)] == ["done", "failed", "failed"]
    assert cancelled["error"] == "Interrupted: SIGTERM"
    assert resumed["resumed"]
    assert command("train", *settings, "ratio=2")[0] == 0
    (path,) = Path("outputs/runs").glob("*/record.json")
    alone = json.loads(path.read_text())
    assert (alone["resumed"], alone["metrics"]) == (None, resumed["metrics"])


def test_an_answer_of_sbatch_is_one_line(command, settings, slurm):
    code, _, err = command("train", "-m", *settings, "ratio=2,3", "hydra.launcher.slurm_partition=none_such")
    line = err.splitlines()[-1]
    assert code == 2
    assert line.startswith(
        "error: hydra/launcher=submitit_slurm: sbatch: error: invalid partition specified: none_such"
    )
