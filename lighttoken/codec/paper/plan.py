"""The planner: turns a target ratio into a rank, stages and bits per stage whose tensors fit the bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lighttoken.codec.bound import reverse_water_filling
from lighttoken.codec.interface import Budget
from lighttoken.codec.shapes import Spectrum
from lighttoken.errors import LighttokenError

# The worth of a bit of a linear +-1 code: on white Gaussian rows, 1 bit per dimension reaches the distortion that the
# rate-distortion bound allows at 0.725 bit (mean squared error 0.366 = 2 ** (-2 * 0.725)).
CODE_EFFICIENCY = 0.725
# Mean squared error of `quantize` on unit Gaussian values: 15 or 255 levels, scale of least error.
PRECISION_ERROR = {"float32": 0.0, "float16": 0.0, "int8": 1e-4, "int4": 0.013}


@dataclass(frozen=True)
class Plan:
    """How the bytes are spent: rank k of the low-rank part and the width, in bits, of each stage."""

    rank: int
    stages: tuple[int, ...]
    predicted_nmse: float

    def describe(self) -> dict[str, Any]:
        """The plan in plain JSON values."""
        return {"rank": self.rank, "planned_stages": len(self.stages), "predicted_nmse": round(self.predicted_nmse, 6)}


def plan_budget(
    spectrum: Spectrum,
    budget: Budget,
    measure: Callable[[int, int], int],
    rank: int | None,
    stage_bits: int,
    coefficient_precision: str,
) -> Plan:
    """Choose the rank and the bits per row of least predicted error whose tensors fit the budget.

    `spectrum`: eigenvalues, falling, of the table's covariance; `measure(rank, m)`: bytes of the tensors of a rank and
    m bits; `rank`: keep to this one. Bits come in whole bytes, in stages of at most `stage_bits`; 0: no stages.
    Raises LighttokenError if no tensors are small enough.
    """
    dim = len(spectrum)
    if rank is not None and not 0 <= rank <= dim:
        raise LighttokenError(f"rank {rank} is not between 0 and the table's width {dim}; rank=null lets it be chosen")
    candidates = _candidate_ranks(dim) if stage_bits else list(range(1, dim + 1))
    ranks = candidates if rank is None else [rank]
    if stage_bits:
        fitting = [(k, m) for k in ranks if (m := _most_bits(k, budget.tensor_bytes, measure, 8 * dim)) > 0]
    else:
        fitting = [(k, 0) for k in ranks if measure(k, 0) <= budget.tensor_bytes]
    if not fitting:
        raise budget.out_of_reach(measure(ranks[0], 8 if stage_bits else 0))
    predictions = {(k, m): predict_error(spectrum, k, m, coefficient_precision) for k, m in fitting}
    k, m = min(predictions, key=lambda choice: predictions[choice])
    return Plan(k, split_bits(m, stage_bits), predictions[k, m] / max(float(spectrum.sum()), 1e-30))


def predict_error(spectrum: Spectrum, rank: int, m: int, coefficient_precision: str) -> float:
    """Squared error per row after a rank-k part and m code bits.

    Reverse water-filling of the residual's spectrum, at the bits that an ideal code needs for what a linear +-1 code
    does with m.
    """
    residual = spectrum.double().clamp_min(0).clone()
    residual[:rank] *= PRECISION_ERROR[coefficient_precision]
    return reverse_water_filling(residual, CODE_EFFICIENCY * m)[0]


def _candidate_ranks(dim: int) -> list[int]:
    powers = [2**i for i in range(dim.bit_length())]
    return sorted({k for p in powers for k in (0, p, p * 3 // 2, dim) if k <= dim})


def _most_bits(rank: int, budget: int, measure: Callable[[int, int], int], limit: int) -> int:
    """Largest multiple of 8, at most `limit`, whose tensors fit the budget; 0 if none do."""
    smallest = measure(rank, 8)
    step = measure(rank, 16) - smallest
    m = max(0, min(8 + 8 * ((budget - smallest) // step), limit))
    while m > 0 and measure(rank, m) > budget:  # more stages have longer reports
        m -= 8
    return m


def split_bits(m: int, stage_bits: int) -> tuple[int, ...]:
    """Whole bytes over the fewest stages of at most `stage_bits`, as evenly as they go, larger ones first."""
    if m == 0:
        return ()
    stages = -(-m // max(8, stage_bits // 8 * 8))
    whole, rest = divmod(m // 8, stages)
    return tuple(8 * (whole + (i < rest)) for i in range(stages))
