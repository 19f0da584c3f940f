"""What compression costs in fine-tuning: a grid of tasks, codecs, ratios and seeds, with its summary.

    python -m experiments.evidence experiments/DATED-FOLDER --data DIR [--tasks cola mrpc] [--codecs svd] [--seeds 0 1]
        [--ratios 25 103] [--distill] [--workers 16] [--overrides model=bert_base recipe=bert]

DIR holds a folder per task, named as in conf/task (`squad` too). Runs that records.csv has are not run again, so that a
stopped grid continues with the same command. Overrides go to every run, and are no part of what is compared there:
another model or recipe has a folder of its own. Each run is a process, `--workers` of them at a time; a GPU that one
small model does not fill takes many. A run that fails or is killed ends no grid: it is named at the end, and the exit
code is 1.

Another accelerator draws other numbers for a seed: what it has run has lines of its own, and references of its own.

Every task has two references: `codec=none` with the embedding frozen, and with it trained. Retention is the mean score
over that of the better reference on the same seeds; its standard error is that of paired ratios, sd(score - retention *
reference) / (mean reference * sqrt(n)), and is not told for one seed. With `--distill` every compressed run is made a
second time, learning from the logits of the frozen reference of its seed too, and so is that reference, to tell what
distillation does on its own. Writes records.csv and summary.md.
"""

import argparse
import csv
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from statistics import fmean, stdev

from tqdm import tqdm

from lighttoken.config.schema import config_dir
from lighttoken.run.average import task_score
from lighttoken.run.records import MODEL_FOLDER, RECORD_FILE, hardware, retention
from lighttoken.run.sweep import Job, close, ending_processes, quoted, run_process

# Seeds and what shortens a task, so that two CPU cores are enough.
TASKS: dict[str, tuple[int, tuple[str, ...]]] = {
    "cola": (3, ()),
    "mrpc": (3, ()),
    "rte": (2, ()),
    "stsb": (2, ()),
    "sst2": (1, ("task.train_rows=12000", "trainer.max_epochs=2")),
    "squad": (1, ()),
}
SETTING = ("task", "codec", "trainable", "distill", "ratio", "accelerator")
COLUMNS = (*SETTING, "seed", "score", "metrics", "bytes", "seconds", "git_commit")
Row = dict[str, str]


def grid(arguments: argparse.Namespace) -> list[Row]:
    """What is to be run, references first."""
    points: list[Row] = []
    for task in arguments.tasks:
        seeds = range(TASKS.get(task, (1, ()))[0]) if arguments.seeds is None else arguments.seeds
        for seed in seeds:
            same = {"accelerator": arguments.accelerator, "task": task, "seed": str(seed), "distill": "no"}
            points += [same | {"codec": "none", "trainable": each, "ratio": "1"} for each in ("frozen", "decoder")]
            compressed = [
                same | {"codec": codec, "trainable": arguments.trainable, "ratio": f"{ratio:g}"}
                for codec in arguments.codecs
                for ratio in arguments.ratios
            ]
            points += compressed
            if arguments.distill:
                frozen = same | {"codec": "none", "trainable": "frozen", "ratio": "1"}
                points += [each | {"distill": "yes"} for each in [*compressed, frozen]]
    return points


def key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in (*SETTING, "seed"))


def name_of(point: Row) -> str:
    """What a run is called on screen and its folder on disk."""
    distilled = "_distilled" if point["distill"] == "yes" else ""
    return f"{point['task']}_{point['codec']}_{point['ratio']}x_{point['trainable']}_seed{point['seed']}{distilled}"


def folder_of(point: Row, arguments: argparse.Namespace) -> Path:
    """Where a run has its record: the same for the same point."""
    return Path(arguments.output).resolve() / "runs" / name_of(point)


def teacher_of(point: Row) -> Row:
    """The frozen reference of a point's task and seed."""
    plain = {"codec": "none", "trainable": "frozen", "distill": "no", "ratio": "1"}
    return {name: point[name] for name in ("accelerator", "task", "seed")} | plain


