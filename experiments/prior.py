"""The effect of row weights on the hidden states of real texts: exponents and floors of the prior, at several ratios.

    python -m experiments.prior experiments/DATED-FOLDER --data DIR [--model minilm_l6] [--tasks cola sst2]
        [--ratios 25 103] [--settings 0.4,1e-7 0.45,2e-6]

DIR holds a folder per task with its train.parquet; neither labels nor validation rows are read. `--model` is a file of
conf/model or a checkpoint's folder. The score of a task is the cosine between the last hidden states with the
compressed table and with the original one, the mean over the tokens of some texts. Points in prior.csv are not computed
again.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from tqdm import tqdm

from experiments.hidden_states import TEXT_COLUMNS, cosine, hidden_states, read_batches
from experiments.rows import RowFile
from lighttoken import compress_table, measure_importance
from lighttoken.codec.lighttoken.method import LightToken
from lighttoken.config.schema import load_backbone

KEY = ("model", "ratio_asked", "exponent", "floor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where prior.csv is written")
    parser.add_argument("--data", type=Path, required=True, help="a folder with a folder per task")
    parser.add_argument("--model", default="minilm_l6", help="a file of conf/model, or a checkpoint's folder")
    parser.add_argument("--tasks", nargs="+", default=list(TEXT_COLUMNS), choices=list(TEXT_COLUMNS))
    parser.add_argument("--ratios", nargs="+", type=float, default=[25, 103])
    parser.add_argument("--settings", nargs="+", default=["0.4,1e-7", "0.45,2e-6"], metavar="EXPONENT,FLOOR")
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
    results = RowFile(arguments.folder / "prior.csv", (*KEY, "ratio", "nmse", *TEXT_COLUMNS, "mean"), KEY)
    points = [(ratio, *map(float, text.split(","))) for ratio in arguments.ratios for text in arguments.settings]
    for ratio, exponent, floor in tqdm(points, unit="point"):
        row = dict(zip(KEY, (arguments.model, f"{ratio:g}", f"{exponent:g}", f"{floor:g}"), strict=True))
        if tuple(row.values()) in results:
            continue
        prior = replace(codec.prior, exponent=exponent, floor=floor)
        settings = importance.settings | prior.settings()
        weighted = replace(importance, weights=prior.row_weights(frequencies), settings=settings)
        compressed = compress_table(table, codec, ratio, importance=weighted, progress=False)
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(compressed.decode())
        scores = {task: cosine(hidden_states(model, batches[task]), original[task]) for task in batches}
        values = {
            "ratio": compressed.ratio,
            "nmse": compressed.summary["nmse"],
            **scores,
            "mean": fmean(scores.values()),
        }
        results.add(row | {name: f"{value:.5g}" for name, value in values.items()})


if __name__ == "__main__":
    main()
