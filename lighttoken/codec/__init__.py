"""Codecs: methods that turn a table into a compressed table."""

import math
from collections.abc import Sequence
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

    def settings(self) -> dict[str, Any]: ...

    def compress(
        self,
        table: Tensor,
        weights: Tensor,
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
    seed: int = 0,
    progress: bool = True,
    loggers: "Sequence[Logger]" = (),
) -> CompressedTable:
    """Compress a table (V, d) so that V * d * 4 bytes over the bytes of the artifact's files is at least `ratio`.

    `codec` is a name out of `CODECS`, with that codec's default settings, or a codec; `weights` (V,) says how much each
    row matters (any positive numbers; None: all the same). The same arguments on the same machine give the same
    bytes. The caller's random state is left as it was. Lightning `loggers` receive the codec's curves.

    Raises LighttokenError for an unknown codec, a table that is not a finite matrix, a ratio that is not above 1 or
    cannot be met, and weights that do not fit the table.
    """
    if isinstance(codec, str):
        if codec not in CODECS:
            raise LighttokenError(f"unknown codec {codec!r}; choose one of {', '.join(CODECS)}")
        from lighttoken.codec.lighttoken import LightToken  # brings in Lightning

        codec = LightToken(**CODECS[codec])
    table = _checked_table(table)
    weights = _checked_weights(weights, len(table))
    if not (math.isfinite(ratio) and ratio > 1):
        raise LighttokenError(f"ratio {ratio:g} does not compress: it must be above 1, for example ratio=25")
    empty = CompressedTable(
        codec=codec.name,
        shape=(table.shape[0], table.shape[1]),
        tensors={},
        source_sha256=hash_table(table),
        settings=codec.settings() | {"ratio": float(ratio), "seed": seed, "weighted": bool((weights != 1).any())},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        compressed = codec.compress(table, weights, float(ratio), empty, progress, loggers)
    if not math.isfinite(compressed.summary["nmse"]):
        raise LighttokenError(
            f"the table's values, up to {float(table.abs().max()):g}, overflow what {codec.name} stores "
            "them in; choose int8 or float32 for coefficient_precision and matrix_precision"
        )
    assert compressed.ratio >= ratio, f"{codec.name} was asked for {ratio}x and wrote {compressed.ratio}x"
    return compressed


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


def _checked_weights(weights: Tensor | None, rows: int) -> Tensor:
    if weights is None:
        return torch.ones(rows)
    if weights.shape != (rows,):
        raise LighttokenError(f"weights have shape {tuple(weights.shape)} and the table {rows} rows; pass one per row")
    if not bool((weights.isfinite() & (weights > 0)).all()):
        raise LighttokenError(f"weights must be positive numbers, got a minimum of {float(weights.min()):g}")
    return weights.float().cpu() / weights.float().mean().cpu()
