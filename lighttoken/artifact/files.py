"""Writing files and folders: whole or not at all, with an error that names the cure."""

import contextlib
import ctypes
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lighttoken.errors import LighttokenError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux, see renameat2(2)


def make_directory(directory: Path) -> None:
    """Make a folder, and those above it, if it is not there. Raises LighttokenError if that cannot be."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LighttokenError(f"cannot make the folder {directory}: {error.strerror}; choose another one") from error


@contextlib.contextmanager
def folder_for_output(directory: Path) -> Iterator[None]:
    """A folder to write into, made if need be. After an error, the folders that were made are gone if they are empty.

    Raises LighttokenError, before any work, if the folder cannot be made or written.
    """
    made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    try:
        make_directory(directory)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise LighttokenError(f"cannot write into the folder {directory}; choose another one or change its rights")
        yield
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a reader, or a crash, never sees half of it.

    Raises LighttokenError, and leaves no debris, if the disk is full or the folder read-only.
    """
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error.strerror or str(error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def write_folder(directory: Path, obsolete: tuple[str, ...] = ()) -> Iterator[Path]:
    """A new folder to write into, whose files replace those of `directory` when the block ends; an error changes none.

    Other files of `directory` stay, but not those directly in it that match a pattern of `obsolete`. On Linux the
    change is one step, even for a kill. Elsewhere, and for a mount point, the working directory or a folder that holds
    folders of others, such as a git repository, it is one per file.

    Raises LighttokenError if the disk is full or a folder is read-only.
    """
    directory = directory.resolve()
    # What cannot be renamed gets its files one by one, from a folder in the same file system.
    inside = directory.is_mount() or directory == Path.cwd() or not os.access(directory.parent, os.W_OK)
    make_directory(directory if inside else directory.parent)
    new = _temporary(directory / "new" if inside else directory)
    try:
        new.mkdir()
        yield new
        for file in _files(new):
            _sync(new / file)
        if inside or not _exchange_folders(new, directory, obsolete):
            _move_files(new, directory, obsolete)
    except OSError as error:
        raise _cannot_write(directory, error.strerror or str(error)) from error
    except Exception as error:
        if "os error" not in str(error):  # safetensors has an exception of its own
            raise
        raise _cannot_write(directory, str(error)) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _exchange_folders(new: Path, old: Path, obsolete: tuple[str, ...]) -> bool:
    """Put a folder in the place of another in one step, which then has its name.

    False if the system cannot do it, or if it would lose what is no file: folders, which may be empty, or a pipe.
    """
    if not old.is_dir():
        new.rename(old)
        return True
    others = [path for path in old.rglob("*") if not (path.is_file() or path.is_symlink())]
    if not all((new / path.relative_to(old)).is_dir() for path in others):
        return False
    for file in _files(old):
        if not (os.path.lexists(new / file) or _matches(file, obsolete)):
            (new / file).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(old / file, new / file, follow_symlinks=False)
            except OSError:  # a file system without hard links
                shutil.copy2(old / file, new / file, follow_symlinks=False)
    shutil.copymode(old, new)
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(new), os.fsencode(old)
    return renameat2 is not None and renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def _move_files(new: Path, old: Path, obsolete: tuple[str, ...]) -> None:
    """Move every file to the other folder, where it replaces the one of its name."""
    files = _files(new)
    for file in files:
        make_directory((old / file).parent)
        os.replace(new / file, old / file)
    for file in _files(old):
        if file not in files and _matches(file, obsolete):
            (old / file).unlink()


def _files(folder: Path) -> list[Path]:
    """The files in a folder and in those below, relative to it."""
    return [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()]


def _matches(file: Path, patterns: tuple[str, ...]) -> bool:
    """Whether a file lies directly in its folder and has a name of one of the patterns."""
    return len(file.parts) == 1 and any(file.match(pattern) for pattern in patterns)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _temporary(path: Path) -> Path:
    """A name beside `path` of this process. What processes that a kill has ended left of `path` is removed."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        process = left.suffixes[-2].removeprefix(".") if len(left.suffixes) > 1 else ""
        if process.isdecimal() and not _is_running(int(process)):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _is_running(process: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True


def _cannot_write(path: Path, reason: str) -> LighttokenError:
    return LighttokenError(f"cannot write {path}: {reason}; free space there or choose another folder")
