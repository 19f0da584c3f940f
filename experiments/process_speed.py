"""Runs of two processes with one thread each against runs of one process with one thread.

    python -m experiments.process_speed experiments/DATED-FOLDER --data DIR [--task squad] [--repeats 3] \
        [--overrides model=bert_base]

DIR holds the task. Runs of one and of two processes take turns, on a machine that does nothing else. The artifact is
made first, in a run that does not count. Writes process_speed.csv, a line per run: seconds of fine-tuning, of
fine-tuning and evaluation, and of the whole command; prints the medians and the ratios of two processes to one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.rows import RowFile

COLUMNS = ("finetune", "finetune and evaluate", "command")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--task", default="cola", help="a file of conf/task")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--overrides", nargs="*", default=[])
    arguments = parser.parse_args()
    rows = RowFile(arguments.folder / "process_speed.csv", ("repeat", "processes", *COLUMNS))
    settings = [
        f"task={arguments.task}",
        f"task.data_dir={arguments.data}",
        "trainer.max_epochs=1",
        "logger=none",
        "progress=false",
    ]
    settings += ["trainer.accelerator=cpu", *arguments.overrides]
    seconds: dict[int, list[list[float]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        measure([*settings, "limit_rows=64"], folder)
        for repeat in range(arguments.repeats):
            for processes, several in ((1, []), (2, ["trainer=ddp", "trainer.devices=2"])):
                measured = measure([*settings, *several], folder)
                seconds[processes].append(measured)
                named = dict(zip(COLUMNS, measured, strict=True))
                rows.add({"repeat": repeat, "processes": processes} | named)
    for name, one, two in zip(COLUMNS, *(zip(*seconds[count], strict=True) for count in (1, 2)), strict=True):
        medians = statistics.median(one), statistics.median(two)
        print(
            f"{name}: {medians[0]:.1f} s with one process, {medians[1]:.1f} s with two: {medians[1] / medians[0]:.2f}"
        )


def measure(settings: list[str], folder: str) -> list[float]:
    """Seconds of a run: of fine-tuning, of fine-tuning and evaluation, of the whole command."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "lighttoken.train", *settings, f"output_dir={folder}"]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - start
    run = max(Path(folder, "runs").iterdir(), key=lambda path: path.name)
    phases = json.loads((run / "record.json").read_text())["seconds"]
    return [phases["finetune"], phases["finetune"] + phases["evaluate"], whole]


if __name__ == "__main__":
    main()