def is_done(point: Row, arguments: argparse.Namespace) -> bool:
    """Whether a run is finished here, and has kept its model if it is to teach others."""
    folder = folder_of(point, arguments)
    if not (folder / RECORD_FILE).is_file():
        return False
    record = json.loads((folder / RECORD_FILE).read_bytes())
    if record["status"] != "done" or record["hardware"]["accelerator"] != point["accelerator"]:
        return False
    return not arguments.distill or point != teacher_of(point) or (folder / MODEL_FOLDER).is_dir()


def command_of(point: Row, arguments: argparse.Namespace) -> list[str]:
    """What lighttoken.train is told."""
    task = point["task"]
    told = [f"+experiment={task if task == 'squad' else f'glue_{task}'}", f"codec={point['codec']}"]
    told += [f"seed={point['seed']}", f"finetune.trainable={point['trainable']}", "logger=csv", "progress=false"]
    paths = {"task.data_dir": Path(arguments.data).resolve() / task, "output_dir": arguments.output}
    paths |= {"hydra.run.dir": folder_of(point, arguments)}
    paths |= {"distill": folder_of(teacher_of(point), arguments)} if point["distill"] == "yes" else {}
    told += [f"{key}={quoted(path)}" for key, path in paths.items()]
    told += [] if point["codec"] == "none" else [f"ratio={point['ratio']}"]
    told += ["save_model=true"] if arguments.distill and point == teacher_of(point) else []
    return [*told, *TASKS.get(task, (1, ()))[1], *arguments.overrides]


def run(point: Row, arguments: argparse.Namespace) -> str | None:
    """One fine-tuning, in a process; what it prints is in console.log of its folder. Returns what went wrong, if so."""
    folder = str(folder_of(point, arguments))
    job = Job(0, [], folder, "done")
    close(job, run_process([sys.executable, "-m", "lighttoken.train", *command_of(point, arguments)], folder))
    return job.error


def run_all(points: list[Row], arguments: argparse.Namespace, finish: Callable[[Row], None]) -> dict[str, str]:
    """Run points, each once its teacher is done, and `finish` each; returns the errors of those that failed."""
    left, errors = list(points), dict[str, str]()
    running: dict[Future[str | None], Row] = {}
    pool = ThreadPoolExecutor(arguments.workers)
    with pool, tqdm(total=len(points), unit="run") as bar, ending_processes():
        while True:
            ready = [each for each in left if each["distill"] == "no" or is_done(teacher_of(each), arguments)]
            for point in ready:
                running[pool.submit(run, point, arguments)] = point
            left = [each for each in left if each not in ready]
            if not running:
                return errors | {name_of(point): "its teacher failed" for point in left}
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                point = running.pop(future)
                if error := future.result():
                    errors[name_of(point)] = error
                else:
                    finish(point)
                bar.set_postfix_str(name_of(point), refresh=False)
                bar.update()


def read_row(point: Row, arguments: argparse.Namespace) -> Row:
    """The row of records.csv of a finished run."""
    record = json.loads((folder_of(point, arguments) / RECORD_FILE).read_bytes())
    return point | {
        "score": f"{task_score(record['metrics']):.5f}",
        "metrics": json.dumps({name: round(value, 5) for name, value in record["metrics"].items()}),
        "bytes": str(record["artifact_bytes"]),
        "seconds": f"{sum(record['seconds'].values()):.0f}",
        "git_commit": str(record["git_commit"])[:9],
    }


def summarise(rows: list[Row]) -> list[dict[str, object]]:
    """One line per task, codec and ratio, and their means over tasks."""
    scores: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for row in rows:
        scores[tuple(row[name] for name in SETTING)][row["seed"]] = float(row["score"])
    lines: list[dict[str, object]] = []
    for setting, found in sorted(scores.items(), key=lambda item: _order(item[0])):
        line: dict[str, object] = dict(zip(SETTING, setting, strict=True)) | {"n": len(found)}
        line |= {"mean": fmean(found.values()), "std": stdev(found.values()) if len(found) > 1 else None}
        references = [
            [each[seed] for seed in found]
            for (task, codec, _, distill, _, accelerator), each in scores.items()
            if (task, codec, distill, accelerator) == (line["task"], "none", "no", line["accelerator"])
            and found.keys() <= each.keys()
        ]
        if (line["codec"] != "none" or line["distill"] == "yes") and references:
            best = max(references, key=fmean)
            line |= {"reference": fmean(best)} | retention(list(found.values()), best)
        lines.append(line)
    return lines


