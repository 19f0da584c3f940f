"""Writing files: whole or not at all, with an error that names the cure."""

import contextlib
import os
from pathlib import Path

from lighttoken.errors import LighttokenError


def make_directory(directory: Path) -> None:
    """Make a folder, and those above it, if it is not there. Raises LighttokenError if that cannot be."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LighttokenError(f"cannot make the folder {directory}: {error.strerror}; choose another one") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, never sees half of it.

    Raises LighttokenError, and leaves no debris, if the disk is full or the folder read-only.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise LighttokenError(
            f"cannot write {path}: {error.strerror}; free space there or choose another folder"
        ) from error
