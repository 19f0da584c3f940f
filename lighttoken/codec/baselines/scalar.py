"""Rows of small integers: 8, 4, 2 or 1 bit a number, and a scale for every row."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lighttoken.artifact.forms import Levels
from lighttoken.artifact.packing import pack_words
from lighttoken.codec.baselines import mean_row
from lighttoken.codec.interface import Budget, Codec, Importance, Reporter
from lighttoken.codec.shapes import Fitted, Table
from lighttoken.errors import LighttokenError

BITS = (1, 2, 4, 8)
ROWS_PER_CHUNK = 4096


@dataclass(frozen=True)
class Scalar(Codec):
    """Symmetric uniform quantization of rows, as in Q8BERT (Zafrir et al. 2019) and, at 1 bit, BinaryBERT (Bai et al.
    2021).

    The same: one scale per row. Differs: nothing is trained; the scale is the one of the least squared error among 40
    clippings; the mean is taken off first; levels lie at odd multiples of half a step, so that 1 bit is -1 and 1.
    """

    name: str = "scalar"
    form = Levels()

    def fit(self, table: Table, importance: Importance, budget: Budget, reporter: Reporter) -> Fitted:
        """The most bits that fit."""
        bits = budget.largest((bits, row_bytes(len(table), table.shape[1], bits)) for bits in BITS)
        bias = mean_row(table)
        return quantize_rows(table - bias.float(), bits) | {"bias": bias}, {"bits": bits}


def row_bytes(rows: int, dim: int, bits: int) -> int:
    """Bytes of what `quantize_rows` returns, and of a bias."""
    return rows * (-(-dim * bits // 8) + 4) + 4 * 2**bits + 2 * dim


def quantize_rows(rows: Tensor, bits: int) -> dict[str, Tensor]:
    """Rows (R, d) as codes (R, d bits/8) uint8, levels (2^bits,) from -1 to 1, and row_scale (R, 1).

    Raises LighttokenError for bits that do not divide a byte.
    """
    if bits not in BITS:
        raise LighttokenError(f"bits is {bits}; a number takes {', '.join(map(str, BITS))}")
    top = 2**bits - 1
    parts = [_quantize(part, top) for part in rows.split(ROWS_PER_CHUNK)]
    words, scales = map(torch.cat, zip(*parts, strict=True))
    return {"codes": pack_words(words, bits), "levels": torch.linspace(-1, 1, top + 1), "row_scale": scales}


def _quantize(rows: Tensor, top: int) -> tuple[Tensor, Tensor]:
    largest = rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    best, least = largest, torch.full_like(largest, torch.inf)
    for clip in torch.linspace(0.05, 1.0, 40).tolist():
        scale = largest * clip
        error = (_words(rows, scale, top) * (2 / top) - 1).mul_(scale).sub_(rows).square().sum(1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return _words(rows, best, top).to(torch.uint8), best


def _words(rows: Tensor, scale: Tensor, top: int) -> Tensor:
    return ((rows / scale + 1) * (top / 2)).round().clamp(0, top)
