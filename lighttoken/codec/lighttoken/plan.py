"""The planner: spends the bytes of a ratio over tiers of rows, directions and the decoder, by predicted distortion.

Rows are grouped by importance into tiers; a tier's directions get bits by reverse water-filling, down to one level of
distortion for the whole table, and the bits are dealt out as trellis steps of k bits for v coefficients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lighttoken.artifact.packing import Precision, stored_bytes
from lighttoken.artifact.trellis import LEAD, pack_step, pack_tiers, unpack_steps
from lighttoken.codec.interface import Budget
from lighttoken.codec.shapes import Table, Weights

Step = tuple[int, int]  # v coefficients, k bits

TIER_COUNTS = (1, 2, 4, 6, 8, 12)  # the planner's choices
PRECISIONS: tuple[Precision, ...] = ("int4", "int8")  # of the decoder, its choices too
# Squared error that storing the decoder adds, over the energy that it carries. At int4 half of what rounding does to a
# unit Gaussian (0.0115): codes are searched along the directions as stored, which makes up for some of it.
PRECISION_ERROR = {"int4": 0.006, "int8": 4e-5}
LEAST_RATE = 0.02  # bits per coefficient: directions of a lower rate get none
ROWS_PER_CHUNK = 2048
PRIOR_ROWS = 64  # weight of the common spectrum, in rows, when a tier's spectrum is estimated


def trellis_distortion(rate: Float[Tensor, "*shape"], state_bits: int) -> Float[Tensor, "*shape"]:
    """Mean squared error of the trellis code on a unit Gaussian at rates in bits per coefficient.

    The bound 2 ** (-2 rate) and a gap in dB that was fitted to measured ones (12 state bits: 0.17 at 1/4 bit, 0.27 at
    1/2, 0.55 at 1, 0.95 at 2, 2.7 at 4, 3.9 at 6, 8.1 at 8; 8 state bits: 0.96 at 1, 2.1 at 2, 5.3 at 4, 8.0 at 5).
    """
    beyond = (rate - state_bits / 3).clamp_min(0)  # bits for which a computed codebook has too few states
    gap = 0.55 * rate * (12 / state_bits) ** 1.5 + 0.2 * beyond.square() * (12 / state_bits) ** 2.5
    return torch.minimum(2 ** (-2 * rate) * 10 ** (gap / 10), torch.ones_like(rate))


@dataclass(frozen=True)
class Plan:
    """How the bytes are spent.

    tiers      (V,) uint8      the tier of each row
    steps      (T, s) uint8    the steps of each tier (`artifact.trellis`)
    gain       (T, s) float32  the scale of each step's coefficients, not yet quantized
    rank       directions that get bits in any tier: rows of the decoder
    precision  of the decoder
    nbytes     of the tensors
    predicted  weighted squared error over the weighted energy of the centred table
    """

    tiers: Tensor
    steps: Tensor
    gain: Tensor
    rank: int
    precision: Precision
    nbytes: int
    predicted: float

    def describe(self) -> dict[str, Any]:
        """The plan in plain JSON values."""
        bits = unpack_steps(self.steps)[1].sum(1)
        rows = torch.bincount(self.tiers.cpu().long(), minlength=len(bits))
        return {
            "rank": self.rank,
            "decoder_precision": self.precision,
            "tier_rows": rows.tolist(),
            "tier_bits": bits.tolist(),
            "bits_per_row": round(float((rows * bits).sum() / rows.sum()), 2),
            "predicted": round(self.predicted, 4),
        }


def plan_budget(
    coordinates: Table,
    weights: Weights,
    budget: Budget,
    state_bits: int,
    tiers: int | None = None,
    precision: Precision | None = None,
) -> Plan:
    """The plan of least predicted weighted error whose tensors fit the budget.

    `coordinates`: the centred table along its principal directions, largest first; `weights` have mean 1. With `tiers`
    or `precision` the planner keeps to them. Raises LighttokenError if no plan is small enough.
    """
    energy = torch.linalg.vector_norm(coordinates, dim=1).square()
    spectrum = _moments(coordinates, weights.unsqueeze(1)).squeeze(0) / len(coordinates)
    plans, smallest = [], budget.table_bytes
    for count in TIER_COUNTS if tiers is None else (tiers,):
        assignment = assign_tiers(energy * weights, count)
        allocation = _Allocation(coordinates, weights, energy, assignment, spectrum, state_bits)
        smallest = allocation.smallest("int4")
        for choice in PRECISIONS if precision is None else (precision,):
            plan = allocation.within(budget.tensor_bytes, choice)
            if plan is not None:
                plans.append(plan)
    if not plans:
        raise budget.out_of_reach(smallest)
    return min(plans, key=lambda plan: plan.predicted)


def assign_tiers(importance: Float[Tensor, " V"], count: int, sweeps: int = 60) -> UInt8[Tensor, " V"]:
    """The tier of each row, numbered by rising importance: k-means (Lloyd 1982) of its logarithm.

    At most `count` tiers, none of them empty. A row's best number of bits is linear in that logarithm. Rows count by
    the square root of their importance: few rows are at the top, and most of the bits.
    """
    logs = importance.clamp_min(importance.max() * 1e-9 + 1e-30).log()
    mass = (logs / 2).exp()
    lowest = float(logs.sort().values[len(logs) // 100])
    centres = torch.linspace(lowest, float(logs.max()), count + 2, device=logs.device)[1:-1]
    for _ in range(sweeps):
        tiers = torch.searchsorted((centres[1:] + centres[:-1]) / 2, logs)
        total = torch.zeros_like(centres).index_add_(0, tiers, mass)
        moment = torch.zeros_like(centres).index_add_(0, tiers, mass * logs)
        centres = torch.where(total > 0, moment / total.clamp_min(1e-30), centres).sort().values
    tiers = torch.searchsorted((centres[1:] + centres[:-1]) / 2, logs)
    return tiers.unique(return_inverse=True)[1].to(torch.uint8)


class _Allocation:
    """Bits for the directions of given tiers, at any level of distortion.

    rows, weight  (T,)    rows of each tier and their mean weight
    moments       (T, d)  expected square of a row's coordinate along each direction
    fixed         bytes that do not depend on the level: tiers, bias, the bytes before the stream
    """

    def __init__(
        self, coordinates: Tensor, weights: Tensor, energy: Tensor, tiers: Tensor, spectrum: Tensor, state_bits: int
    ):
        self.tiers, self.spectrum, self.state_bits = tiers, spectrum.cpu(), state_bits
        (self.vocab_size, self.dim), count = coordinates.shape, int(tiers.max()) + 1
        # Sums over the rows of each tier.
        members = torch.nn.functional.one_hot(tiers.long(), count).to(coordinates.dtype)
        rows = members.sum(0)
        self.rows = rows.cpu()
        self.weight = (members.T @ weights / rows.clamp_min(1)).cpu()
        # A small tier says little of its spectrum: the common one, at the tier's energy, counts as PRIOR_ROWS rows.
        own_moments = _moments(coordinates, members)
        common = spectrum / spectrum.sum().clamp_min(1e-30) * (members.T @ energy).unsqueeze(1)
        shrunk = own_moments + common / rows.clamp_min(1).unsqueeze(1) * PRIOR_ROWS
        self.moments = (shrunk / (rows + PRIOR_ROWS).unsqueeze(1)).cpu()
        self.fixed = LEAD + len(pack_tiers(tiers)) + stored_bytes(1, self.dim, "int8", 0)

    def within(self, nbytes: int, precision: Precision) -> Plan | None:
        """The plan of the lowest level that fits, by bisection of its logarithm; None if none does."""
        weighted = self.moments * self.weight.unsqueeze(1)
        high = float(weighted.max().clamp_min(1e-30))
        low, best = high * 2.0**-40, None
        varies = bool(weighted.max() > 0)
        for _ in range(40):
            level = (low * high) ** 0.5
            # Reverse water-filling: a direction gets log2(variance / level) / 2 bits.
            rates = (weighted / level).clamp_min(1).log2() / 2
            steps = [deal_steps(tier_rates, self.state_bits) for tier_rates in rates]
            if not any(steps) and varies:  # no direction reaches the level
                high = level
            elif self._bytes(steps, precision) > nbytes:
                low = level
            else:
                high, best = level, steps
        return self._plan(best, precision) if best is not None else None

    def smallest(self, precision: Precision) -> int:
        """Bytes of tensors with a single bit per row of one tier."""
        steps: list[list[Step]] = [[] for _ in self.rows]
        steps[int(self.rows.argmax())] = [(1, 1)]
        return self._bytes(steps, precision)

    def _bytes(self, steps: list[list[Step]], precision: Precision) -> int:
        bits = sum(int(rows) * sum(k for _, k in tier) for rows, tier in zip(self.rows, steps, strict=True))
        longest = max(1, *map(len, steps))
        gains = len(steps) * longest + stored_bytes(len(steps), longest, "int8", 0)
        return self.fixed + -(-bits // 8) + gains + stored_bytes(_rank(steps), self.dim, precision, 0)

    def _plan(self, steps: list[list[Step]], precision: Precision) -> Plan:
        longest = max(1, *map(len, steps))
        packed = torch.zeros(len(steps), longest, dtype=torch.uint8)
        gain = torch.zeros(len(steps), longest)
        error = self.moments.clone()
        scale = self.spectrum.clamp_min(1e-30)
        for tier, tier_steps in enumerate(steps):
            first = 0
            for j, (vector, k) in enumerate(tier_steps):
                part = slice(first, first + vector)
                packed[tier, j] = pack_step(vector, k)
                if k:
                    # A decoded coefficient has the variance that the code keeps, in units of the decoder's row.
                    distortion = float(trellis_distortion(torch.tensor(k / vector), self.state_bits))
                    gain[tier, j] = ((1 - distortion) * self.moments[tier, part] / scale[part]).mean().sqrt()
                    error[tier, part] *= distortion + PRECISION_ERROR[precision] * (1 - distortion)
                first += vector
        mass = self.rows * self.weight
        predicted = float((mass @ error).sum() / (mass @ self.moments).sum().clamp_min(1e-30))
        nbytes = self._bytes(steps, precision)
        return Plan(self.tiers, packed, gain, _rank(steps), precision, nbytes, predicted)


def deal_steps(rates: Float[Tensor, " d"], state_bits: int) -> list[Step]:
    """Steps that spend the bits of falling rates, with the rest that rounding leaves carried on to the next step.

    High rates go to single coefficients, low ones to as many as 8 together, so that k stays small. It is at most two
    thirds of the state's bits: beyond that, a computed codebook has too few states to choose from. A step of 0 bits
    passes its coefficients over.
    """
    values, first, carry, most = rates.tolist(), 0, 0.0, max(1, state_bits * 2 // 3)
    steps: list[Step] = []
    while first < len(values) and values[first] > LEAST_RATE:
        rate = values[first]
        vector = 1 if rate > 2.2 else 2 if rate > 0.75 else 4 if rate > 0.25 else 8
        while vector > len(values) - first:
            vector //= 2
        bits = sum(values[first : first + vector]) + carry
        k = max(0, min(most, round(bits)))
        steps.append((vector, k))
        first, carry = first + vector, min(bits - k, 1.0)
    while steps and steps[-1][1] == 0:
        steps.pop()
    return steps


def _rank(steps: Sequence[Sequence[Step]]) -> int:
    """Directions that get bits in any tier."""
    return max((sum(vector for vector, _ in tier) for tier in steps), default=0)


def _moments(coordinates: Tensor, members: Tensor) -> Tensor:
    """Sums of the squares of each column, (T, d), over rows weighted by the columns of members (V, T)."""
    sums = coordinates.new_zeros(members.shape[1], coordinates.shape[1])
    for part, rows in zip(members.split(ROWS_PER_CHUNK), coordinates.split(ROWS_PER_CHUNK), strict=True):
        sums += part.T @ rows.square()
    return sums
