"""Rows of small integers, from 8 bits to 1 bit a number, and a scale for every row or every group of its numbers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lighttoken.artifact.forms import Levels
from lighttoken.artifact.packing import pack_words
from lighttoken.codec.baselines import mean_row
from lighttoken.codec.interface import Budget, Codec, Importance, Reporter
from lighttoken.codec.shapes import Fitted, Table
from lighttoken.errors import LighttokenError

BITS = (1, 2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
ROWS_PER_CHUNK = 4096


@dataclass(frozen=True)
class Scalar(Codec):
    """Symmetric uniform quantization, rounded to the nearest: of rows, as in Q8BERT (Zafrir et al. 2019) and, at 1 bit,
    BinaryBERT (Bai et al. 2021), or of groups of numbers: the int4, int3 and int2 that GPTQ (Frantar et al. 2022) and
    other quantizers are compared with.

    The same: one scale per row, or a float16 scale per group. Differs: nothing is trained; the scale is the one of the
    least squared error among 40 clippings, so that the error is below that of the largest magnitude as scale; the mean
    is taken off first; levels lie at odd multiples of half a step, so that 1 bit is -1 and 1.
    """

    name: str = "scalar"
    bits: int | None = None
    group_size: int | None = None
    form = Levels()

    def __post_init__(self) -> None:
        if self.bits not in (None, *BITS):
            raise LighttokenError(f"bits is {self.bits}; a number takes {', '.join(map(str, BITS))}, or null")
        if self.group_size not in (None, *GROUP_SIZES):
            raise LighttokenError(
                f"group_size is {self.group_size}; choose one of {', '.join(map(str, GROUP_SIZES))}, or null"
            )

    def settings(self) -> dict[str, Any]:
        """Those that are not null: artifacts of the defaults keep their bytes."""
        return {name: value for name, value in super().settings().items() if value is not None}

    def fit(self, table: Table, importance: Importance, budget: Budget, reporter: Reporter) -> Fitted:
        """The most bits that fit."""
        vocab_size, dim = table.shape
        if self.group_size and dim % self.group_size:
            raise LighttokenError(
                f"the table has width {dim}, group_size={self.group_size} needs a multiple of it; choose a smaller "
                "group_size, or null"
            )
        options = BITS if self.bits is None else (self.bits,)
        bits = budget.largest((bits, row_bytes(vocab_size, dim, bits, self.group_size)) for bits in options)
        bias = mean_row(table)
        return quantize_rows(table - bias.float(), bits, self.group_size) | {"bias": bias}, {"bits": bits}


def row_bytes(rows: int, dim: int, bits: int, group_size: int | None = None) -> int:
    """Bytes of what `quantize_rows` returns, and of a bias."""
    scales = 2 * dim // group_size if group_size else 4
    return rows * (-(-dim * bits // 8) + scales) + 4 * 2**bits + 2 * dim


def quantize_rows(rows: Tensor, bits: int, group_size: int | None = None) -> dict[str, Tensor]:
    """Rows (R, d) as codes (R, d bits/8) uint8, levels (2^bits,) from -1 to 1, and row_scale.

    `row_scale` is (R, 1) float32, or (R, d/group_size) float16. Raises LighttokenError for bits that are not known.
    """
    if bits not in BITS:
        raise LighttokenError(f"bits is {bits}; a number takes {', '.join(map(str, BITS))}")
    top, dim = 2**bits - 1, rows.shape[1]
    codes, scales = [], []
    for part in rows.split(ROWS_PER_CHUNK):
        words, scale = _quantize(
            part.reshape(-1, group_size or dim), top, torch.float16 if group_size else torch.float32
        )
        codes.append(pack_words(words.view(-1, dim), bits))
        scales.append(scale.view(len(part), -1))
    return {"codes": torch.cat(codes), "levels": torch.linspace(-1, 1, top + 1), "row_scale": torch.cat(scales)}


def _quantize(rows: Tensor, top: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    largest = rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    best, least = largest, torch.full_like(largest, torch.inf)
    for clip in torch.linspace(0.05, 1.0, 40).tolist():
        scale = largest * clip
        error = (_words(rows, scale, top) * (2 / top) - 1).mul_(scale).sub_(rows).square().sum(1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    stored = best.to(dtype)
    return _words(rows, stored.float(), top).to(torch.uint8), stored


def _words(rows: Tensor, scale: Tensor, top: int) -> Tensor:
    return ((rows / scale.clamp_min(torch.finfo(torch.float32).tiny) + 1) * (top / 2)).round().clamp(0, top)
