"""Kills at random moments: whether a run that is killed again and again ends as one that nobody disturbs.

    python -m experiments.kills experiments/DATED-FOLDER [--kills 30] [--seed 0]

Trains a tiny random BERT on made-up sentences, on the CPU, in a scratch folder. SIGKILL ends the command at a random
moment, and the same command, with resume=true, starts again until it ends. Its artifact must have the same bytes, and
its scores must be the same, as those of the undisturbed run; then the next such run begins, until there have been all
kills.
At last a sweep is killed: 10 seconds later no process of its jobs may be there, and the same command must end well.

Prints the counts, and fails if one is not as it must be. Writes kills.csv: a row per start of the command. 15
kills took 13 minutes on two cores that others used too. Linux only.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.inputs import make_inputs
from experiments.rows import RowFile

COLUMNS = ("what", "run", "start", "seconds", "end", "resumed", "same")
ORPHAN_SECONDS = 10.0
LIMIT = 600.0  # seconds that one start of the command may take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where kills.csv is written")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    results = RowFile(arguments.folder.resolve() / "kills.csv", COLUMNS)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(make_inputs(Path(scratch)))
        different = kill_runs(arguments.kills, random.Random(arguments.seed), results)
        orphans, code = kill_sweep(results)
    ends = [row["end"] for row in results.rows if row["what"] == "run"]
    resumed = sum(row["resumed"] == "True" for row in results.rows)
    print(
        f"{ends.count('killed')} kills, {ends.count('done')} runs done, {resumed} of them resumed, {different} differ"
    )
    print(
        f"sweep: {orphans} processes {ORPHAN_SECONDS:g} s after its kill; the same command ended with exit code {code}"
    )
    sys.exit(bool(different or orphans or code or "failed" in ends))


def start(output: str, *arguments: str) -> subprocess.Popen:
    """Start the train command with its output in a folder."""
    data = ["model.path=model", "task=sst2", f"task.data_dir={Path('sst2').absolute()}", "trainer.accelerator=cpu"]
    data += ["codec=svd", "ratio=2", "trainer.max_epochs=30", "logger=none", "callbacks={}", "progress=false"]
    command = [sys.executable, "-m", "lighttoken.train", *data, f"output_dir={output}", "resume=true", *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with Path("console.log").open("a") as console:
        return subprocess.Popen(command, stdout=console, stderr=console, stdin=subprocess.DEVNULL, env=environment)


def result(output: str) -> tuple[Any, dict[str, Any]]:
    """What must be the same, the artifact's hash and the scores, and the record of the run that is done."""
    records = [json.loads(path.read_bytes()) for path in Path(output, "runs").glob("*/record.json")]
    done = [record for record in records if record["status"] == "done"]
    record = max(done, key=lambda record: record["started"])  # a kill at its very end leaves one that is done too
    files = [path for path in sorted(Path(record["artifact"]).iterdir()) if not path.name.startswith(".")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return ([path.name for path in files], digest, record["metrics"]), record


def kill_runs(kills: int, moments: random.Random, results: RowFile) -> int:
    """Kill runs until there have been so many kills and the last run is done; returns how many ended otherwise."""
    began = time.monotonic()
    if start("undisturbed").wait(LIMIT):
        sys.exit(f"the undisturbed run failed:\n{Path('console.log').read_text()}")
    whole = time.monotonic() - began
    expected, _ = result("undisturbed")
    different = run = killed = number = 0
    while True:
        began, process = time.monotonic(), start(f"run{run}")
        try:
            code = process.wait(moments.uniform(0, whole) if killed < kills else LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        row = {"what": "run", "run": run, "start": number, "seconds": round(time.monotonic() - began, 2)}
        if code == -signal.SIGKILL:
            killed, number = killed + 1, number + 1
            results.add(row | {"end": "killed"})
            continue
        if code:
            print(Path("console.log").read_text()[-3000:])
            results.add(row | {"end": "failed"})
            return different
        found, record = result(f"run{run}")
        different += found != expected
        results.add(row | {"end": "done", "resumed": bool(record["resumed"]), "same": found == expected})
        run, number = run + 1, 0
        if killed >= kills:
            return different


def kill_sweep(results: RowFile) -> tuple[int, int]:
    """Kill a sweep; returns the processes that are left, and the exit code of the same command afterwards."""
    arguments = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1,2", "-m"]
    began, sweep = time.monotonic(), start("sweeps", *arguments)
    while len(list(Path("sweeps/sweeps").glob("*/*/record.json"))) < 2 and sweep.poll() is None:
        time.sleep(0.05)
    sweep.kill()
    sweep.wait()
    results.add({"what": "sweep", "start": 0, "seconds": round(time.monotonic() - began, 2), "end": "killed"})
    time.sleep(ORPHAN_SECONDS)
    orphans = len(jobs())
    began = time.monotonic()
    code = start("sweeps", *arguments).wait(LIMIT)
    end = "failed" if code else "done"
    results.add({"what": "sweep", "start": 1, "seconds": round(time.monotonic() - began, 2), "end": end})
    return orphans, code


def jobs() -> list[int]:
    """The processes of the train command with the data of this script."""
    found, mark = [], f"task.data_dir={Path('sst2').absolute()}"
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark in path.read_text().split("\0"):
                found.append(int(path.parent.name))
        except OSError:  # ended meanwhile
            continue
    return found


if __name__ == "__main__":
    main()