def _order(place: tuple[str, ...]) -> tuple:
    task, codec, trainable, distill, ratio, accelerator = place
    return task, codec != "none", codec, trainable, distill, float(ratio), accelerator


def task_means(lines: list[dict]) -> list[dict[str, object]]:
    """The mean over the tasks of each codec, ratio and accelerator, and its retention against those tasks' references.

    `n` is the number of tasks. The standard error adds those of the tasks, in units of score, as independent ones.
    SQuAD, whose scores are percentages of another kind, is left out.
    """
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for line in lines:
        if line.get("retention") is not None and line["task"] != "squad":
            groups[tuple(line[name] for name in SETTING[1:])].append(line)
    means = []
    for setting, group in groups.items():
        reference = fmean(line["reference"] for line in group)
        errors = [line["standard_error"] for line in group]
        mean = {
            "task": f"mean of {', '.join(line['task'] for line in group)}",
            **dict(zip(SETTING[1:], setting, strict=True)),
            "n": len(group),
            "mean": fmean(line["mean"] for line in group),
            "reference": reference,
        }
        mean["retention"] = mean["mean"] / reference
        if None not in errors:
            squares = ((error * line["reference"]) ** 2 for error, line in zip(errors, group, strict=True))
            mean["standard_error"] = math.sqrt(sum(squares)) / len(group) / abs(reference)
        means.append(mean)
    return means


def write_summary(rows: list[Row], path: Path) -> None:
    columns = (*SETTING, "n", "mean", "std", "reference", "retention", "standard_error")
    lines = summarise(rows)
    cells = [
        [f"{line[name]:.4f}" if isinstance(line.get(name), float) else str(line.get(name) or "") for name in columns]
        for line in [*lines, *task_means(lines)]
    ]
    table = [list(columns), ["---"] * len(columns), *cells]
    path.write_text("\n".join(f"| {' | '.join(each)} |" for each in table) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where records.csv and summary.md are written")
    parser.add_argument("--data", required=True, help="a folder with a folder per task")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--codecs", nargs="+", default=["lighttoken"])
    parser.add_argument("--ratios", nargs="+", type=float, default=[25, 103])
    parser.add_argument("--seeds", nargs="+", type=int, help="the same for every task; else each task's own number")
    parser.add_argument("--trainable", default="frozen", help="of compressed embeddings")
    parser.add_argument("--distill", action="store_true", help="each compressed run a second time, with a teacher")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--output", help="run folders; in outputs/, by the name of the folder, if not given")
    parser.add_argument("--overrides", nargs="+", default=[], metavar="KEY=VALUE", help="of every run")
    arguments = parser.parse_args()
    for group, told in (("task", arguments.tasks), ("codec", arguments.codecs)):
        names = sorted(path.stem for path in Path(config_dir(), group).glob("*.yaml"))
        if unknown := sorted(set(told) - set(names)):
            parser.error(f"unknown {group} {', '.join(unknown)}; choose among {', '.join(names)}")
    if absent := [name for name in arguments.tasks if not Path(arguments.data, name).is_dir()]:
        parser.error(f"--data {arguments.data} has no folder {', '.join(absent)}")
    on_cpu = "trainer.accelerator=cpu" in arguments.overrides
    arguments.accelerator = "none" if on_cpu else hardware()["accelerator"]
    arguments.output = arguments.output or f"outputs/{arguments.folder.resolve().name}"
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "records.csv"
    rows: dict[tuple[str, ...], Row] = {}
    if path.exists():
        with path.open(newline="") as file:
            rows = {key(row): row for row in csv.DictReader(file)}

    def finish(point: Row) -> None:
        rows[key(point)] = read_row(point, arguments)
        ordered = sorted(rows.values(), key=lambda row: (_order(key(row)[:-1]), int(row["seed"])))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(ordered)
        write_summary(ordered, arguments.folder / "summary.md")

    points = [point for point in grid(arguments) if key(point) not in rows]
    teachers = [teacher_of(point) for point in points if point["distill"] == "yes"]
    points = [each for i, each in enumerate(teachers) if each not in [*points, *teachers[:i]]] + points
    for point in (done := [each for each in points if is_done(each, arguments)]):
        finish(point)
    errors = run_all([each for each in points if each not in done], arguments, finish)
    for name, error in errors.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()
