"""A measurement in a process of its own, and the peak memory of a process. Linux only."""

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from lighttoken.run.memory import highest, reset_peak


def run_alone(function: Callable[..., Any], *arguments: Any, clone: Path | None = None) -> Any:
    """The result of a function in a new process, whose peak memory is that of this call alone.

    `clone`: a folder with another version of this project, whose code the process runs.
    """
    path = list(sys.path)
    sys.path[:0] = [] if clone is None else [str(clone)]  # a new process has the search path of this one
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        sys.path[:] = path


def peak_mb() -> float:
    """Peak resident memory since the last reset."""
    return highest() / 2**20


def reset_peak_mb() -> float:
    """Reset the peak; returns the memory in use."""
    return reset_peak() / 2**20
