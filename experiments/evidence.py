"""What compression costs in fine-tuning: a grid of tasks, codecs, ratios and seeds, with its summary.

    python -m experiments.evidence experiments/DATED-FOLDER --data DIR [--tasks cola mrpc] [--codecs svd] [--seeds 0 1]
        [--ratios 25 103] [--distill] [--overrides model=bert_base recipe=bert]

DIR holds a folder per task, named as in conf/task (`squad` too). Runs that records.csv has are not run again, so that a
stopped grid continues with the same command. Overrides go to every run.

Every task has two references: `codec=none` with the embedding frozen, and with it trained. Retention is the mean score
over that of the better reference on the same seeds; its standard error is that of paired ratios, sd(score - retention *
reference) / (mean reference * sqrt(n)), and is not told for one seed. With `--distill` every compressed run is made a
second time, learning from the logits of the frozen reference of its seed too, and so is that reference, to tell what
distillation does on its own. Writes records.csv and summary.md.
"""

import argparse
import csv
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tqdm import tqdm

from lighttoken.records import read_records, retention
from lighttoken.tasks.average import task_score

# Seeds and what shortens a task, so that two CPU cores are enough.
TASKS: dict[str, tuple[int, tuple[str, ...]]] = {
    "cola": (3, ()),
    "mrpc": (3, ()),
    "rte": (2, ()),
    "stsb": (2, ()),
    "sst2": (1, ("task.train_rows=12000", "trainer.max_epochs=2")),
    "squad": (1, ()),
}
SETTING = ("task", "codec", "trainable", "distill", "ratio")
COLUMNS = (*SETTING, "seed", "score", "metrics", "bytes", "seconds", "git_commit")
Row = dict[str, str]


def grid(arguments: argparse.Namespace) -> list[Row]:
    """What is to be run, references first."""
    points: list[Row] = []
    for task in arguments.tasks:
        seeds = range(TASKS.get(task, (1, ()))[0]) if arguments.seeds is None else arguments.seeds
        for seed in seeds:
            same = {"task": task, "seed": str(seed), "distill": "no"}
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


def run(point: Row, arguments: argparse.Namespace) -> Row:
    """One fine-tuning; its row of records.csv."""
    more: list[str] = []
    if point["distill"] == "yes":
        more = [f"distill={find_teacher(point, arguments)}"]
    elif arguments.distill and (point["codec"], point["trainable"]) == ("none", "frozen"):
        more = ["save_model=true"]  # it is the teacher
    record = fine_tune(point, arguments, more)
    return point | {
        "score": f"{task_score(record['metrics']):.5f}",
        "metrics": json.dumps({name: round(value, 5) for name, value in record["metrics"].items()}),
        "bytes": str(record["artifact_bytes"]),
        "seconds": f"{sum(record['seconds'].values()):.0f}",
        "git_commit": str(record["git_commit"])[:9],
    }


def find_teacher(point: Row, arguments: argparse.Namespace) -> str:
    """The folder of the frozen reference of a point's task and seed that kept its model; made if there is none."""
    frozen = point | {"codec": "none", "trainable": "frozen", "ratio": "1"}
    for record in read_records(Path(arguments.output)):
        found = {"task": record["task"], "codec": record["codec"], "seed": str(record["seed"])}
        found |= {"trainable": record["config"]["finetune"]["trainable"]}
        kept = record["status"] == "done" and (Path(record["directory"]) / "model").is_dir()
        if kept and not record["config"].get("distill") and found.items() <= frozen.items():
            return record["directory"]
    return fine_tune(frozen, arguments, ["save_model=true"])["directory"]


def fine_tune(point: Row, arguments: argparse.Namespace, more: list[str]) -> dict[str, Any]:
    """Fine-tune in a process of its own; returns the record."""
    task = point["task"]
    experiment = task if task == "squad" else f"glue_{task}"
    command = [sys.executable, "-m", "lighttoken.train", f"+experiment={experiment}", f"codec={point['codec']}"]
    command += [f"task.data_dir={Path(arguments.data).resolve() / task}", f"seed={point['seed']}", "logger=csv"]
    command += [f"finetune.trainable={point['trainable']}", "progress=false", f"output_dir={arguments.output}"]
    command += [] if point["codec"] == "none" else [f"ratio={point['ratio']}"]
    command += [*TASKS.get(task, (1, ()))[1], *arguments.overrides, *more]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return max(read_records(Path(arguments.output)), key=lambda each: each["started"])


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
            for (other, name, _, distill, _), each in scores.items()
            if (other, name, distill) == (line["task"], "none", "no") and found.keys() <= each.keys()
        ]
        if (line["codec"] != "none" or line["distill"] == "yes") and references:
            best = max(references, key=fmean)
            line |= {"reference": fmean(best)} | retention(list(found.values()), best)
        lines.append(line)
    return lines


def _order(place: tuple[str, ...]) -> tuple:
    task, codec, trainable, distill, ratio = place
    return task, codec != "none", codec, trainable, distill, float(ratio)


def task_means(lines: list[dict]) -> list[dict[str, object]]:
    """Of each codec and ratio, the mean over tasks that have it, and its retention against the same tasks' references.

    SQuAD, whose scores are percentages of another kind, is left out.
    """
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for line in lines:
        if line.get("retention") is not None and line["task"] != "squad":
            groups[tuple(line[name] for name in SETTING[1:])].append(line)
    return [
        {
            "task": f"mean of {', '.join(line['task'] for line in group)}",
            **dict(zip(SETTING[1:], setting, strict=True)),
            "n": len(group),
            "mean": fmean(line["mean"] for line in group),
            "reference": fmean(line["reference"] for line in group),
            "retention": fmean(line["mean"] for line in group) / fmean(line["reference"] for line in group),
        }
        for setting, group in groups.items()
    ]


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
    parser.add_argument("--output", default="outputs/evidence", help="run folders")
    parser.add_argument("--overrides", nargs="+", default=[], metavar="KEY=VALUE", help="of every run")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "records.csv"
    rows: list[Row] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [{"distill": "no"} | row for row in csv.DictReader(file)]
    done = {key(row) for row in rows}
    for point in (bar := tqdm([each for each in grid(arguments) if key(each) not in done], unit="run")):
        bar.set_postfix_str(" ".join(key(point)))
        rows.append(run(point, arguments))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        write_summary(rows, arguments.folder / "summary.md")


if __name__ == "__main__":
    main()
