"""What the importance is worth, and what the code is worth: codecs with and without row weights and error metric.

    pip install -e '.[baselines,benchmark,demo]'
    python -m experiments.ablation experiments/DATED-FOLDER --data DIR [--model minilm_l6] [--ratios 25 103]
        [--codecs svd pq lighttoken_paper lighttoken]

Every codec gets the same three importances: `uniform`; `prior`, the row weights of the default codec; `prior + metric`,
its error metric too. DIR holds stsb/validation.parquet for the zero-shot score, and cola, sst2 and stsb with their
train.parquet, whose texts, without labels, give the cosine of hidden states with the compressed table and with the
original one. Rows in ablation.csv are not computed again.

Fine-tuned scores are a sweep of the train command, for TASK cola and sst2:

    python -m lighttoken.train -m +experiment=glue_TASK task.data_dir=DIR/TASK ratio=25,103 seed=0,1,2 \
        codec=svd,pq,lighttoken_paper,lighttoken codec/prior=uniform,wordfreq codec.error_metric=euclidean
    python -m lighttoken.train -m +experiment=glue_TASK task.data_dir=DIR/TASK ratio=25,103 seed=0,1,2 \
        codec=svd,pq,lighttoken_paper,lighttoken codec/prior=wordfreq codec.error_metric=backbone
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from experiments.hidden_states import cosine, hidden_states, read_batches
from experiments.rows import RowFile
from experiments.similarity import spearman
from lighttoken import compress_table, measure_importance
from lighttoken.codec.interface import Importance
from lighttoken.codec.lighttoken.method import LightToken
from lighttoken.config.schema import load_backbone
from lighttoken.errors import LighttokenError

CODECS = ("svd", "pq", "lighttoken_paper", "lighttoken")
TASKS = ("cola", "sst2", "stsb")
KEY = ("model", "codec", "importance", "ratio_asked")
COLUMNS = (*KEY, "ratio", "nmse", "weighted_nmse", "metric_nmse", "stsb_spearman", *TASKS, "cosine", "seconds")


def importances(full: Importance) -> dict[str, Importance]:
    """The three that are compared, by name."""
    return {
        "uniform": Importance(torch.ones_like(full.weights), relations=full.relations),  # predicted as the others
        "prior": replace(full, error_metric=None, settings=full.settings | {"error_metric": "euclidean"}),
        "prior + metric": full,
    }


def errors(table: Tensor, rows: Tensor, full: Importance) -> dict[str, float]:
    """nmse with equal weights, with those of the prior, and under the error metric (of trace d) as well."""
    error, weights, variance = rows - table, full.weights, table.var()
    plain = error.square().mean(1) / variance
    seen = ((error @ full.error_metric.float()) * error).sum(1) / variance / full.error_metric.trace().float()
    means = {"nmse": plain, "weighted_nmse": weights * plain, "metric_nmse": weights * seen}
    return {name: float(values.mean()) for name, values in means.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where ablation.csv is written")
    parser.add_argument("--data", type=Path, required=True, help="folder with GLUE in parquet: stsb/, cola/, sst2/")
    parser.add_argument("--model", default="minilm_l6", help="a file of conf/model, or a checkpoint's folder")
    parser.add_argument("--codecs", nargs="+", default=list(CODECS), choices=list(CODECS), help="only these")
    parser.add_argument("--ratios", nargs="+", type=float, default=[25, 103])
    arguments = parser.parse_args()

    # 1. The three importances, and the hidden states with the original table.
    backbone = load_backbone(arguments.model)
    model, tokenizer, table = backbone.encoder().eval(), backbone.tokenizer(), backbone.table()
    full = measure_importance(backbone, LightToken(), len(table))
    batches = {task: read_batches(arguments.data, task, tokenizer) for task in TASKS}
    original = {task: hidden_states(model, batches[task]) for task in TASKS}

    # 2. The errors and the scores of every point.
    results = RowFile(arguments.folder / "ablation.csv", COLUMNS, KEY)
    points = [
        (codec, name, ratio) for ratio in arguments.ratios for codec in arguments.codecs for name in importances(full)
    ]
    for codec, name, ratio in tqdm(points, unit="point"):
        row = dict(zip(KEY, (arguments.model, codec, name, f"{ratio:g}"), strict=True))
        if tuple(row.values()) in results:
            continue
        start = time.perf_counter()
        try:
            compressed = compress_table(table, codec, ratio, importance=importances(full)[name], progress=False)
        except LighttokenError as error:
            tqdm.write(f"{codec} {ratio:g}x: {error}")
            continue
        seconds, rows = time.perf_counter() - start, compressed.decode()
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(rows)
        scores = {task: cosine(hidden_states(model, batches[task]), original[task]) for task in TASKS}
        values = {"ratio": compressed.ratio, **errors(table, rows, full), **scores}
        values["stsb_spearman"] = spearman(backbone, rows, arguments.data / "stsb/validation.parquet")
        values |= {"cosine": sum(scores.values()) / len(scores), "seconds": seconds}
        results.add(row | {key: f"{value:.5g}" for key, value in values.items()})


if __name__ == "__main__":
    main()
