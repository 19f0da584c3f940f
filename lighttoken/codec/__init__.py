"""Codecs: methods that turn a table into a compressed table."""

import importlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lighttoken.artifact.layout import MAX_VALUE
from lighttoken.artifact.parts import NOT_KEPT, Parts
from lighttoken.artifact.table import CompressedTable, hash_table
from lighttoken.codec.inputs import check_importance, check_ratio, check_seed, check_table, plain_arithmetic
from lighttoken.codec.interface import Budget, Codec, Importance, Reporter
from lighttoken.codec.loss import table_errors
from lighttoken.codec.units import Units, find_units
from lighttoken.errors import LighttokenError

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

CODECS = {  # by name, as in conf/codec
    "lighttoken": "lighttoken.codec.lighttoken.method.LightToken",
    "lighttoken_paper": "lighttoken.codec.paper.method.LightTokenPaper",
    "compositional_codes": "lighttoken.codec.baselines.compositional_codes.CompositionalCodes",
    "gguf": "lighttoken.codec.baselines.gguf.GGUF",
    "hashing_trick": "lighttoken.codec.baselines.hashing_trick.HashingTrick",
    "lsq": "lighttoken.codec.baselines.lsq.LSQ",
    "near_lossless_binary": "lighttoken.codec.baselines.near_lossless_binary.NearLosslessBinary",
    "opq": "lighttoken.codec.baselines.opq.OPQ",
    "orientation_ae": "lighttoken.codec.baselines.orientation_ae.OrientationAE",
    "pq": "lighttoken.codec.baselines.pq.PQ",
    "rq": "lighttoken.codec.baselines.rq.RQ",
    "scalar": "lighttoken.codec.baselines.scalar.Scalar",
    "svd": "lighttoken.codec.baselines.svd.SVD",
    "tensor_train": "lighttoken.codec.baselines.tensor_train.TensorTrain",
    "vocabulary_pruning": "lighttoken.codec.baselines.vocabulary_pruning.VocabularyPruning",
}
# Bytes that the summary and the header of the tensors take at most, besides the rest of the JSON, which is measured.
SUMMARY_BYTES = 1300
# Above this ratio a table that is compressed without an importance is far worse: on MiniLM-L6 at 103x, zero-shot STS-B
# is 0.748 instead of 0.863.
MOST_UNWEIGHTED = 30


@dataclass(frozen=True)
class Uncompressed:
    """`codec=none`: the original table, the reference that every codec is compared with."""

    name: str = "none"


@dataclass(frozen=True)
class Stored:
    """`codec=stored`: the table of a checkpoint whose table is compressed already, as it is."""

    name: str = "stored"


Choice = Codec | Uncompressed | Stored  # what `codec=` may name
NO_CODEC = (Uncompressed.name, Stored.name)  # those that compress nothing


