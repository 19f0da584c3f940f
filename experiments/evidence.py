"""What compression costs in fine-tuning: a grid of tasks, codecs, ratios and seeds, with its summary.

    python -m experiments.evidence experiments/DATED-FOLDER --data DIR [--tasks cola mrpc] [--codecs svd] [--seeds 0 1]
        [--ratios 25 103] [--overrides model=bert_base recipe=bert]

DIR holds a folder per task, named as in conf/task (`squad` too). Runs that records.csv has are not run again, so that a
stopped grid continues with the same command. Overrides go to every run.

Every task has two references: `codec=none` with the embedding frozen, and with it trained. Retention is the mean score
over that of the better reference on the same seeds; its standard error is that of paired ratios, sd(score - retention *
reference) / (mean reference * sqrt(n)), and is not told for one seed. Writes records.csv and summary.md.
"""

import argparse
import csv
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

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
COLUMNS = ("task", "codec", "trainable", "ratio", "seed", "score", "metrics", "bytes", "seconds", "git_commit")
Row = dict[str, str]


def grid(arguments: argparse.Namespace) -> list[Row]:
    """What is to be run, references first."""
    points: list[Row] = []
    for task in arguments.tasks:
        seeds = range(TASKS.get(task, (1, ()))[0]) if arguments.seeds is None else arguments.seeds
        for seed in seeds:
            same = {"task": task, "seed": str(seed)}
            points += [same | {"codec": "none", "trainable": each, "ratio": "1"} for each in ("frozen", "decoder")]
            points += [
                same | {"codec": codec, "trainable": arguments.trainable, "ratio": f"{ratio:g}"}
                for codec in arguments.codecs
                for ratio in arguments.ratios
            ]
    return points


def key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in ("task", "codec", "trainable", "ratio", "seed"))


def run(point: Row, arguments: argparse.Namespace) -> Row:
    """One fine-tuning, in a process of its own; its row of records.csv."""
    task = point["task"]
    experiment = task if task == "squad" else f"glue_{task}"
    command = [sys.executable, "-m", "lighttoken.train", f"+experiment={experiment}", f"codec={point['codec']}"]
    command += [f"task.data_dir={Path(arguments.data).resolve() / task}", f"seed={point['seed']}", "logger=csv"]
    command += [f"finetune.trainable={point['trainable']}", "progress=false", f"output_dir={arguments.output}"]
    command += [] if point["codec"] == "none" else [f"ratio={point['ratio']}"]
    command += [*TASKS.get(task, (1, ()))[1], *arguments.overrides]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    record = max(read_records(Path(arguments.output)), key=lambda each: each["started"])
    return point | {
        "score": f"{task_score(record['metrics']):.5f}",
        "metrics": json.dumps({name: round(value, 5) for name, value in record["metrics"].items()}),
        "bytes": str(record["artifact_bytes"]),
        "seconds": f"{sum(record['seconds'].values()):.0f}",
        "git_commit": str(record["git_commit"])[:9],
    }


def summarise(rows: list[Row]) -> list[dict[str, object]]:
    """One line per task, codec and ratio, and their means over tasks."""
    scores: dict[tuple[str, str, str, str], dict[str, float]] = defaultdict(dict)
    for row in rows:
        scores[row["task"], row["codec"], row["trainable"], row["ratio"]][row["seed"]] = float(row["score"])
    lines: list[dict[str, object]] = []
    for (task, codec, trainable, ratio), found in sorted(scores.items(), key=lambda item: _order(item[0])):
        line = {"task": task, "codec": codec, "trainable": trainable, "ratio": ratio, "n": len(found)}
        line |= {"mean": fmean(found.values()), "std": stdev(found.values()) if len(found) > 1 else None}
        references = [
            [each[seed] for seed in found]
            for (other, name, _, _), each in scores.items()
            if other == task and name == "none" and found.keys() <= each.keys()
        ]
        if codec != "none" and references:
            best = max(references, key=fmean)
            line |= {"reference": fmean(best)} | retention(list(found.values()), best)
        lines.append(line)
    return lines


def _order(place: tuple[str, str, str, str]) -> tuple:
    task, codec, trainable, ratio = place
    return task, codec != "none", codec, trainable, float(ratio)


def task_means(lines: list[dict]) -> list[dict[str, object]]:
    """Of each codec and ratio, the mean over tasks that have it, and its retention against the same tasks' references.

    SQuAD, whose scores are percentages of another kind, is left out.
    """
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for line in lines:
        if line.get("retention") is not None and line["task"] != "squad":
            groups[line["codec"], line["trainable"], line["ratio"]].append(line)
    return [
        {
            "task": f"mean of {', '.join(line['task'] for line in group)}",
            "codec": codec,
            "trainable": trainable,
            "ratio": ratio,
            "n": len(group),
            "mean": fmean(line["mean"] for line in group),
            "reference": fmean(line["reference"] for line in group),
            "retention": fmean(line["mean"] for line in group) / fmean(line["reference"] for line in group),
        }
        for (codec, trainable, ratio), group in groups.items()
    ]


def write_summary(rows: list[Row], path: Path) -> None:
    columns = ("task", "codec", "trainable", "ratio", "n", "mean", "std", "reference", "retention", "standard_error")
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
    parser.add_argument("--output", default="outputs/evidence", help="run folders")
    parser.add_argument("--overrides", nargs="+", default=[], metavar="KEY=VALUE", help="of every run")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "records.csv"
    rows: list[Row] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
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
