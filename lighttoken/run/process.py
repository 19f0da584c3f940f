"""Which process makes a run: among the processes of the run, and among those of the machine.

The latter so that a run whose process was killed outright does not look as if it went on.
"""

import os
import platform
from pathlib import Path
from typing import Any


def rank() -> int:
    """The number of this process among those of a run, from 0, as our launcher, torchrun or srun set it."""
    if {"RANK", "LOCAL_RANK"} <= os.environ.keys():
        return int(os.environ["RANK"])
    return int(os.environ["SLURM_PROCID"]) if processes_started() > 1 else 0


def processes_started() -> int:
    """How many processes torchrun or srun have started for this command; 1 without them."""
    name = "WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_STEP_NUM_TASKS"
    return int(os.environ.get(name, 1))


def this_process() -> dict[str, Any]:
    """Host, boot, PID namespace, PID and start of this process; None for what the system does not tell.

    `start` is in clock ticks since the boot. A later process can have the same PID, but not the same start.
    """
    pid = os.getpid()
    return {"host": platform.node(), "boot": _boot(), "namespace": _namespace(), "pid": pid, "start": _start(pid)}


def is_gone(process: dict[str, Any]) -> bool:
    """Whether a process, as `this_process` describes it, has certainly ended.

    False where this cannot be known: on another host, in another container, for an empty description.
    """
    if not process or process.get("host") != platform.node():
        return False
    if process.get("boot") != _boot():  # the host was started again
        return bool(process.get("boot") and _boot())
    if process.get("namespace") != _namespace():
        return False
    if not Path("/proc/self/stat").exists():
        return not _exists(process["pid"])
    return _start(process["pid"]) != process.get("start")


def _start(pid: int) -> int | None:
    """The start of a process; None if there is none, or if it is dead and nobody has waited for it."""
    try:
        # The second field is the name of the program, in parentheses; it may hold spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
