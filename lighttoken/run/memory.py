"""The peak of a process's memory."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_before = 0  # the peak of this process up to the last reset


@dataclass
class Peak:
    """What a piece of work needed at its peak, besides the memory that was in use before it."""

    nbytes: int | None = None  # None before the work has ended, and where the system does not tell: Linux only

    def in_tables(self, rows: int, dim: int) -> float | None:
        """The peak in units of a float32 table (V, d)."""
        return None if self.nbytes is None else round(self.nbytes / (4 * rows * dim), 2)


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Inside, the peak of the resident memory of this process is watched; that of a GPU is not."""
    peak, before = Peak(), None
    with suppress(OSError):
        before = reset_peak()
    yield peak
    if before is not None:
        peak.nbytes = highest() - before


def reset_peak() -> int:
    """Watch from now on; returns the resident bytes in use. Raises OSError on other systems than Linux."""
    global _before
    _before = max(_before, highest())
    Path("/proc/self/clear_refs").write_text("5")  # which resets the peak of getrusage too
    return highest()


def peak_of_process() -> int:
    """Largest resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return max(_before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def highest() -> int:
    """Most resident bytes since the last reset."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])
