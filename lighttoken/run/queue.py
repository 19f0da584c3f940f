"""Jobs of a queue: what runs on a node, how it ends and starts again, and what SLURM says of it.

SLURM ends a job before its own end in three ways. Some time before its limit the job gets SIGUSR2, and submitit
requeues it. For a job that is more urgent, or by `scontrol requeue`, it gets SIGTERM, and SLURM requeues it. By
`scancel` it gets SIGTERM and is not requeued. In all of them the run has the time to end well. If it starts again, it
goes on from its checkpoint.
"""

import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from lighttoken.errors import LighttokenError
from lighttoken.run.interruption import when_gone
from lighttoken.run.process import is_gone
from lighttoken.run.sweep import end_processes, run_process

log = logging.getLogger(__name__)

COMMANDS = ("sbatch", "srun", "scancel", "squeue")
LOOK_SECONDS = 10.0  # between two looks at the queue
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # of a queue that ends a job
ENDED = {code for number in SIGNALS for code in (-number, 128 + number)}  # exit codes of a run that one of them ends
OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
OVER |= {"TIMEOUT", "GONE"}  # GONE: SLURM forgets jobs some minutes after their end


class QueuedJob:
    """The command of a job, as submitit pickles it and calls it on a node: once, and again whenever it is requeued."""

    def __init__(
        self, command: list[str], folder: str, sweep: dict[str, Any] | None = None, patience: float = 25.0
    ) -> None:
        """`sweep`: a process of this machine, of `this_process`. The job ends when it is no more.

        `patience`: the seconds that the run has to end by a signal, before it is killed. SLURM kills after 30.
        """
        self.command, self.folder, self.sweep, self.patience = command, folder, sweep, patience

    def __call__(self) -> tuple[int, str | None]:
        """Run the command in this process of a job; returns its exit code, and the reason if it is not requeued.

        Raises SystemExit if the queue ends the job, so that there is no result and the queue has the last word.
        """
        if self.sweep is not None:
            sweep = self.sweep
            when_gone(lambda: not is_gone(sweep), end_processes)
        rank = int(os.environ.get("SLURM_PROCID", 0))
        received: list[int] = []

        def end(number: int, frame: Any) -> None:
            received.append(number)
            end_processes()
            killer = threading.Timer(self.patience, end_processes, [signal.SIGKILL])  # checkpoints are written whole
            killer.daemon = True
            killer.start()

        earlier = [signal.signal(number, end) for number in SIGNALS]
        code = run_process(self.command, self.folder, rank)
        if not code:
            return 0, None
        for number, handler in zip(SIGNALS, earlier, strict=True):
            if number in received and number != signal.SIGTERM and callable(handler):
                try:
                    handler(number, None)  # of submitit: requeues the job and raises SystemExit
                except RuntimeError as error:
                    return code, f"{error} Raise hydra.launcher.timeout_min or slurm_max_num_timeout"
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.pause()  # the first process of the job requeues it, and SLURM ends this one
        if rank or received or code in ENDED:
            raise SystemExit(1)
        return code, None

    def checkpoint(self) -> Any:
        """What submitit submits when it requeues the job: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Queue:
    """The states of SLURM jobs by squeue, in the place of submitit's watcher.

    That one asks sacct, which a cluster without a database of accounts has not, and every ten minutes.
    """

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.looked = -LOOK_SECONDS
        self.over: Counter[str] = Counter()  # the looks in a row that have found a job over

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        """A state as SLURM names it, or GONE."""
        self.look()
        return self.states.get(job_id, "GONE")

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether two looks in a row have found a job over; a single one may meet it while it is requeued."""
        self.look()
        return self.over[job_id] > 1

    def register_job(self, job_id: str) -> None:
        """Called by submitit."""
        self.over[job_id] = 0

    def look(self) -> None:
        """Ask squeue, unless it was asked a short time ago. A queue that does not answer leaves all as it is."""
        if time.monotonic() - self.looked < LOOK_SECONDS:
            return
        self.looked = time.monotonic()
        command = ["squeue", f"--user={os.getuid()}", "--states=all", "--array", "--noheader", "--format=%i %T"]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode:
            log.warning("squeue does not answer: %s", " ".join(answer.stderr.split()))
            return
        self.states = dict(line.split() for line in answer.stdout.splitlines() if line)
        for job_id in self.over:
            self.over[job_id] = self.over[job_id] + 1 if self.states.get(job_id, "GONE") in OVER else 0


def check_slurm() -> None:
    """Raise LighttokenError if this machine has not the commands of SLURM."""
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        raise LighttokenError(
            f"hydra/launcher=submitit_slurm needs SLURM, and this machine has no {', '.join(missing)}; start the sweep "
            "on a login node of the cluster, or run its jobs here with hydra/launcher=joblib"
        )


def watch(handles: Iterable[Any]) -> list[Any]:
    """The handles of the first process of every SLURM job, which answers for the job, with a common `Queue`."""
    firsts, queue = [handle.task(0) for handle in handles], Queue()
    for first in firsts:
        first.watcher = queue
        queue.register_job(first.job_id)
    return firsts


def cancel(handles: Iterable[Any]) -> None:
    """Cancel SLURM jobs, an array as a whole."""
    subprocess.run(["scancel", *{handle.job_id.partition("_")[0] for handle in handles}])
