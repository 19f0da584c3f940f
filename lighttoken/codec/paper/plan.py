"""The planner: turns a target ratio into a rank, stages and bits per stage whose files fit the bytes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lighttoken.errors import LighttokenError

# What a bit of a linear +-1 code is worth: on white Gaussian rows it reaches, at 1 bit per dimension, the distortion
# that the rate-distortion bound allows at 0.725 bit (mean squared error 0.366 = 2 ** (-2 * 0.725)).
CODE_EFFICIENCY = 0.725
# Mean squared error of `quantize` on unit Gaussian values: 15 or 255 levels, scale of least error.
PRECISION_ERROR = {"float32": 0.0, "float16": 0.0, "int8": 1e-4, "int4": 0.013}


@dataclass(frozen=True)
class Plan:
    """How the bytes are spent: rank k of the low-rank part and the width, in bits, of each stage."""

    rank: int
    stages: tuple[int, ...]
    predicted_nmse: float


def plan_budget(
    spectrum: Tensor,
    ratio: float,
    table_bytes: int,
    measure: Callable[[int, int], int],
    rank: int | None,
    stage_bits: int,
    coefficient_precision: str,
) -> Plan:
    """Choose the rank and the bits per row of least predicted error whose artifact has at most table_bytes / ratio.

    `spectrum` (d,): eigenvalues, falling, of the table's covariance; `measure(rank, m)`: bytes of an artifact of that
    form; `rank`: a rank to keep to instead. Bits come in whole bytes, in stages of at most `stage_bits`; 0: no stages.
    Raises LighttokenError if no artifact is small enough.
    """
    budget, dim = int(table_bytes / ratio), len(spectrum)
    if rank is not None and not 0 <= rank <= dim:
        raise LighttokenError(f"rank {rank} is not between 0 and the table's width {dim}; rank=null lets it be chosen")
    if stage_bits:
        ranks = [rank] if rank is not None else _candidate_ranks(dim)
        fitting = [(k, m) for k in ranks if (m := _most_bits(k, budget, measure, 8 * dim)) > 0]
    else:
        ranks = [rank] if rank is not None else list(range(1, dim + 1))
        fitting = [(k, 0) for k in ranks if measure(k, 0) <= budget]
    if not fitting:
        smallest = measure(ranks[0], 8 if stage_bits else 0)
        of_rank = f" at rank {rank}" if rank is not None else ""
        largest = int(table_bytes / smallest * 10) / 10
        cure = "the table is too small to compress"
        if largest > 1:
            cure = f"choose a ratio above 1 and up to {largest:g}"
        raise LighttokenError(
            f"ratio {ratio:g} cannot be met: it leaves {budget} of {table_bytes} bytes and the smallest artifact of "
            f"this table{of_rank} has {smallest}; {cure}"
        )
    predictions = {(k, m): predict_error(spectrum, k, m, coefficient_precision) for k, m in fitting}
    k, m = min(predictions, key=lambda choice: predictions[choice])
    return Plan(k, split_bits(m, stage_bits), predictions[k, m] / max(float(spectrum.sum()), 1e-30))


def predict_error(spectrum: Tensor, rank: int, m: int, coefficient_precision: str) -> float:
    """Squared error per row after a rank-k part and m code bits.

    Reverse water-filling (Cover and Thomas, section 10.3) of what the rank-k part leaves, at the bits an ideal
    code would need for what a linear +-1 code does with m.
    """
    left = spectrum.double().clamp_min(0).clone()
    left[:rank] *= PRECISION_ERROR[coefficient_precision]
    left = left.sort(descending=True).values
    bits = CODE_EFFICIENCY * m
    # With the n largest directions coded, the level is their geometric mean times 2 ** (-2 bits / n); the right n is
    # the largest whose level still lies below all of them.
    logs = left.clamp_min(1e-300).log2()
    counts = torch.arange(1, len(left) + 1, dtype=torch.float64)
    levels = (logs.cumsum(0) - 2 * bits) / counts
    coded = int((levels <= logs).nonzero().max()) + 1
    return float(coded * 2 ** levels[coded - 1] + left[coded:].sum())


def _candidate_ranks(dim: int) -> list[int]:
    powers = [2**i for i in range(dim.bit_length())]
    return sorted({k for p in powers for k in (0, p, p * 3 // 2, dim) if k <= dim})


def _most_bits(rank: int, budget: int, measure: Callable[[int, int], int], limit: int) -> int:
    """Largest multiple of 8, at most `limit`, whose artifact fits the budget; 0 if none does."""
    smallest = measure(rank, 8)
    step = measure(rank, 16) - smallest
    m = max(0, min(8 + 8 * ((budget - smallest) // step), limit))
    while m > 0 and measure(rank, m) > budget:  # more stages take more words to describe
        m -= 8
    return m


def split_bits(m: int, stage_bits: int) -> tuple[int, ...]:
    """Whole bytes over the fewest stages of at most `stage_bits`, as evenly as they go, larger ones first."""
    if m == 0:
        return ()
    stages = -(-m // max(8, stage_bits // 8 * 8))
    whole, rest = divmod(m // 8, stages)
    return tuple(8 * (whole + (i < rest)) for i in range(stages))
