"""What the languages of the prior are worth: zero-shot STS-B of a multilingual encoder, by language.

    python -m experiments.languages experiments/DATED-FOLDER --model DIR --stsb en=FILE de=FILE
        [--ratios 103 25] [--priors en auto] [--pairs 400] [--state-bits 12]

FILE has sentence1, sentence2 and label. The score is that of `task=sts`. Rows in languages.csv are not made again.
"""

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm import tqdm

from experiments.rows import RowFile
from experiments.similarity import spearman
from lighttoken import compress_table, measure_importance
from lighttoken.codec.interface import Importance
from lighttoken.codec.lighttoken.method import LightToken
from lighttoken.codec.prior import WordFrequency
from lighttoken.config.schema import load_backbone

KEY = ("model", "prior", "ratio_asked", "state_bits", "pairs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where languages.csv is written")
    parser.add_argument("--model", required=True, help="a file of conf/model, or a checkpoint's folder")
    parser.add_argument("--stsb", nargs="+", required=True, metavar="LANG=FILE")
    parser.add_argument("--ratios", nargs="+", type=float, default=[103, 25])
    parser.add_argument("--priors", nargs="+", default=["en", "auto"], help="auto, or codes of languages: en,de")
    parser.add_argument("--pairs", type=int, default=1500, help="of every language's STS-B, drawn by a hash")
    parser.add_argument("--prefix", default="query: ", help="of every text")
    parser.add_argument("--state-bits", type=int, default=12, help="codec.state_bits; 8 takes a 16th of the time")
    arguments = parser.parse_args()

    backbone, bits = load_backbone(arguments.model), arguments.state_bits
    table, files = backbone.table(), dict(entry.split("=", 1) for entry in arguments.stsb)
    columns = [*KEY, "ratio", "nmse", *(f"stsb_{code}" for code in files), "stsb_mean"]
    results = RowFile(arguments.folder / "languages.csv", columns, KEY)

    def add(key: tuple[str, ...], rows: torch.Tensor, **made: Any) -> None:
        settings = {"prefix": arguments.prefix, "limit_rows": arguments.pairs}
        scores = {f"stsb_{code}": spearman(backbone, rows, file, **settings) for code, file in files.items()}
        scores["stsb_mean"] = fmean(scores.values())
        results.add(dict(zip(KEY, key, strict=True)) | made | {name: f"{value:.5g}" for name, value in scores.items()})

    original = (backbone.label, "original", "1", "", str(arguments.pairs))
    if original not in results:
        add(original, table)
    importances: dict[str, Importance] = {}
    for ratio, languages in tqdm([(ratio, codes) for ratio in arguments.ratios for codes in arguments.priors]):
        key = (backbone.label, languages, f"{ratio:g}", str(bits), str(arguments.pairs))
        if key in results:
            continue
        prior = WordFrequency(languages=None if languages == "auto" else languages.split(","))
        codec = LightToken(prior=prior, state_bits=bits)
        importances[languages] = importances.get(languages) or measure_importance(backbone, codec, len(table))
        compressed = compress_table(table, codec, ratio, importance=importances[languages], progress=False)
        made = {"ratio": f"{compressed.ratio:.2f}", "nmse": f"{compressed.summary['nmse']:.4g}"}
        add(key, compressed.decode(), **made)


if __name__ == "__main__":
    main()
