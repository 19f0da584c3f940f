"""Codecs: methods that turn a table into a compressed table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from lighttoken.artifact import CompressedTable, hash_table
from lighttoken.errors import LighttokenError

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

CODECS: dict[str, dict[str, Any]] = {  # what each name changes of LightToken's defaults, as conf/codec/NAME.yaml does
    "lighttoken": {},
    "lighttoken_paper": {},
    "svd": {"name": "svd", "stage_bits": 0, "coefficient_precision": "float16", "matrix_precision": "float16"},
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
    if isinstance(codec, str):
        if codec not in CODECS:
            raise LighttokenError(f"unknown codec {codec!r}; choose one of {', '.join(CODECS)}")
        codec = _default_codec(codec)
    table = _checked_table(table)
    weights = _checked_weights(weights, len(table))
    metric = _checked_metric(metric, table.shape[1])
    if not (math.isfinite(ratio) and ratio > 1):
        raise LighttokenError(f"ratio {ratio:g} does not compress: it must be above 1, for example ratio=25")
    told = {"prior": "given" if bool((weights != 1).any()) else "uniform"}
    told |= {"metric": "euclidean" if metric is None else "given"}
    empty = CompressedTable(
        codec=codec.name,
        shape=(table.shape[0], table.shape[1]),
        tensors={},
        source_sha256=hash_table(table),
        settings=codec.settings() | {"ratio": float(ratio), "seed": seed, "importance": dict(importance or told)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        compressed = codec.compress(table, weights, metric, float(ratio), empty, progress, loggers)
    if not math.isfinite(compressed.summary["nmse"]):
        raise LighttokenError(
            f"the table's values, up to {float(table.abs().max()):g}, overflow what {codec.name} stores "
            "them in; choose int8 or float32 for coefficient_precision and matrix_precision"
        )
    assert compressed.ratio >= ratio, f"{codec.name} was asked for {ratio}x and wrote {compressed.ratio}x"
    return compressed


def _default_codec(name: str) -> Codec:
    if name == "lighttoken":
        from lighttoken.codec.lighttoken import LightToken

        return LightToken(**CODECS[name])
    from lighttoken.codec.paper import LightTokenPaper  # brings in Lightning

    return LightTokenPaper(**CODECS[name])


def _checked_table(table: Tensor) -> Tensor:
    if table.ndim != 2 or 0 in table.shape or not table.is_floating_point():
        raise LighttokenError(
            f"a table is a float matrix (V, d), got {table.dtype} of shape {tuple(table.shape)}; "
            "pass model.get_input_embeddings().weight"
        )
    table = table.detach().float().cpu()
    bad_rows = (~table.isfinite()).any(1).nonzero().flatten()
    if len(bad_rows):
        raise LighttokenError(
            f"the table has NaN or infinite values in {len(bad_rows)} of {len(table)} rows, the first in row "
            f"{int(bad_rows[0])}; repair the checkpoint before compressing it"
        )
    return table


def _checked_metric(metric: Tensor | None, dim: int) -> Tensor | None:
    if metric is None:
        return None
    if metric.shape != (dim, dim):
        raise LighttokenError(
            f"the metric has shape {tuple(metric.shape)}, a table of width {dim} needs ({dim}, {dim})"
        )
    metric = metric.double().cpu()
    if not torch.allclose(metric, metric.T, rtol=1e-4, atol=1e-6 * float(metric.abs().max())):
        raise LighttokenError("the metric is not symmetric; pass (metric + metric.T) / 2")
    if not float(torch.linalg.eigvalsh(metric)[-1]) > 0:
        raise LighttokenError("the metric has no positive eigenvalue; pass None for the Euclidean distance")
    return metric


def _checked_weights(weights: Tensor | None, rows: int) -> Tensor:
    if weights is None:
        return torch.ones(rows)
    if weights.shape != (rows,):
        raise LighttokenError(f"weights have shape {tuple(weights.shape)} and the table {rows} rows; pass one per row")
    if not bool((weights.isfinite() & (weights > 0)).all()):
        raise LighttokenError(f"weights must be positive numbers, got a minimum of {float(weights.min()):g}")
    return weights.float().cpu() / weights.float().mean().cpu()
