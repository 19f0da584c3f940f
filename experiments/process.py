"""A measurement in a process of its own, and the peak memory of a process. Linux only."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from lighttoken.run.memory import highest, reset_peak


def run_alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a new process, whose peak memory is that of this call alone."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_mb() -> float:
    """Peak resident memory since the last reset."""
    return highest() / 2**20


def reset_peak_mb() -> float:
    """Reset the peak; returns the memory in use."""
    return reset_peak() / 2**20
