"""Runs of several processes: how they start, take turns, and end together.

The command is the first process and starts the others of this machine: each runs the same command, and Lightning joins
them (its docs call this the environment of a user who launches the processes). With torchrun or srun, which start all
processes, nothing is started here. Only the first process writes: record, artifact, logs, answers.
"""

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ParallelStrategy
from omegaconf import DictConfig

from lighttoken.artifact.files import make_directory
from lighttoken.errors import LighttokenError
from lighttoken.run.interruption import PARENT
from lighttoken.run.process import processes_started, rank
from lighttoken.run.records import Record
from lighttoken.run.sweep import job_command
from lighttoken.run.trainer import make_trainer

log = logging.getLogger(__name__)

PATIENCE = timedelta(days=7)  # that processes wait for each other: one may compress a large table
WATCH_SECONDS = 0.5
END_SECONDS = 5.0  # that a process has to end by itself
STUCK_SECONDS = 10.0  # that the first process has to notice that another one has failed


@contextmanager
def open_trainer(config: DictConfig, loggers: list[Logger], record: Record) -> Iterator[L.Trainer]:
    """The trainer, whose processes are joined inside. They end when the block ends, or when one of them fails.

    Raises LighttokenError as `make_trainer` does, if the processes cannot share a batch, and with the last line of
    another process that has failed.
    """
    trainer = make_trainer(config, loggers, record.directory)
    check_processes(trainer, config)
    with ExitStack() as stack:
        if isinstance(trainer.strategy, ParallelStrategy):
            with record.phase("start"):
                if rank() == 0 and processes_started() == 1:
                    stack.enter_context(_others(trainer, record))
                stack.enter_context(_joined(trainer))
        yield trainer


def check_processes(trainer: L.Trainer, config: DictConfig) -> None:
    """Raise LighttokenError if the processes are not those that were started, or cannot share a batch."""
    count, started = trainer.num_devices * trainer.num_nodes, processes_started()
    if started > 1 and count != started:
        raise LighttokenError(
            f"{started} processes were started and trainer.devices={config.trainer.devices} on {trainer.num_nodes} "
            f"nodes makes {count}; set trainer.devices to the processes of a node, and +trainer.num_nodes"
        )
    if started == 1 and trainer.num_nodes > 1:
        raise LighttokenError(
            f"trainer.num_nodes={trainer.num_nodes} needs processes on every node; start the command with torchrun or "
            "srun, or set trainer.num_nodes=1"
        )
    size = config.task.get("batch_size")
    if size and size % count:
        raise LighttokenError(
            f"task.batch_size={size} is the size of a whole batch, which {count} processes cannot share; set "
            f"task.batch_size={max(1, round(size / count)) * count}, or another number of trainer.devices"
        )


@contextmanager
def first_process_first(trainer: L.Trainer) -> Iterator[None]:
    """The first process runs the block; then all others do, and find what it has made."""
    if not trainer.is_global_zero:
        trainer.strategy.barrier()
    yield
    if trainer.is_global_zero:
        trainer.strategy.barrier()


