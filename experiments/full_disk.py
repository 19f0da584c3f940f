"""A full disk and a folder that is read-only: the message, and whether what was there before is intact.

    python -m experiments.full_disk experiments/DATED-FOLDER

Mounts a small tmpfs, so it needs Linux and root. Each case first writes its files there, then fills the disk, or mounts
it again as read-only, and runs the same command a second time. That one must end with exit code 2 and one line that
names a path on the disk; every file of the first one must have the same bytes, and no temporary file may stay.

Prints a line per case, and fails if one is not as it must be. Writes full_disk.csv.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.inputs import make_inputs
from experiments.rows import RowFile

COLUMNS = ["writes", "disk", "exit_code", "message", "intact"]
QUICK = ["progress=false", "codec=svd", "ratio=2"]
TRAIN = [
    "train",
    "model.path=model",
    "task=sst2",
    "task.data_dir=sst2",
    "trainer.accelerator=cpu",
    "logger=csv",
    *QUICK,
]
TRAIN += ["trainer.max_epochs=1"]
CASES = {
    "artifact": ["compress", "model.path=model", *QUICK, "overwrite=true", "output=DISK/table"],
    "checkpoint": ["compress", "model.path=model", *QUICK, "overwrite=true", "checkpoint=true", "output=DISK/model"],
    "record": [*TRAIN, "output_dir=DISK/outputs"],
    "cache of data sets": [*TRAIN, "output_dir=outputs", "task.max_length=MAX_LENGTH"],
    "report": ["report", "outputs", "--output", "DISK/report"],
}


def main() -> None:
    """Entry point. Exit code 1: a case is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where full_disk.csv is written")
    results = RowFile(parser.parse_args().folder.resolve() / "full_disk.csv", COLUMNS)
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(make_inputs(Path(scratch)))
        run([*TRAIN, "output_dir=outputs"], Path("cache"))  # something to report
        for writes in CASES:
            for disk in ("full", "read-only"):
                row = try_case(writes, disk, Path(scratch, "disk").resolve())
                results.add(row)
                print(row)
                wrong += row["exit_code"] != 2 or not row["intact"]
    sys.exit(bool(wrong))


def try_case(writes: str, disk: str, mount: Path) -> dict[str, object]:
    """Run the command of a case twice, the second time on a disk that is full or read-only."""
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", mount], check=True)
    try:
        first, second = (
            [word.replace("DISK", str(mount)).replace("MAX_LENGTH", length) for word in CASES[writes]]
            for length in ("30", "31")
        )
        cache = mount / "cache" if writes.startswith("cache") else Path("cache")
        run(first, cache)
        before = content(mount)
        if disk == "full":
            with Path(mount, "filler").open("wb", buffering=0) as file:
                for size in (2**20, 2**12):
                    try:
                        while True:
                            file.write(bytes(size))
                    except OSError:
                        continue
        else:
            subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
        code, message = run(second, cache)
        after = content(mount)
        named = str(mount) in message and "\n" not in message
        whole = before.items() <= after.items() and not any(".tmp" in name for name in after)
        shown = message.replace(str(mount.parent), "")
        return {"writes": writes, "disk": disk, "exit_code": code, "message": shown, "intact": named and whole}
    finally:
        subprocess.run(["umount", mount], check=True)
        mount.rmdir()


def run(command: list[str], cache: Path) -> tuple[int, str]:
    """The exit code of a command and the last line of its stderr."""
    environment = os.environ | {
        "HF_DATASETS_CACHE": str(cache.resolve()),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
    }
    name, *arguments = command
    done = subprocess.run(
        [sys.executable, "-m", f"lighttoken.{name}", *arguments], env=environment, capture_output=True, text=True
    )
    lines = done.stderr.strip().splitlines() or [""]
    return done.returncode, lines[-1]


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, but of locks and of what fills the disk."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != "filler"
    }


if __name__ == "__main__":
    main()
