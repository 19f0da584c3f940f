"""Writing whole or not at all, also on a full disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lighttoken import LighttokenError, compress_table, load_table
from lighttoken.artifact import files
from lighttoken.artifact.files import folder_for_output, write_atomically, write_folder
from lighttoken.artifact.table import METADATA_FILE, NEXT_TENSORS_FILE, TENSORS_FILE


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if mounted.returncode:
        pytest.skip("this user cannot mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_what_is_there_stays_on_a_full_disk(small_disk):
    path = small_disk / "file"
    write_atomically(path, b"old")
    with pytest.raises(LighttokenError, match=f"cannot write {path}: No space left on device; free space"):
        write_atomically(path, bytes(2 << 20))
    folder = small_disk / "folder"
    for content in (b"old", bytes(2 << 20)):
        try:
            with write_folder(folder) as new:
                (new / "config.json").write_bytes(content[:3])
                (new / "weights").write_bytes(content)
        except LighttokenError as error:
            assert str(error).startswith(f"cannot write {folder}: No space left on device")  # noqa: PT017
    assert names(small_disk) == ["file", "folder/config.json", "folder/weights"]
    assert path.read_bytes() == (folder / "config.json").read_bytes() == (folder / "weights").read_bytes() == b"old"


def test_an_artifact_stays_on_a_full_disk(small_disk, table):
    first = compress_table(table, "svd", 5, progress=False)
    first.save(small_disk)
    (small_disk / "filler").write_bytes(bytes((1 << 20) - first.nbytes - (20 << 10)))
    with pytest.raises(LighttokenError, match="No space left"):
        compress_table(table, "svd", 2, progress=False).save(small_disk)
    assert load_table(small_disk).nbytes == first.nbytes
    assert names(small_disk) == [METADATA_FILE, TENSORS_FILE, "filler"]


@pytest.mark.parametrize("step", range(4))
def test_a_kill_while_an_artifact_is_replaced_leaves_the_old_or_the_new_one(tmp_path, table, monkeypatch, step):
    class KillError(BaseException):
        pass

    old, new = (compress_table(table, "svd", ratio, progress=False) for ratio in (5, 2))
    old.save(tmp_path / "artifact")
    steps, replace = [], os.replace

    def killed(*arguments):
        if len(steps) == step:
            raise KillError
        steps.append(arguments)
        replace(*arguments)

    monkeypatch.setattr(os, "replace", killed)
    if step < 3:
        with pytest.raises(KillError):
            new.save(tmp_path / "artifact")
    else:
        new.save(tmp_path / "artifact")
        assert names(tmp_path / "artifact") == [METADATA_FILE, TENSORS_FILE]
    assert load_table(tmp_path / "artifact").nbytes == (old if step < 2 else new).nbytes
    assert (tmp_path / "artifact" / NEXT_TENSORS_FILE).exists() == (step in (1, 2))


def test_an_artifact_that_a_killed_save_left_under_another_name_outlives_a_failed_save(tmp_path, table, monkeypatch):
    old, new, newest = (compress_table(table, "svd", ratio, progress=False) for ratio in (5, 2, 3))
    old.save(tmp_path)
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: replace(a, b) if Path(b).name != TENSORS_FILE else sys.exit())
    with pytest.raises(SystemExit):
        new.save(tmp_path)
    assert (tmp_path / NEXT_TENSORS_FILE).exists()

    def full(a, b):
        if Path(b).name == METADATA_FILE:
            raise OSError(28, "No space left on device")
        replace(a, b)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(LighttokenError, match="No space left"):
        newest.save(tmp_path)
    assert load_table(tmp_path).nbytes == new.nbytes


@pytest.mark.parametrize("inside", [False, True])
def test_a_folder_is_replaced_but_for_what_is_not_of_it(tmp_path, monkeypatch, inside):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for name in ("config.json", "old-1.bin", "notes.txt", "sub/old-2.bin"):
        (folder / name).write_text("old")
    if inside:
        monkeypatch.chdir(folder)
    with write_folder(folder, ("old-*.bin",)) as new:
        (new / "config.json").write_text("new")
        assert (folder / "config.json").read_text() == "old"
    assert names(folder) == ["config.json", "notes.txt", "sub/old-2.bin"]
    assert (folder / "config.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_error_changes_nothing_in_a_folder(tmp_path):
    def write(text: str, error: BaseException | None) -> None:
        with write_folder(tmp_path / "folder") as new:
            (new / "file").write_text(text)
            if error:
                raise error

    write("old", None)
    with pytest.raises(KeyboardInterrupt):
        write("new", KeyboardInterrupt())
    with pytest.raises(LighttokenError, match=f"cannot write {tmp_path}/folder: I/O error: No space"):
        write("new", RuntimeError("I/O error: No space left on device (os error 28)"))
    assert names(tmp_path) == ["folder/file"]
    assert (tmp_path / "folder/file").read_text() == "old"


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    code = """
import os, pathlib, sys
from lighttoken.artifact import files
os.replace = lambda *names: os.kill(os.getpid(), 9)
files.write_atomically(pathlib.Path(sys.argv[1]), b"x")
"""
    environment = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code, tmp_path / "file"], env=environment, check=False, timeout=60)
    assert len(names(tmp_path)) == 1
    write_atomically(tmp_path / "file", b"y")
    assert names(tmp_path) == ["file"]


def test_a_folder_that_was_made_for_nothing_is_gone(tmp_path):
    with pytest.raises(KeyboardInterrupt), folder_for_output(tmp_path / "a/b"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_folder_without_the_right_to_write_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # root has every right
    with pytest.raises(LighttokenError, match=f"cannot write into the folder {tmp_path}"), folder_for_output(tmp_path):
        raise AssertionError
