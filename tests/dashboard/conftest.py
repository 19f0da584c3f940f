"""Records as runs write them, with random numbers."""

import base64
import csv
import gzip
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lighttoken.dashboard.charts import make_charts
from lighttoken.dashboard.gather import gather
from lighttoken.dashboard.page import write_page
from lighttoken.run.measure import BOUND_RATIOS
from lighttoken.run.records import Record

CODECS = ("lighttoken", "lighttoken_paper", "svd", "orientation_ae", "pq", "opq", "rq", "lsq", "scalar", "tensor_train")
CODECS += ("compositional_codes", "near_lossless_binary", "hashing_trick", "vocabulary_pruning")
SCORES = {"mrpc": ("val/accuracy", "val/f1"), "cola": ("val/matthews_corrcoef",)}
TABLE = {
    "rows": 30522,
    "dim": 384,
    "singular_values": {"index": list(range(1, 129)), "value": [28.7 / i**0.4 for i in range(1, 129)]},
    "gaussian_bound": {"ratio": BOUND_RATIOS, "nmse": [4 ** (-24 / ratio) for ratio in BOUND_RATIOS]},
}


def write_run(
    folder: Path, task: str, codec: str, ratio: float = 25.0, seed: int = 0, status: str = "done", **other: Any
) -> Path:
    """A run folder with record.json and metrics.csv. `config` is merged in, other values replace the record's."""
    draw = random.Random(f"{task}{codec}{ratio}{seed}")
    ratio = 1.0 if codec == "none" else ratio
    name = f"{len(list(folder.glob('*'))):04d}_{task}_{codec.replace('/', '_')[:30]}_{ratio:g}x_seed{seed}"
    config = {
        "model": {"_target_": "lighttoken.backbone.source.Backbone", "name": "minilm_l6", "path": None},
        "codec": {"_target_": "lighttoken.codec.Codec", "name": codec, "prior": "wordfreq", "iterations": 30},
        "schedule": {"start": 1.0, "end": 0.0005},
        "task": {"name": task, "batch_size": 32, "max_length": 128, "text_columns": ["sentence1", "sentence2"]},
        "finetune": {"learning_rate": 5e-5, "weight_decay": 0.01, "trainable": "frozen"},
        "trainer": {"max_epochs": 3, "gradient_clip_val": 1.0},
        "ratio": ratio,
        "backbone_precision": "float32",
        "seed": seed,
        "output_dir": "outputs",
    }
    config |= other.pop("config", {})
    quality = (CODECS.index(codec) if codec in CODECS else 0) / len(CODECS)  # 0: the best codec
    loss = 0.0 if codec == "none" else (0.03 + 0.25 * quality) * math.log(ratio) / math.log(103)
    score = 0.81 * (1 - loss) + draw.gauss(0, 0.006)
    record = Record(
        folder / name,
        config,
        model="minilm_l6",
        task=task,
        codec=codec,
        seed=seed,
        ratio_asked=None if codec == "none" else ratio,
        status="running",
        hardware={"accelerator": "none", "cpu_cores": 2},
        versions={"lighttoken": "0.1.0"},
        git_commit="0" * 40,  # git is slow to ask
        started=f"2026-11-{1 + seed:02d}T{draw.randrange(24):02d}:{draw.randrange(60):02d}:00+00:00",
    )
    record.table_bytes = record.artifact_bytes = 30522 * 384 * 4
    record.seconds = {"load": 3.1, "compress": 61.2}
    if status != "running":
        record.ratio = ratio * (1 + (codec != "none") * draw.random() / 100)
        record.artifact_bytes = int(record.table_bytes / record.ratio)
        record.model_bytes, record.stored_bytes = 90_900_000, 90_900_000 - record.table_bytes + record.artifact_bytes
        record.table = TABLE
        record.seconds |= {"measure": 2.0, "finetune": 224.5, "evaluate": 12.0}
        record.metrics = {metric: score + 0.05 * i for i, metric in enumerate(SCORES.get(task, ("val/accuracy",)))}
        record.metrics["val/loss"] = 0.51
        if codec != "none":
            bound = 4 ** (-24 / ratio)
            nmse = min(1.1, bound + 0.05 + 0.5 * quality)
            tenths = [nmse * (0.5 + 0.1 * i + draw.gauss(0, 0.02)) for i in range(10)]
            parts = {"codes": record.artifact_bytes - 40_000, "decoder": 38_500, "description": 1_500}
            record.compression = {"nmse": nmse, "weighted_nmse": 0.8 * nmse, "bound_nmse": bound}
            record.compression |= {"nmse_by_frequency_tenth": tenths, "bytes_by_part": parts}
            record.artifact = str(folder / f"{codec}_{ratio:g}x_seed{seed}")
    if status == "failed":
        record.error, record.metrics = "LighttokenError: ratio 103 cannot be met: the smallest artifact is 60x", {}
    record.status = status
    for key, value in other.items():
        setattr(record, key, value)
    record.save()
    if status != "failed":
        _write_curves(record.directory, codec, draw)
    return record.directory


def _write_curves(directory: Path, codec: str, draw: random.Random) -> None:
    rows: list[dict[str, float]] = []
    if codec == "lighttoken_paper":
        for stage in (1, 2, 3):
            for step in range(0, 1001, 20):
                loss = 0.8**stage * (0.5 + math.exp(-step / 200))
                temperature = 0.0005 ** (step / 1000)
                rows.append({"step": step, f"stage{stage}/saturation": min(0.5, 0.02 / temperature**0.4)})
                rows.append({"step": step, f"stage{stage}/loss": loss, f"stage{stage}/temperature": temperature})
    for step in range(0, 700, 10):
        rows.append({"step": step, "train/loss": 0.3 + math.exp(-step / 300) + draw.gauss(0, 0.03)})
        rows.append({"step": step, "lr-AdamW/pg1": 5e-5 * (1 - step / 700)})
    for step in (230, 460, 690):
        rows.append({"step": step, "val/loss": 0.6 - step / 5000, "val/accuracy": 0.7 + step / 8000})
    names = sorted({name for row in rows for name in row})
    with (directory / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run into `outputs`; see `write_run`."""

    def write(task: str = "mrpc", codec: str = "svd", *arguments: Any, **other: Any) -> Path:
        return write_run(tmp_path / "outputs", task, codec, *arguments, **other)

    return write


def page_of(folder: Path) -> Path:
    """The page of the runs under a folder, without figures and tables."""
    runs = gather([folder])
    return write_page(runs, make_charts(runs), folder)


def read_data(page: Path) -> dict[str, Any]:
    """The data in a page."""
    _, _, rest = page.read_text().partition('<script id="data" type="text/plain">')
    return json.loads(gzip.decompress(base64.b64decode(rest.partition("</script>")[0])))
