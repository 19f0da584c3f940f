"""A measurement in a process of its own, and the peak memory of a process. Linux only."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def run_alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a new process, whose peak memory is that of this call alone."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_mb() -> float:
    """Peak resident memory since the last reset. The peak of getrusage cannot be reset."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def reset_peak_mb() -> float:
    """Reset the peak; returns the memory in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()
