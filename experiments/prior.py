"""The effect of row weights on the hidden states of real texts: exponents and floors of the prior, at several ratios.

    python -m experiments.prior experiments/DATED-FOLDER --data DIR [--model minilm_l6] [--tasks cola sst2]
        [--ratios 25 103] [--settings 0.4,1e-7 0.45,2e-6] [--predict related none]

DIR holds a folder per task with its train.parquet; neither labels nor validation rows are read. `--model` is a file of
conf/model or a checkpoint's folder. The score of a task is the cosine between the last hidden states with the
compressed table and with the original one, the mean over the tokens of some texts. The weighted error is that of the
error metric and of the default row weights, over the weighted energy of the centred table. Points in prior.csv are not
computed again.
"""

import argparse
import itertools
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from tqdm import tqdm

from experiments.hidden_states import TEXT_COLUMNS, cosine, hidden_states, read_batches
from experiments.rows import RowFile
from lighttoken import compress_table, measure_importance
from lighttoken.codec.interface import Importance
from lighttoken.codec.lighttoken.method import LightToken
from lighttoken.config.schema import load_backbone

KEY = ("model", "ratio_asked", "exponent", "floor", "predict")
COLUMNS = ("ratio", "bytes", "nmse", "weighted_error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where prior.csv is written")
    parser.add_argument("--data", type=Path, required=True, help="a folder with a folder per task")
    parser.add_argument("--model", default="minilm_l6", help="a file of conf/model, or a checkpoint's folder")
    parser.add_argument("--tasks", nargs="+", default=list(TEXT_COLUMNS), choices=list(TEXT_COLUMNS))
    parser.add_argument("--ratios", nargs="+", type=float, default=[25, 103])
    parser.add_argument("--settings", nargs="+", default=["0.4,1e-7", "0.45,2e-6"], metavar="EXPONENT,FLOOR")
    parser.add_argument("--predict", nargs="+", default=["related"], choices=["related", "none"])
    arguments = parser.parse_args()

    # 1. The hidden states with the original table.
    backbone, codec = load_backbone(arguments.model), LightToken()
    model, tokenizer, table = backbone.encoder().eval(), backbone.tokenizer(), backbone.table()
    batches = {task: read_batches(arguments.data, task, tokenizer) for task in arguments.tasks}
    original = {task: hidden_states(model, batches[task]) for task in batches}

    # 2. One importance for all points: only the weights differ.
    importance = measure_importance(backbone, codec, len(table))
    frequencies = codec.prior.frequencies(backbone.tokenizer(padding=False), len(table))

    # 3. The hidden states with the compressed table of every point.
    results = RowFile(arguments.folder / "prior.csv", (*KEY, *COLUMNS, *TEXT_COLUMNS, "mean"), KEY)
    points = list(itertools.product(arguments.ratios, arguments.settings, arguments.predict))
    for ratio, setting, predict in tqdm(points, unit="point"):
        exponent, floor = map(float, setting.split(","))
        row = dict(zip(KEY, (backbone.label, f"{ratio:g}", f"{exponent:g}", f"{floor:g}", predict), strict=True))
        if tuple(row.values()) in results:
            continue
        prior = replace(codec.prior, exponent=exponent, floor=floor)
        settings = importance.settings | prior.settings()
        weighted = replace(importance, weights=prior.row_weights(frequencies), settings=settings)
        codec = replace(codec, predict=predict)
        compressed = compress_table(table, codec, ratio, importance=weighted, progress=False)
        rows = compressed.decode()
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(rows)
        scores = {task: cosine(hidden_states(model, batches[task]), original[task]) for task in batches}
        values = {
            "ratio": compressed.ratio,
            "bytes": compressed.nbytes,
            "nmse": compressed.summary["nmse"],
            "weighted_error": weighted_error(table, rows, importance),
            **scores,
            "mean": fmean(scores.values()),
        }
        results.add(row | {name: f"{value:.6g}" for name, value in values.items()})


def weighted_error(table: Tensor, rows: Tensor, importance: Importance) -> float:
    weights, metric = importance.weights.unsqueeze(1), importance.error_metric
    assert metric is not None

    def energy(vectors: Tensor) -> float:
        return float((weights * vectors * (vectors @ metric.to(vectors))).sum())

    return energy(rows - table) / energy(table - (weights * table).mean(0))


if __name__ == "__main__":
    main()
