"""The end of a command by a signal: one exception, one line, one exit code. Imports nothing that takes time."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

# SIGUSR1 and SIGUSR2: a cluster's queue warns a job that its time is nearly over.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
REPEAT_SECONDS = 2.0  # a terminal and the parent of a process send a signal each; the second must not end the clean-up
WATCH_SECONDS = 1.0
PARENT = "LIGHTTOKEN_PARENT"  # in the environment of a job: the process that must not die before it


class Interrupted(SystemExit):
    """A signal asks the process to end. The exit code is 128 + N; notes say what is kept and how to go on."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return signal.Signals(self.number).name


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside, a signal ends the command with a line on stderr and exit code 128 + N. For the main thread.

    A job that a sweep has started ends, as by SIGTERM, when the sweep is no more.
    """
    if (parent := os.environ.pop(PARENT, None)) is not None:
        when_gone(lambda: os.getppid() == int(parent), lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with raising_interrupted():
            yield
    except SystemExit as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGTERM
        if not isinstance(error, Interrupted) and type(error).__name__ != "SIGTERMException":  # Lightning's
            raise
        notes = getattr(error, "__notes__", ["the same command starts again"])
        print(f"\ninterrupted by {signal.Signals(number).name}: {'; '.join(notes)}", file=sys.stderr)
        sys.exit(128 + number)


@contextlib.contextmanager
def raising_interrupted(before: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Inside, a signal calls `before`, at once, and raises Interrupted. For the main thread.

    A signal that the process ignores, as SIGHUP after `nohup`, stays ignored.
    """
    last = -REPEAT_SECONDS

    def handle(number: int, frame: Any) -> None:
        nonlocal last
        now, earlier = time.monotonic(), last
        if now - earlier < REPEAT_SECONDS:
            return
        last = now
        before()
        raise Interrupted(number)

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    caught = [number for number, handler in handlers.items() if handler is not signal.SIG_IGN]
    for number in caught:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, handlers[number])


def when_gone(is_there: Callable[[], bool], end: Callable[[], None]) -> None:
    """Call `end`, in another thread, once `is_there` is no longer true."""

    def watch() -> None:
        while is_there():
            time.sleep(WATCH_SECONDS)
        end()

    threading.Thread(target=watch, daemon=True).start()
