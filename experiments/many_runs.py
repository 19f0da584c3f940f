"""What a study of thousands of runs costs: bytes of its records, seconds to read and to draw them, size of the page.

    python -m experiments.many_runs experiments/DATED-FOLDER --runs 10000

Writes made-up records, by the project's own Record, and curves into a scratch folder: 9 tasks, 3 models, 11 codecs, 4
ratios, and as many seeds as it takes. Then the steps of `lighttoken.report` read and draw them. Seconds are those of
the processor, which other work on the machine changes less than those of the clock. Writes many_runs.csv: bytes,
seconds of every step, size of the page, peak memory.
"""

import argparse
import csv
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf

from experiments.process import peak_mb
from experiments.rows import RowFile, markdown
from lighttoken.config.schema import config_dir, register
from lighttoken.dashboard.charts import make_charts
from lighttoken.dashboard.figures import write_figures
from lighttoken.dashboard.gather import gather
from lighttoken.dashboard.page import write_page
from lighttoken.dashboard.tables import write_tables
from lighttoken.run.records import Record

SAMPLE = Path(__file__).parents[1] / "tests/samples/records/lighttoken/record.json"
TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "squad")
MODELS = ("minilm_l6", "bert_base", "roberta_base")
CODECS = ("lighttoken", "lighttoken_paper", "svd", "pq", "opq", "rq", "lsq", "gguf", "scalar", "tensor_train")
RATIOS = (5.0, 25.0, 50.0, 103.0)
POINTS = 120  # of a curve
COLUMNS = ("runs", "record_bytes", "curve_bytes", "gather_s", "charts_s", "page_s", "figures_s", "tables_s")
COLUMNS += ("total_s", "page_mb", "peak_mb")


def configs() -> dict[tuple[str, str], dict[str, Any]]:
    """The config of a run of every task and codec."""
    register()
    with hydra.initialize_config_dir(config_dir(), version_base="1.3"):
        tasks: Any = {task: OmegaConf.to_container(hydra.compose("train", [f"task={task}"])) for task in TASKS}
        codecs: Any = {
            codec: OmegaConf.to_container(hydra.compose("train", [f"codec={codec}"]).codec, resolve=True)
            for codec in ("none", *CODECS)
        }
    return {(task, codec): tasks[task] | {"codec": codecs[codec]} for task in TASKS for codec in codecs}


def settings() -> Iterator[tuple[str, str, str, float | None, int]]:
    """Task, model, codec, ratio and seed of run after run."""
    choices = [("none", None), *itertools.product(CODECS, RATIOS)]
    for seed in itertools.count():
        for task, model, (codec, ratio) in itertools.product(TASKS, MODELS, choices):
            yield task, model, codec, ratio, seed


def write_runs(folder: Path, count: int) -> None:
    """Write the records and the curves of so many runs."""
    draw, sample, every = random.Random(0), json.loads(SAMPLE.read_text()), configs()
    same = {name: sample[name] for name in ("table", "seconds", "hardware", "versions", "peak_memory_bytes")}
    same |= {"process": {}, "git_commit": 40 * "0", "status": "done", "started": sample["started"]}
    for number, (task, model, codec, ratio, seed) in enumerate(itertools.islice(settings(), count)):
        config = every[task, codec] | {"ratio": ratio or 25.0, "seed": seed}
        config["model"] = config["model"] | {"name": model}
        run = folder / f"sweeps/{number // 1000:03d}/{number}_{task}_{codec}_{ratio or 25.0}x_seed{seed}"
        record = Record(run, config, model, task, codec, seed, ratio, **same)
        record.table_bytes, record.model_bytes, record.stored_bytes = 46_881_792, 90_264_576, 45_239_656
        record.add_artifact(46_881_792 if ratio is None else round(46_881_792 / ratio))
        if ratio is not None:
            record.artifact = f"outputs/artifacts/{codec}_{ratio:g}x_seed{seed}_{model}"
            nmse = 0.05 * ratio**0.5 * draw.uniform(0.9, 1.1)
            record.compression = sample["compression"] | {"nmse": nmse, "weighted_nmse": 0.8 * nmse}
        names = [f"val/{name}" for name in config["task"]["metrics"]]
        record.metrics = {name: draw.uniform(0.5, 0.9) for name in names} | {"val/loss": draw.uniform(0.3, 0.7)}
        record.save()
        with (run / "metrics.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", "step", "lr-AdamW", "train/loss", *record.metrics])
            for point in range(POINTS):
                step, loss = 20 * point, draw.uniform(0.9, 1.1) / (1 + point / 20)
                writer.writerow([point // 40, step, 1e-4 * (1 - point / POINTS), loss, *[""] * len(record.metrics)])
                if point % 40 == 39:
                    writer.writerow([point // 40, step, "", "", *(draw.random() for _ in record.metrics)])


def size(folder: Path, name: str) -> int:
    """Bytes of all files of a name."""
    return sum(path.stat().st_size for path in folder.rglob(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--runs", type=int, default=10_000)
    arguments = parser.parse_args()
    row: dict[str, Any] = {"runs": arguments.runs}

    def timed(name: str, call: Callable[..., Any], *values: Any) -> Any:
        start = time.process_time()
        result = call(*values)
        row[f"{name}_s"] = f"{time.process_time() - start:.1f}"
        return result

    with tempfile.TemporaryDirectory() as name:
        outputs, report = Path(name, "outputs"), Path(name, "report")
        report.mkdir()
        write_runs(outputs, arguments.runs)
        row |= {"record_bytes": size(outputs, "record.json"), "curve_bytes": size(outputs, "metrics.csv")}
        start = time.process_time()
        runs = timed("gather", gather, [outputs])
        charts = timed("charts", make_charts, runs)
        page = timed("page", write_page, runs, charts, report)
        timed("figures", write_figures, charts, report)
        timed("tables", write_tables, runs, report)
        row["total_s"] = f"{time.process_time() - start:.1f}"
        row["page_mb"] = f"{page.stat().st_size / 1e6:.2f}"
    row["peak_mb"] = f"{peak_mb():.0f}"
    RowFile(arguments.results / "many_runs.csv", COLUMNS).add(row)
    print(markdown([{name: str(row[name]) for name in COLUMNS}], COLUMNS))


if __name__ == "__main__":
    main()
