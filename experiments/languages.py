"""What the languages of the prior are worth: zero-shot STS-B and hidden states of a multilingual encoder, by language.

    python -m experiments.languages experiments/DATED-FOLDER --model DIR --stsb en=FILE de=FILE [--texts DIR]
        [--ratios 103 25] [--priors en auto] [--pairs 400] [--state-bits 12]

FILE is a parquet file with sentence1, sentence2 and label; `--texts` is a folder with one text a line in LANG.txt. The
score on STS-B is the Spearman correlation of the cosine of mean-pooled vectors with the label. The score on a text is
the cosine of its tokens' last hidden states with those of the original table. Rows in languages.csv are not made again.
"""

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef
from tqdm import tqdm

from experiments.rows import RowFile
from lighttoken import compress_table, measure_importance
from lighttoken.codec.interface import Importance
from lighttoken.codec.lighttoken.method import LightToken
from lighttoken.codec.prior import WordFrequency
from lighttoken.config.schema import load_backbone
from lighttoken.tasks.data import position

KEY = ("model", "prior", "ratio_asked", "state_bits")
BATCH = 32  # texts
LINES = 26  # of a file of texts


class Encoder:
    """A model whose table is replaced, and its tokenizer."""

    def __init__(self, backbone: Any, prefix: str):
        self.model, self.tokenizer, self.prefix = backbone.encoder().eval(), backbone.tokenizer(), prefix

    @torch.no_grad()
    def states(self, texts: list[str]) -> list[Tensor]:
        """The last hidden states (tokens, d) of every text."""
        found: list[Tensor] = [torch.empty(0)] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for some in (order[i : i + BATCH] for i in range(0, len(order), BATCH)):
            batch = self.tokenizer(
                [self.prefix + texts[i] for i in some],
                padding=True,
                truncation=True,
                max_length=128,
                return_tensors="pt",
            )
            hidden = self.model(**batch).last_hidden_state
            for i, rows, mask in zip(some, hidden, batch["attention_mask"].bool(), strict=True):
                found[i] = rows[mask]
        return found


def spearman(encoder: Encoder, file: str, pairs: int) -> float:
    """Zero-shot score on the first pairs of a file in an order of hashes of their positions."""
    frame = pd.read_parquet(file)
    frame = frame.iloc[sorted(range(len(frame)), key=lambda i: position(str(i)))[:pairs]]
    first, second = (
        torch.stack([states.mean(0) for states in encoder.states(list(frame[name]))])
        for name in ("sentence1", "sentence2")
    )
    return float(spearman_corrcoef(torch.cosine_similarity(first, second), torch.tensor(frame.label.to_numpy())))


def texts_of(folder: Path | None) -> dict[str, list[str]]:
    files = sorted(folder.glob("*.txt")) if folder else []
    return {file.stem: sorted(sorted(file.read_text().splitlines(), key=position)[:LINES], key=len) for file in files}


def measure(encoder: Encoder, arguments: argparse.Namespace, original: dict[str, Tensor]) -> dict[str, str]:
    """The scores of a row; the first call, with the original table, fills `original`."""
    scores = {f"stsb_{name}": spearman(encoder, file, arguments.pairs) for name, file in arguments.stsb.items()}
    scores["stsb_mean"] = fmean(scores.values())
    for name, lines in texts_of(arguments.texts).items():
        states = torch.cat(encoder.states(lines))
        scores[f"cosine_{name}"] = float(torch.cosine_similarity(states, original.setdefault(name, states)).mean())
    return {name: f"{value:.5g}" for name, value in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where languages.csv is written")
    parser.add_argument("--model", required=True, help="a file of conf/model, or a checkpoint's folder")
    parser.add_argument("--stsb", nargs="+", required=True, metavar="LANG=FILE")
    parser.add_argument("--texts", type=Path, help="a folder with LANG.txt files")
    parser.add_argument("--ratios", nargs="+", type=float, default=[103, 25])
    parser.add_argument("--priors", nargs="+", default=["en", "auto"], help="auto, or codes of languages: en,de")
    parser.add_argument("--pairs", type=int, default=1500, help="of every language's STS-B")
    parser.add_argument("--prefix", default="query: ", help="of every text")
    parser.add_argument("--state-bits", type=int, default=12, help="codec.state_bits; 8 takes a 16th of the time")
    arguments = parser.parse_args()
    arguments.stsb = dict(entry.split("=", 1) for entry in arguments.stsb)

    backbone = load_backbone(arguments.model)
    table, encoder, name = backbone.table(), Encoder(backbone, arguments.prefix), backbone.label
    columns = [*KEY, "ratio", "nmse", *(f"stsb_{code}" for code in arguments.stsb), "stsb_mean"]
    columns += [f"cosine_{code}" for code in texts_of(arguments.texts)]
    results = RowFile(arguments.folder / "languages.csv", columns, KEY)
    original: dict[str, Tensor] = {}
    if arguments.texts or (name, "original", "1", "") not in results:
        row = measure(encoder, arguments, original)
        if (name, "original", "1", "") not in results:
            results.add(dict(zip(KEY, (name, "original", "1", ""), strict=True)) | row)
    importances: dict[str, Importance] = {}
    for ratio, languages in tqdm([(ratio, codes) for ratio in arguments.ratios for codes in arguments.priors]):
        key = (name, languages, f"{ratio:g}", str(arguments.state_bits))
        if key in results:
            continue
        prior = WordFrequency(languages=None if languages == "auto" else languages.split(","))
        codec = LightToken(prior=prior, state_bits=arguments.state_bits)
        importances[languages] = importances.get(languages) or measure_importance(backbone, codec, len(table))
        compressed = compress_table(table, codec, ratio, importance=importances[languages], progress=False)
        with torch.no_grad():
            encoder.model.get_input_embeddings().weight.copy_(compressed.decode())
        made = {"ratio": f"{compressed.ratio:.2f}", "nmse": f"{compressed.summary['nmse']:.4g}"}
        results.add(dict(zip(KEY, key, strict=True)) | made | measure(encoder, arguments, original))


if __name__ == "__main__":
    main()
