"""Sweeps: finished jobs are skipped, a failed job does not stop the others, and a summary names the failures.

Whatever happens in a job, it ends as a `Job`. With `hydra/launcher=joblib` a thread waits for the process of a job. The
plugin hydra-joblib-launcher has a pool of workers instead, which breaks when one of them dies: after a `kill -9`, two
of six jobs were lost, two never started, and there was no summary.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape

from lighttoken.artifact.files import make_directory, write_atomically
from lighttoken.errors import LighttokenError
from lighttoken.run.interruption import PARENT, raising_interrupted
from lighttoken.run.reading import RECORD_FILE, leave_out, read_json, read_records, reason_of
from lighttoken.run.records import asked_for, config_folders, settings_of, settle
from lighttoken.run.secrets import masked

log = logging.getLogger(__name__)

SWEEP_FILE = "sweep.json"
CONSOLE_FILE = "console.log"
END_SECONDS = 10.0  # that a job has, after SIGTERM, to write its record

_running: set[subprocess.Popen] = set()  # processes that threads of this process wait for
_unfinished: set[str] = set()  # folders of jobs whose end these threads have not entered yet
_stopping = threading.Event()  # from now on, no other process starts


@dataclass
class Job:
    """One job of a sweep and its end. `folder` has its record; for a skipped job, that of the earlier run."""

    number: int
    overrides: list[str]
    folder: str
    status: str = "done"  # or skipped, failed
    error: str | None = None
    interruption: SystemExit | None = None  # not in sweep.json: ends the sweep once the job is in it


def asked_of(config: DictConfig) -> dict[str, Any]:
    """The settings that make a job another run, as they stand in its record."""
    config = config.copy()
    settle(config)
    config.logger = {}  # some of its values exist inside the run only
    return asked_for(settings_of(config))


def find_done(config: DictConfig, records: list[dict[str, Any]]) -> str | None:
    """The folder of a finished record of the same run; None if there is none, or with skip_done=false."""
    if not config.skip_done:
        return None
    settings = asked_of(config)
    done = (record for record in records if record["status"] == "done")
    return next((record["directory"] for record in done if asked_for(record["config"]) == settings), None)


def run_here(config: DictConfig, run: Callable[[DictConfig], Any], in_one_line: Callable[..., str | None]) -> Job:
    """Run a job in this process unless it is done. `in_one_line` describes an error of the user; None for a defect."""
    hydra = HydraConfig.get()
    job = Job(hydra.job.num, list(hydra.overrides.task), hydra.runtime.output_dir)
    try:
        if folder := find_done(config, read_records(Path(config.output_dir).absolute())):
            report_skipped(job, folder)
        else:
            run(config)
    except SystemExit as error:  # a signal
        job.status, job.error, job.interruption = "failed", f"{type(error).__name__}: {error}", error
    except Exception as error:
        message = in_one_line(error)
        if message is None:
            log.exception("job %d", job.number)
        else:
            print(f"error: {message}", file=sys.stderr)
        job.status, job.error = "failed", message or masked(f"{type(error).__name__}: {error}")
    return job


def report_skipped(job: Job, folder: str) -> None:
    """Print that a job is skipped, and point it to the record of the earlier run."""
    log.info("#%d is done already in %s; skip_done=false runs it again", job.number, folder)
    job.status, job.folder = "skipped", folder


@contextmanager
def ending_processes() -> Iterator[None]:
    """End the processes of `run_process` when the block ends with an error or by a signal, and wait for their ends.

    Other threads started these processes. If they ran on, the same command would start them a second time.
    For the main thread.
    """
    _stopping.clear()
    try:
        with raising_interrupted(end_processes):  # at once: a pool of threads may hold the exception back
            yield
    except BaseException:
        if not _stopping.is_set():  # an error; a second SIGTERM could cut short what the first has begun
            end_processes()
        limit = time.monotonic() + END_SECONDS
        while _unfinished and time.monotonic() < limit:
            time.sleep(0.05)
        end_processes(signal.SIGKILL)
        raise


def end_processes(by: int = signal.SIGTERM) -> None:
    """Send a signal to the processes of `run_process`, and let no other start."""
    _stopping.set()
    for process in list(_running):
        process.send_signal(by)


def job_command(hydra: Any, overrides: Sequence[str], *values: str) -> list[str]:
    """The command line of a job, given Hydra's part of the config; `values` are further ones of it."""
    kept = [value for value in hydra.overrides.hydra if not value.startswith("hydra.mode=")]
    fixed = ["hydra.mode=RUN", "progress=false"]
    return [sys.executable, "-m", "lighttoken.train", *config_folders(hydra), *kept, *values, *overrides, *fixed]


def run_job(job: Job, command: list[str]) -> None:
    """Run a job in a new process and enter its end."""
    log.info("#%d starts; its output is in %s", job.number, job.folder)
    _unfinished.add(job.folder)
    try:
        finish_job(job, run_process(command, job.folder))
    finally:
        _unfinished.discard(job.folder)


