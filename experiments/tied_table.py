"""Perplexity of a decoder whose table is compressed by every codec, to the bytes of 2 to 8 bits a number.

    python -m experiments.tied_table experiments/DATED-FOLDER --model DIR --file wiki.test.raw [--tokens 10000]

The table of a tied decoder is read twice: as the input embedding and as the head's. `--tie untie` compresses the input
embedding alone. Windows of 512 tokens, as `task=perplexity` has them. `lighttoken` is asked for ratios, the others have
the bytes of their format. Artifacts go to --artifacts and are reused. Writes tied_table.csv; the same command goes on
where it stopped.
"""

import argparse
import re
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L

from experiments.rows import RowFile
from lighttoken import swap_embedding
from lighttoken.artifact.parts import Parts
from lighttoken.artifact.table import CompressedTable, load_table
from lighttoken.backbone.source import Backbone
from lighttoken.codec import compress_table
from lighttoken.codec.baselines.gguf import GGUF
from lighttoken.codec.baselines.scalar import Scalar
from lighttoken.codec.interface import Codec, Importance
from lighttoken.codec.lighttoken.method import LightToken
from lighttoken.codec.prior import WordFrequency
from lighttoken.run.artifacts import code_hash
from lighttoken.run.importance import measure_importance
from lighttoken.run.libraries import quiet_libraries
from lighttoken.tasks.perplexity import Perplexity, PerplexityData

RATIOS = (8.0, 32 / 3, 16.0)  # 4, 3 and 2 bits a number
FORMATS = ("Q4_K", "Q3_K", "Q2_K", "Q4_0", "Q5_K", "Q6_K", "Q8_0")
GROUPS = ((4, 128), (3, 128), (2, 128), (4, 32), (3, 32), (2, 32))  # bits of a number, numbers of a group
COLUMNS = (
    *("codec", "setting", "tie", "tokens", "bits_per_number", "bytes", "nmse", "weighted_nmse"),
    *("perplexity", "ratio_to_original", "seconds"),
)


class Study:
    """A decoder, its table and what is measured of them once."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments, self.tie = arguments, arguments.tie
        self.backbone = Backbone(name="model", path=arguments.model)
        self.table = self.backbone.table()
        self.data = PerplexityData(
            self.backbone.tokenizer(padding=False),
            "perplexity",
            {"perplexity": Perplexity()},
            file=arguments.file,
            max_tokens=arguments.tokens,
            eval_batch_size=1,
        )
        self.data.setup()

    @cached_property
    def folder(self) -> Path:
        """Of the artifacts of one model, importance and code."""
        code = code_hash("lighttoken.codec.lighttoken.method")[:8]
        settings = [self.backbone.label, self.tie, *self.arguments.languages, str(self.arguments.sequences), code]
        return self.arguments.artifacts / "-".join(settings)

    @cached_property
    def importance(self) -> Importance:
        prior = WordFrequency(languages=self.arguments.languages or None)
        codec = LightToken(error_metric_sequences=self.arguments.sequences, prior=prior)
        parts = Parts(self.folder / "importance")
        return measure_importance(self.backbone, codec, len(self.table), parts=parts, tie=self.tie)

    def compressed(self, name: str, codec: Codec, ratio: float) -> CompressedTable:
        folder = self.folder / name
        if not folder.exists():
            compress_table(self.table, codec, ratio, importance=self.importance, progress=False).save(folder)
        return load_table(folder, self.backbone.tokenizer(padding=False))

    def perplexity(self, compressed: CompressedTable | None) -> float:
        model = self.data.make_model(self.backbone)
        if compressed is not None:
            swap_embedding(model, compressed, tie=self.tie)
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = L.Trainer(accelerator="cpu", **quiet)
        (scores,) = trainer.validate(self.data.scorer(model, model), self.data, verbose=False)
        return scores["val/perplexity"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where tied_table.csv is written")
    parser.add_argument("--model", required=True, help="folder of a decoder")
    parser.add_argument("--file", required=True, help="text")
    parser.add_argument("--tokens", type=int, default=10_000, help="of the text, the first ones")
    parser.add_argument("--tie", default="compressed", choices=("compressed", "untie"))
    parser.add_argument(
        "--languages", nargs="+", default=[], help="of the row weights; by default, all that the tokenizer serves"
    )
    parser.add_argument("--ratios", type=float, nargs="*", default=RATIOS)
    parser.add_argument("--formats", nargs="*", default=FORMATS, help="of GGUF")
    parser.add_argument("--groups", nargs="*", type=lambda text: tuple(map(int, text.split("/"))), default=GROUPS)
    parser.add_argument("--sequences", type=int, default=1024, help="texts that the importance is measured on")
    parser.add_argument("--artifacts", type=Path, default=Path("outputs/tied_table"))
    arguments = parser.parse_args()
    quiet_libraries(progress=False)
    study = Study(arguments)
    results = RowFile(arguments.folder / "tied_table.csv", COLUMNS, ("codec", "setting", "tie", "tokens"))
    for codec, setting, method, ratio in points(arguments):
        key = (codec, setting, arguments.tie, arguments.tokens)
        if key in results:
            continue
        start = time.perf_counter()
        compressed = method and study.compressed(re.sub(r"\W+", "-", f"{codec} {setting}"), method, ratio)
        seconds, perplexity = time.perf_counter() - start, study.perplexity(compressed)
        row = dict(zip(results.key, key, strict=True)) | {"perplexity": f"{perplexity:.3f}"}
        if compressed is not None:
            row |= {"bits_per_number": f"{32 / compressed.ratio:.3f}", "bytes": compressed.nbytes}
            row |= {name: compressed.summary[name] for name in ("nmse", "weighted_nmse")}
            (original,) = (
                r for r in results.rows if (r["codec"], r["tie"], r["tokens"]) == ("none", key[2], str(key[3]))
            )
            row |= {"ratio_to_original": f"{perplexity / float(original['perplexity']):.4f}", "seconds": round(seconds)}
        results.add(row)
        print(results.rows[-1], flush=True)


def points(arguments: argparse.Namespace) -> Iterator[tuple[str, str, Codec | None, float]]:
    """Codec, its setting, the codec itself and its ratio; the formats' own bytes are above 1.5x."""
    yield "none", "", None, 1.0
    for ratio in arguments.ratios:
        yield "lighttoken", " ".join([f"{ratio:.4g}x", *arguments.languages]), LightToken(), ratio
    for kind in arguments.formats:
        yield "gguf", kind, GGUF(format=kind), 1.5
    for bits, size in arguments.groups:
        yield "scalar", f"int{bits} by {size}", Scalar(bits=bits, group_size=size), 1.5


if __name__ == "__main__":
    main()