@contextmanager
def _joined(trainer: L.Trainer) -> Iterator[None]:
    """Inside, torch connects the processes. Lightning would do it later, and leave them connected."""
    strategy: Any = trainer.strategy
    cluster, device = strategy.cluster_environment, strategy.root_device
    os.environ |= {"MASTER_ADDR": cluster.main_address, "MASTER_PORT": str(cluster.main_port)}
    strategy.accelerator.setup_device(device)
    torch.distributed.init_process_group(
        strategy.process_group_backend or torch.distributed.get_default_backend_for_device(device),
        timeout=PATIENCE,
        rank=cluster.global_rank(),
        world_size=trainer.world_size,
        device_id=None if device.type == "cpu" else device,
    )
    try:
        yield
    except RuntimeError as error:
        if processes_started() > 1 and "onnection" in str(error):  # closed, refused or reset
            raise LighttokenError("another process of this run has ended; its error is in its own output") from error
        raise
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def _others(trainer: L.Trainer, record: Record) -> Iterator[None]:
    """Inside, the other processes of this machine run the same command, their output in files of the run's folder."""
    count = trainer.num_devices
    cluster: Any = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(cluster.main_port)}
    settings |= {"WORLD_SIZE": str(count), "NODE_RANK": "0", "LOCAL_RANK": "0", "RANK": "0"}
    before = {name: os.environ.get(name) for name in settings}
    consoles = [record.directory / f"process_{number}.log" for number in range(1, count)]
    others: list[subprocess.Popen] = []
    watch = _Watch(others, consoles, record)
    os.environ |= settings
    try:
        for number, console in enumerate(consoles, 1):
            others.append(_start(number, console))
        watch.start()
        yield
        watch.over.set()
        for other in others:  # they have nothing left to do
            with suppress(subprocess.TimeoutExpired):
                other.wait(STUCK_SECONDS)
    except (Exception, SystemExit) as error:
        if isinstance(error, RuntimeError):  # it may have lost another process, which has not ended yet
            with suppress(SystemExit):  # the signal that says so
                watch.failure.wait(2 * END_SECONDS)
        watch.over.set()
        if watch.failure.is_set() and not isinstance(error, LighttokenError):
            raise LighttokenError(watch.reason) from error
        raise
    finally:
        watch.over.set()
        _end(others)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _start(number: int, console: Path) -> subprocess.Popen:
    """Start a process of this run. It ends when this process is no more."""
    hydra = HydraConfig.get()
    command = job_command(hydra, hydra.overrides.task)
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}  # set by run_command
    environment |= {PARENT: str(os.getpid()), "LOCAL_RANK": str(number), "RANK": str(number)}
    make_directory(console.parent)
    with console.open("w") as output:  # Ctrl-C is for the first process, which ends the others
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )


def _end(others: list[subprocess.Popen]) -> None:
    """End processes, by force those that do not end by themselves."""
    for other in others:
        other.terminate()
    for other in others:
        try:
            other.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            other.kill()
            other.wait()


class _Watch(threading.Thread):
    """Ends the first process, as by SIGTERM, when another one fails.

    A process that is stuck in a call of a library sees no signal: it is ended by force, with its record and the line
    of the error written.
    """

    def __init__(self, others: list[subprocess.Popen], consoles: list[Path], record: Record) -> None:
        super().__init__(daemon=True)
        self.others, self.consoles, self.record = others, consoles, record
        self.over, self.failure = threading.Event(), threading.Event()
        self.reason = ""

    def run(self) -> None:
        """Called by `start`."""
        while not self.over.wait(WATCH_SECONDS):
            failed = [number for number, other in enumerate(self.others) if other.poll()]
            if failed:
                # A signal ends all processes through the first one, which may be the last to end.
                if self.others[failed[0]].returncode > 128 and self.over.wait(END_SECONDS):
                    return
                self.reason = self.reason_of(failed[0])
                self.failure.set()
                os.kill(os.getpid(), signal.SIGTERM)
                if not self.over.wait(STUCK_SECONDS):
                    self.end()
                return

    def reason_of(self, number: int) -> str:
        """The last line of a process that has failed."""
        code, console = self.others[number].returncode, self.consoles[number]
        lines = console.read_text(errors="replace").strip().splitlines() or [f"exit code {code}"]
        last = f"killed by {signal.Signals(-code).name}" if code < 0 else lines[-1].strip().removeprefix("error: ")
        return f"process {number + 1} of 0 to {len(self.others)} failed: {last}; see {console}"

    def end(self) -> None:
        """Write the record of the run and end this process, whatever it is doing."""
        _end(self.others)
        self.record.status, self.record.error = "failed", f"LighttokenError: {self.reason}"
        self.record.save()
        os.write(2, f"error: {self.reason}\n".encode())
        os._exit(2)