def run_process(command: list[str], folder: str, rank: int = 0) -> int:
    """Run a job in a new process, its output in a file of its folder; returns the exit code, -N after signal N.

    `rank`: which of the processes of the job it is. The first one writes the record.
    """
    if _stopping.is_set():
        return -signal.SIGTERM
    make_directory(Path(folder))
    if not rank:
        Path(folder, RECORD_FILE).unlink(missing_ok=True)  # of an earlier try, with another end
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}  # set by run_command
    environment[PARENT] = str(os.getpid())
    with Path(folder, f"console.{rank}.log" if rank else CONSOLE_FILE).open("w") as console:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environment)
        _running.add(process)
        if _stopping.is_set():  # since it was asked above, and `end_processes` may have missed this process
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait()
        finally:
            _running.discard(process)


def finish_job(job: Job, code: int, reason: str | None = None) -> None:
    """Set status and error of a job from the exit code of its process. Corrects a record that still says `running`."""
    path, console = Path(job.folder, RECORD_FILE), Path(job.folder, CONSOLE_FILE)
    record = _content(path)
    if code and record.get("status") == "done":  # all is written; a library has crashed while the process ended
        log.warning("#%d is done and ended with exit code %d", job.number, code)
        code = 0
    if code < 0 or record.get("status") == "running":  # the process had no time to write its end
        job.error = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if "status" in record:
            write_atomically(path, json.dumps(record | {"status": "failed", "error": job.error}, indent=2).encode())
    elif code or record.get("error") or record.get("status", "done") != "done":
        # Without a record, the error is the last line of the console.
        lines = console.read_text(errors="replace").strip().split("\n") if console.is_file() else [""]
        job.error = str(record.get("error") or "") or lines[-1].strip().removeprefix("error: ") or f"exit code {code}"
    else:
        job.error = None
    job.status, job.error = ("failed", reason or job.error) if job.error else ("done", None)
    log.info("#%d %s", job.number, job.error or job.status)


def _content(path: Path) -> dict[str, Any]:
    """The content of a job's record: empty without one, an `error` and nothing else for what is no record."""
    try:
        content = read_json(path)
        return content if isinstance(content, dict) else {"error": f"{RECORD_FILE} is no record"}
    except FileNotFoundError:
        return {}
    except (OSError, LighttokenError) as error:
        return {"error": f"{RECORD_FILE} cannot be read: {reason_of(error)}"}


def sweep_records(folder: Path) -> list[tuple[list[str], dict[str, Any]]]:
    """The overrides and the record of every job of a sweep that did not fail, skipped jobs included.

    Odd records, and a sweep.json that cannot be read, are left out with a warning.
    """
    path = folder / SWEEP_FILE
    try:
        done = [job for job in read_json(path) if job["status"] != "failed"]
        jobs = [([str(text) for text in job["overrides"]], Path(job["folder"])) for job in done]
    except FileNotFoundError:
        return []
    except Exception as error:  # whatever another program has written there
        leave_out(path, error)
        return []
    return [(overrides, record) for overrides, run in jobs for record in read_records(run)]


def differences(jobs: list[list[str]]) -> list[list[str]]:
    """The overrides of every job that not all jobs share."""
    shared = set.intersection(*map(set, jobs or [[]]))
    return [[text for text in overrides if text not in shared] for overrides in jobs]


class Summary(Callback):
    """Hydra callback of every sweep: writes `sweep.json`, prints the failed jobs, and exits with code 1 if any."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Add a job to sweep.json. Raises SystemExit again, which a signal has ended the job with."""
        if job_return.status == JobStatus.COMPLETED and isinstance(job_return.return_value, Job):
            job = job_return.return_value
            self.jobs.append(job)
            folder = Path(config.hydra.sweep.dir)
            make_directory(folder)
            rows = [{k: v for k, v in vars(job).items() if k != "interruption"} for job in self.jobs]
            write_atomically(folder / SWEEP_FILE, json.dumps(rows, indent=2).encode())
            if job.interruption:
                job.interruption.add_note("it skips the jobs that are done")
                raise job.interruption

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the summary. Raises SystemExit if a job failed."""
        console = Console(soft_wrap=True, highlight=False)  # nobody can copy a path that is broken into lines
        count = Counter(job.status for job in self.jobs)
        counts = ", ".join(f"{count[status]} {status}" for status in ("done", "skipped", "failed"))
        console.print(f"sweep of {len(self.jobs)} jobs: {counts}")
        for job, overrides in zip(self.jobs, differences([job.overrides for job in self.jobs]), strict=True):
            if job.status == "failed":
                error = " ".join((job.error or "").split())
                console.print(escape(f"failed #{job.number} {' '.join(overrides)}: {error}; see {job.folder}"))
        if count["failed"]:
            console.print("the same command runs the failed jobs again, and no other")
            raise SystemExit(1)
