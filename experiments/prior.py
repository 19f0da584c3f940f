"""What the weights of rows do to the hidden states of real texts: exponents and floors of the prior, at several ratios.

    python -m experiments.prior experiments/DATED-FOLDER --data DIR [--model minilm_l6] [--tasks cola sst2]
        [--ratios 25 103] [--settings 0.4,1e-7 0.45,2e-6]

DIR holds a folder per task with its train.parquet; no label and no validation row is read. `--model` is a file of
conf/model or a checkpoint's folder. Of each task, the cosine of the last hidden states with the compressed table to
those with the original one, mean over the tokens of some texts. What prior.csv has is not computed again.
"""

import argparse
import csv
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from datasets import load_dataset
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from experiments.rate_distortion import load_backbone
from lighttoken import compress_table, measure_importance
from lighttoken.codec.lighttoken.method import LightToken
from lighttoken.tasks.data import position

COLUMNS = {"cola": "sentence", "sst2": "sentence", "stsb": "sentence1", "rte": "sentence1", "squad": "context"}
CHARACTERS = 25_000  # of the texts of a task
BATCH = 32
Batches = list[dict[str, Tensor]]
Hidden = list[Tensor]  # of each batch, the states of its tokens (n, width), padding left out


def read_texts(path: Path, column: str) -> list[str]:
    """Texts of a file, those first in an order of hashes, up to so many characters; by length."""
    kept, room = [], CHARACTERS
    for text in sorted(set(load_dataset("parquet", data_files=str(path), split="train")[column]), key=position):
        if room < 0:
            break
        kept.append(text)
        room -= len(text)
    return sorted(kept, key=len)


@torch.no_grad()
def hidden_states(model: PreTrainedModel, batches: Batches) -> Hidden:
    return [model(**each).last_hidden_state[each["attention_mask"].bool()] for each in batches]


def cosine(first: Hidden, second: Hidden) -> float:
    pairs = zip(first, second, strict=True)
    return float(torch.cat([torch.cosine_similarity(one, other) for one, other in pairs]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where prior.csv is written")
    parser.add_argument("--data", type=Path, required=True, help="a folder with a folder per task")
    parser.add_argument("--model", default="minilm_l6", help="a file of conf/model, or a checkpoint's folder")
    parser.add_argument("--tasks", nargs="+", default=list(COLUMNS), choices=list(COLUMNS))
    parser.add_argument("--ratios", nargs="+", type=float, default=[25, 103])
    parser.add_argument("--settings", nargs="+", default=["0.4,1e-7", "0.45,2e-6"], metavar="EXPONENT,FLOOR")
    arguments = parser.parse_args()
    backbone, codec = load_backbone(arguments.model), LightToken()
    model, tokenizer, table = backbone.encoder().eval(), backbone.tokenizer(), backbone.table()
    texts = {task: read_texts(arguments.data / task / "train.parquet", COLUMNS[task]) for task in arguments.tasks}
    told = {"padding": True, "truncation": True, "max_length": 128, "return_tensors": "pt"}
    batches = {
        task: [tokenizer(each[i : i + BATCH], **told) for i in range(0, len(each), BATCH)]
        for task, each in texts.items()
    }
    original = {task: hidden_states(model, each) for task, each in batches.items()}
    frequencies = codec.frequencies(backbone.tokenizer(padding=False), len(table))
    _, metric = measure_importance(backbone, codec, len(table))

    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = arguments.folder / "prior.csv"
    names = ("model", "ratio_asked", "exponent", "floor")
    columns = [*names, "ratio", "nmse", *COLUMNS, "mean"]
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    if results.exists():
        with results.open(newline="") as file:
            rows = {tuple(row[name] for name in names): row for row in csv.DictReader(file)}
    points = [(ratio, *map(float, each.split(","))) for ratio in arguments.ratios for each in arguments.settings]
    for ratio, exponent, floor in tqdm(points, unit="point"):
        row = dict(zip(names, (arguments.model, f"{ratio:g}", f"{exponent:g}", f"{floor:g}"), strict=True))
        if tuple(row.values()) in rows:
            continue
        weights = replace(codec, prior_exponent=exponent, prior_floor=floor).row_weights(frequencies)
        compressed = compress_table(table, codec, ratio, weights, metric, progress=False)
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(compressed.decode())
        found = {task: cosine(hidden_states(model, each), original[task]) for task, each in batches.items()}
        measured = {"ratio": compressed.ratio, "nmse": compressed.summary["nmse"]} | found
        measured |= {"mean": fmean(found.values())}
        rows[tuple(row.values())] = row | {name: f"{value:.5g}" for name, value in measured.items()}
        with results.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows.values())


if __name__ == "__main__":
    main()
