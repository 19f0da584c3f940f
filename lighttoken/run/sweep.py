"""Sweeps: the jobs that are done already, the jobs that fail, and the summary that names them.

A job never ends a sweep: it ends as a `Job`, whatever happens in it. With `hydra/launcher=joblib` each job is a process
of its own, started by a thread that waits for it. hydra-joblib-launcher keeps its jobs in a pool of loky workers
instead, and loky gives the whole pool up when one worker dies: of six jobs on two workers, a `kill -9` of one in the
third lost that job and its neighbour, the last two were never started, and nothing was summed up.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from lighttoken.artifact.files import make_directory, write_atomically
from lighttoken.run.records import RECORD_FILE, asked_for, make_paths_absolute, read_records

log = logging.getLogger(__name__)

SWEEP_FILE = "sweep.json"
CONSOLE_FILE = "console.log"

_running: set[subprocess.Popen] = set()  # the processes of this one's threads
_ended = threading.Event()  # no more of them are to be started


@dataclass
class Job:
    """One job of a sweep and how it ended; `folder` is where its record is, an earlier run's if it was skipped."""

    number: int
    overrides: list[str]
    folder: str
    status: str  # done, skipped or failed
    error: str | None = None


def find_done(config: DictConfig, records: list[dict[str, Any]]) -> str | None:
    """The folder of a finished record of the same run; None without one or with skip_done=false."""
    if not config.skip_done:
        return None
    asked = asked_for(plain_config(config))
    done = (each for each in records if each["status"] == "done")
    return next((each["directory"] for each in done if asked_for(each["config"]) == asked), None)


def plain_config(config: DictConfig) -> dict[str, Any]:
    """A job's config as its record holds it, but for the loggers, which only resolve inside the run."""
    config = config.copy()
    make_paths_absolute(config)
    config.logger = {}
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return plain


def run_here(config: DictConfig, run: Callable[[DictConfig], Any], in_one_line: Callable[..., str | None]) -> Job:
    """Run a job in this process, unless it is done. `in_one_line` tells an error of the user; None for a defect."""
    hydra = HydraConfig.get()
    job = Job(hydra.job.num, list(hydra.overrides.task), hydra.runtime.output_dir, "done")
    try:
        if folder := find_done(config, read_records(Path(config.output_dir).absolute())):
            tell_skipped(job, folder)
        else:
            run(config)
    except Exception as error:
        told = in_one_line(error)
        if told is None:
            log.exception("job %d", job.number)
        else:
            print(f"error: {told}", file=sys.stderr)
        job.status, job.error = "failed", told or f"{type(error).__name__}: {error}"
    return job


def tell_skipped(job: Job, folder: str) -> None:
    """Say on screen that a job is not run, and take the record of the earlier run for its own."""
    log.info("#%d is done already in %s; skip_done=false runs it again", job.number, folder)
    job.status, job.folder = "skipped", folder


def quoted(path: Any) -> str:
    """A path as the value of an override."""
    return "'" + str(path).replace("'", "\\'") + "'"


@contextmanager
def ending_processes() -> Iterator[None]:
    """Whatever ends the block with an error, Ctrl-C and SIGTERM (exit code 143) included, ends what runs inside it too.

    Those are the processes of `run_process`, started by other threads; else they would outlive this one, and the same
    command would start them a second time. For the main thread.
    """

    def end() -> None:
        _ended.set()
        for process in list(_running):
            process.terminate()

    def leave(number: int, frame: Any) -> NoReturn:
        end()  # here, as a pool of threads may hold the error back until they are done
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    _ended.clear()
    try:
        yield
    except BaseException:
        end()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def run_process(command: list[str], folder: str) -> int:
    """Run a job in a process of its own, what it prints in its folder; returns its exit code, -N for signal N."""
    if _ended.is_set():
        return -signal.SIGTERM
    make_directory(Path(folder))
    Path(folder, RECORD_FILE).unlink(missing_ok=True)  # of an earlier try, whose end would be taken for this one's
    one_line = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}  # set by every door
    with Path(folder, CONSOLE_FILE).open("w") as console:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=one_line)
        _running.add(process)
        try:
            return process.wait()
        finally:
            _running.discard(process)


def close(job: Job, code: int) -> None:
    """Enter how the process of a job ended; the record of one that was killed says so from now on."""
    path = Path(job.folder, RECORD_FILE)
    record = json.loads(path.read_bytes()) if path.is_file() else {}
    if code == 0 and record.get("status", "done") == "done":
        return
    job.status = "failed"
    if code < 0 or record.get("status") == "running":
        job.error = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if record:
            killed = record | {"status": "failed", "error": job.error}
            write_atomically(path, json.dumps(killed, indent=2).encode())
    elif record.get("error"):
        job.error = record["error"]
    else:  # it did not come to a record
        console = Path(job.folder, CONSOLE_FILE)
        lines = console.read_text().split("\n") if console.is_file() else []
        said = [line.strip() for line in lines if line.strip()]
        job.error = said[-1].removeprefix("error: ") if said else f"exit code {code}"


def sweep_records(folder: Path) -> list[tuple[list[str], dict[str, Any]]]:
    """The overrides and the record of each job of a sweep that is done; of a skipped job, that of the earlier run."""
    jobs = json.loads((folder / SWEEP_FILE).read_bytes()) if (folder / SWEEP_FILE).is_file() else []
    done = [job for job in jobs if job["status"] != "failed"]
    return [(job["overrides"], record) for job in done for record in read_records(Path(job["folder"]))]


class Summary(Callback):
    """Hydra callback of every sweep: writes `sweep.json`, names the jobs that failed, ends with exit code 1 then."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Add a job to sweep.json."""
        if job_return.status == JobStatus.COMPLETED and isinstance(job_return.return_value, Job):
            self.jobs.append(job_return.return_value)
            folder = Path(config.hydra.sweep.dir)
            make_directory(folder)
            write_atomically(folder / SWEEP_FILE, json.dumps([asdict(job) for job in self.jobs], indent=2).encode())

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the summary. Raises SystemExit if a job failed."""
        failed = [job for job in self.jobs if job.status == "failed"]
        count = {status: sum(job.status == status for job in self.jobs) for status in ("done", "skipped", "failed")}
        console = Console(soft_wrap=True, highlight=False)  # a path that is cut in two cannot be copied
        console.print(f"sweep of {len(self.jobs)} jobs: " + ", ".join(f"{n} {name}" for name, n in count.items()))
        common = set(self.jobs[0].overrides).intersection(*(job.overrides for job in self.jobs)) if self.jobs else set()
        for job in failed:
            own = " ".join(each for each in job.overrides if each not in common)
            error = " ".join((job.error or "").split())
            console.print(escape(f"failed #{job.number} {own}: {error}; see {job.folder}"))
        if failed:
            console.print("the same command runs the failed jobs again, and no other")
            raise SystemExit(1)
