"""Codecs: methods that turn a table into a compressed table."""

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from lighttoken.artifact.table import CompressedTable, hash_table
from lighttoken.codec.inputs import _checked_metric, _checked_table, _checked_weights, _plain_arithmetic
from lighttoken.errors import LighttokenError

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

CODECS = {  # by name, as in conf/codec
    "lighttoken": "lighttoken.codec.lighttoken.method.LightToken",
    "lighttoken_paper": "lighttoken.codec.paper.method.LightTokenPaper",
    "compositional_codes": "lighttoken.codec.baselines.compositional_codes.CompositionalCodes",
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


@dataclass(frozen=True)
class Uncompressed:
    """`codec=none`: the original table, the reference that every codec is compared with."""

    name: str = "none"


class Codec(Protocol):
    """What a codec has: a name, its settings as plain JSON values, and the method itself."""

    @property
    def name(self) -> str: ...

    @property
    def prior(self) -> str: ...

    def frequencies(self, tokenizer: Any, rows: int) -> Tensor: ...

    def row_weights(self, frequencies: Tensor) -> Tensor: ...

    def settings(self) -> dict[str, Any]: ...

    def importance_settings(self) -> dict[str, Any]: ...

    def compress(
        self,
        table: Tensor,
        weights: Tensor,
        metric: Tensor | None,
        ratio: float,
        empty: CompressedTable,
        progress: bool,
        loggers: "Sequence[Logger]",
    ) -> CompressedTable: ...


@_plain_arithmetic()
def compress_table(
    table: Tensor,
    codec: "str | Codec" = "lighttoken",
    ratio: float = 25.0,
    weights: Tensor | None = None,
    metric: Tensor | None = None,
    importance: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: bool = True,
    loggers: "Sequence[Logger]" = (),
) -> CompressedTable:
    """Compress a table (V, d) so that V * d * 4 bytes over the bytes of the artifact's files is at least `ratio`.

    `codec` is a name out of `CODECS`, with that codec's default settings, or a codec; `weights` (V,) says how much each
    row matters (any positive numbers; None: all the same), `metric` (d, d), symmetric, how much each direction of
    an error e does, e @ metric @ e (None: Euclidean; `lighttoken` alone uses it). `importance` is kept in the artifact
    and says how the two were made. A table alone tells nothing of either: a codec's own `prior` and `metric` need the
    backbone, and `python -m lighttoken.compress` or `lighttoken.measure_importance` to be followed. The same arguments
    on the same machine give the same bytes. The caller's random state is left as it was. Lightning `loggers` receive
    the codec's curves.

    Raises LighttokenError for an unknown codec, a table that is not a finite matrix, a ratio that is not above 1 or
    cannot be met, and weights that do not fit the table.
    """
    if isinstance(codec, str) and codec in CODECS:
        codec = _default_codec(codec)
    if isinstance(codec, str) or not hasattr(codec, "compress"):
        raise LighttokenError(f"unknown codec {codec!r}; choose one of {', '.join(CODECS)}")
    table = _checked_table(table)
    weights = _checked_weights(weights, len(table))
    metric = _checked_metric(metric, table.shape[1])
    if not (isinstance(ratio, Real) and math.isfinite(ratio) and ratio > 1):
        raise LighttokenError(f"ratio {ratio!r} does not compress: it must be a number above 1, for example ratio=25")
    told = {"prior": "given" if bool((weights != 1).any()) else "uniform"}
    told |= {"metric": "euclidean" if metric is None else "given"}
    empty = CompressedTable(
        codec=codec.name,
        shape=(table.shape[0], table.shape[1]),
        tensors={},
        source_sha256=hash_table(table),
        settings=codec.settings() | {"ratio": float(ratio), "seed": int(seed), "importance": dict(importance or told)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        compressed = codec.compress(table, weights, metric, float(ratio), empty, progress, loggers)
    if not math.isfinite(compressed.summary["nmse"]):
        cure = "choose int8 or float32 for coefficient_precision and matrix_precision"
        if not hasattr(codec, "matrix_precision"):
            cure = "scale the table down"
        raise LighttokenError(
            f"the table's values, up to {float(table.abs().max()):g}, overflow what {codec.name} stores them in; {cure}"
        )
    assert compressed.ratio >= ratio, f"{codec.name} was asked for {ratio}x and wrote {compressed.ratio}x"
    return compressed


def _default_codec(name: str) -> Codec:
    module, _, attribute = CODECS[name].rpartition(".")  # imported only now: some bring in Lightning
    return getattr(importlib.import_module(module), attribute)()