@plain_arithmetic()
def compress_table(
    table: Tensor | nn.Module,
    codec: str | Codec = "lighttoken",
    ratio: float = 25.0,
    weights: Tensor | None = None,
    importance: Importance | None = None,
    seed: int = 0,
    progress: bool = True,
    loggers: "Sequence[Logger]" = (),
    parts: Parts = NOT_KEPT,
) -> CompressedTable:
    """Compress a table (V, d) so that V * d * 4 bytes over the bytes of the artifact's files is at least `ratio`.

    `table` may also be an embedding, or a transformers model, whose input embedding is meant; neither is changed.
    `codec` is a name in `CODECS`, for that codec's default settings, or a codec. `weights` (V,) says how much each row
    matters: positive numbers; None: all rows the same. `importance` holds weights and an error metric: a table alone
    says nothing of word frequencies or of the model, so `lighttoken.measure_importance` makes it from the backbone, as
    `python -m lighttoken.compress` does. The same arguments on the same machine, with as many threads of torch, give
    the same bytes. The random state of the caller does not change. Lightning `loggers` receive the codec's curves.
    With `parts` the default codec goes on where the same call was interrupted. Warns above 30x if a codec that reads
    the importance gets none.

    Raises LighttokenError for an unknown codec, a table that is not a finite matrix, a ratio that is not above 1 or
    cannot be met, and weights that do not fit the table.
    """
    # 1. Check the inputs.
    codec, table, ratio = find_codec(codec), check_table(table), check_ratio(ratio)
    check_seed(seed)
    if weights is None and importance is None:
        _warn_unweighted(codec, ratio)
    importance = check_importance(weights, importance, table)

    # 2. Measure the description, which the codec cannot spend; the rest of the bytes is its budget.
    empty, units, budget = _prepare(table, codec, ratio, importance.settings, seed)

    # 3. Run the codec, on numbers that its arithmetic and its tensors can hold.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tensors, summary = codec.fit(units.normalise(table), importance, budget, Reporter(progress, loggers, parts))
    tensors = units.restore(tensors, codec.form, table.shape[1])

    # 4. Measure the errors and the bytes of the result.
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    compressed = replace(empty, tensors=tensors, relations=importance.relations if "relations" in tensors else None)
    errors = table_errors(table, compressed.decode(), importance.weights)
    if not math.isfinite(errors["nmse"]) or float(table.abs().max()) > MAX_VALUE:
        cure = "scale the table down"
        if hasattr(codec, "matrix_precision"):
            cure += ", or choose int8 or float32 for coefficient_precision and matrix_precision"
        raise LighttokenError(
            f"the table's values, up to {float(table.abs().max()):g}, overflow what {codec.name} stores them in; {cure}"
        )
    compressed = replace(compressed, summary=summary | errors)
    compressed.check()  # nothing is returned that could not be read again
    if compressed.ratio < ratio:
        raise RuntimeError(
            f"{codec.name} had a budget of {ratio}x and wrote {compressed.ratio:.2f}x; use budget.largest"
        )
    return compressed


def _warn_unweighted(codec: Codec, ratio: float) -> None:
    """Warn where a codec that reads the importance gets none and loses much by it."""
    if ratio > MOST_UNWEIGHTED and codec.importance_settings() != Codec().importance_settings():
        warnings.warn(
            f"at ratio {ratio:g} without an importance the model loses much more than it has to; use "
            "lighttoken.compress_model(model, tokenizer, ratio), or pass importance=lighttoken.measure_importance(...)",
            stacklevel=4,  # the caller's line; one frame is compress_table's, one its decorator's
        )


def check_reach(table: Tensor, codec: str | Codec, ratio: float) -> None:
    """Raise LighttokenError if it shows without the importance, which takes a minute, that a ratio cannot be met."""
    codec, table, ratio = find_codec(codec), check_table(table), check_ratio(ratio)
    _, units, budget = _prepare(table, codec, ratio, codec.importance_settings(), 0)
    codec.check_reach(units.normalise(table), budget)


def _prepare(
    table: Tensor, codec: Codec, ratio: float, importance: dict[str, Any], seed: int
) -> tuple[CompressedTable, Units, Budget]:
    """The compressed table without its tensors, the units that the codec works in, and its budget."""
    empty = CompressedTable(
        codec=codec.name,
        form=codec.form,
        shape=(table.shape[0], table.shape[1]),
        tensors={},
        source_sha256=hash_table(table),
        settings=codec.settings() | {"ratio": ratio, "seed": int(seed), "importance": importance},
    )
    units = find_units(table)
    described = empty.nbytes + SUMMARY_BYTES + units.bias_bytes(table.shape[1])
    return empty, units, Budget(codec.name, empty.shape, ratio, description_bytes=described)


def find_codec(codec: Any) -> Codec:
    """The codec of a name, with its default settings; a codec as it is. Raises LighttokenError for anything else."""
    if isinstance(codec, str) and codec in CODECS:
        module, _, attribute = CODECS[codec].rpartition(".")  # imported only now: some load Lightning
        return getattr(importlib.import_module(module), attribute)()
    if not isinstance(codec, Codec):
        raise LighttokenError(f"unknown codec {codec!r}; choose one of {', '.join(CODECS)}")
    return codec
