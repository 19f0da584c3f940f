"""The planner: spends the bytes of a ratio over tiers of rows, directions and the decoder, by predicted distortion.

Rows are grouped by importance into tiers; a tier's directions get bits by reverse water-filling, down to one level of
distortion for the whole table, and the bits are dealt out as trellis steps of k bits for v coefficients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lighttoken.artifact.packing import Precision, stored_bytes
from lighttoken.artifact.trellis import LEAD, pack_step, pack_tiers
from lighttoken.errors import LighttokenError

TIER_COUNTS = (1, 2, 4, 6, 8, 12)  # that the planner chooses from
PRECISIONS: tuple[Precision, ...] = ("int4", "int8")  # of the decoder, likewise
# Squared error that storing the decoder adds, over the energy that it carries. At int4 half of what rounding does to a
# unit Gaussian (0.0115): codes are searched along the directions as stored, so that some of it is made up for.
PRECISION_ERROR = {"int4": 0.006, "int8": 4e-5}
LEAST_RATE = 0.02  # bits per coefficient: directions that deserve less get none
ROWS_PER_CHUNK = 2048
PRIOR_ROWS = 64  # rows that the common spectrum counts for when a tier's own is estimated


def trellis_distortion(rate: Tensor, state_bits: int) -> Tensor:
    """Mean squared error of the trellis code on a unit Gaussian at rates in bits per coefficient.

    The bound 2 ** (-2 rate) and a gap in dB that was fitted to measured ones (12 state bits: 0.17 at 1/4 bit, 0.27 at
    1/2, 0.55 at 1, 0.95 at 2, 2.7 at 4, 3.9 at 6, 8.1 at 8; 8 state bits: 0.96 at 1, 2.1 at 2, 5.3 at 4, 8.0 at 5).
    """
    beyond = (rate - state_bits / 3).clamp_min(0)  # of what so many computed states serve well
    gap = 0.55 * rate * (12 / state_bits) ** 1.5 + 0.2 * beyond.square() * (12 / state_bits) ** 2.5
    return torch.minimum(2 ** (-2 * rate) * 10 ** (gap / 10), torch.ones_like(rate))


@dataclass(frozen=True)
class Plan:
    """How the bytes are spent. The tensors are those of the artifact but for `gain`, not yet quantized."""

    tiers: Tensor  # (V,) uint8
    steps: Tensor  # (T, n) uint8, see lighttoken.artifact.trellis
    gain: Tensor  # (T, n) float32
    rank: int  # directions that get bits in any tier
    precision: Precision  # of the decoder
    nbytes: int  # of the artifact, at most
    predicted: float  # weighted squared error over the weighted energy of the centred table


def plan_budget(
    coordinates: Tensor,
    weights: Tensor,
    ratio: float,
    overhead: int,
    state_bits: int,
    tiers: int | None = None,
    precision: Precision | None = None,
) -> Plan:
    """The plan of least predicted weighted error whose artifact has at most V * d * 4 / ratio bytes.

    `coordinates` (V, d): the centred table along its principal directions, largest first; `weights` (V,), mean 1;
    `overhead`: bytes of the artifact that hold no tensor; `tiers` and `precision` keep to one choice. Raises
    LighttokenError if no plan is small enough.
    """
    table_bytes = coordinates.numel() * 4
    budget = int(table_bytes / ratio)
    energy = torch.linalg.vector_norm(coordinates, dim=1).square()
    spectrum = _moments(coordinates, weights.unsqueeze(1)).squeeze(0) / len(coordinates)
    counts = TIER_COUNTS if tiers is None else (tiers,)
    plans = []
    for count in counts:
        assignment = assign_tiers(energy * weights, count)
        allocate = _Allocation(coordinates, weights, energy, assignment, spectrum, state_bits, overhead)
        for choice in PRECISIONS if precision is None else (precision,):
            plan = allocate.within(budget, choice)
            if plan is not None:
                plans.append(plan)
    if not plans:
        smallest = allocate.smallest("int4")
        largest = int(table_bytes / smallest * 10) / 10
        cure = f"choose a ratio above 1 and up to {largest:g}" if largest > 1 else "the table is too small to compress"
        raise LighttokenError(
            f"ratio {ratio:g} cannot be met: it leaves {budget} of {table_bytes} bytes and the smallest "
            f"artifact of this table has {smallest}; {cure}"
        )
    return min(plans, key=lambda plan: plan.predicted)


def assign_tiers(importance: Tensor, count: int, sweeps: int = 60) -> Tensor:
    """Tier (V,) uint8 of each row, numbered by rising importance (V,): k-means (Lloyd 1982) of its logarithm.

    At most `count` tiers, none of them empty. A row's best number of bits is linear in that logarithm. Rows count by
    the square root of their importance: there are few rows at the top, and most of the bits.
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
    """Bits for the directions of given tiers, at any level of distortion."""

    def __init__(
        self,
        coordinates: Tensor,
        weights: Tensor,
        energy: Tensor,
        tiers: Tensor,
        spectrum: Tensor,
        state_bits: int,
        overhead: int,
    ):
        self.tiers, self.spectrum, self.state_bits = tiers, spectrum.cpu(), state_bits
        (self.vocab_size, self.dim), count = coordinates.shape, int(tiers.max()) + 1
        members = torch.nn.functional.one_hot(tiers.long(), count).to(coordinates.dtype)
        rows = members.sum(0)
        self.rows = rows.cpu()
        self.weight = (members.T @ weights / rows.clamp_min(1)).cpu()
        own = _moments(coordinates, members)
        common = spectrum / spectrum.sum().clamp_min(1e-30) * (members.T @ energy).unsqueeze(1)
        shrunk = own + common / rows.clamp_min(1).unsqueeze(1) * PRIOR_ROWS
        self.moments = (shrunk / (rows + PRIOR_ROWS).unsqueeze(1)).cpu()  # (T, d): a row's expected squares
        self.fixed = overhead + LEAD + len(pack_tiers(tiers)) + stored_bytes(1, self.dim, "int8", 0)

    def within(self, budget: int, precision: Precision) -> Plan | None:
        """The plan of the lowest level that fits, by bisection of its logarithm; None if none does."""
        weighted = self.moments * self.weight.unsqueeze(1)
        high = float(weighted.max().clamp_min(1e-30))
        low, best = high * 2.0**-40, None
        varies = bool(weighted.max() > 0)
        for _ in range(40):
            level = (low * high) ** 0.5
            rates = (weighted / level).clamp_min(1).log2() / 2
            steps = [deal_steps(each, self.state_bits) for each in rates]
            if not any(steps) and varies:
                high = level
            elif self._bytes(steps, precision) > budget:
                low = level
            else:
                high, best = level, steps
        return self._plan(best, precision) if best is not None else None

    def smallest(self, precision: Precision) -> int:
        """Bytes of an artifact with a single bit per row of one tier."""
        steps: list[list[tuple[int, int]]] = [[] for _ in self.rows]
        steps[int(self.rows.argmax())] = [(1, 1)]
        return self._bytes(steps, precision)

    def _bytes(self, steps: list[list[tuple[int, int]]], precision: Precision) -> int:
        bits = sum(int(rows) * sum(k for _, k in each) for rows, each in zip(self.rows, steps, strict=True))
        longest = max(1, *map(len, steps))
        gains = len(steps) * longest + stored_bytes(len(steps), longest, "int8", 0)
        return self.fixed + -(-bits // 8) + gains + stored_bytes(_rank(steps), self.dim, precision, 0)

    def _plan(self, steps: list[list[tuple[int, int]]], precision: Precision) -> Plan:
        longest, rank = max(1, *map(len, steps)), _rank(steps)
        packed = torch.zeros(len(steps), longest, dtype=torch.uint8)
        gain = torch.zeros(len(steps), longest)
        error = self.moments.clone()
        scale = self.spectrum.clamp_min(1e-30)
        for t, each in enumerate(steps):
            first = 0
            for j, (vector, k) in enumerate(each):
                part = slice(first, first + vector)
                packed[t, j] = pack_step(vector, k)
                if k:
                    distortion = float(trellis_distortion(torch.tensor(k / vector), self.state_bits))
                    gain[t, j] = ((1 - distortion) * self.moments[t, part] / scale[part]).mean().sqrt()
                    coarse = PRECISION_ERROR[precision] * (1 - distortion)  # of the decoder's directions
                    error[t, part] *= distortion + coarse
                first += vector
        mass = self.rows * self.weight
        predicted = float((mass @ error).sum() / (mass @ self.moments).sum().clamp_min(1e-30))
        return Plan(self.tiers, packed, gain, rank, precision, self._bytes(steps, precision), predicted)


def deal_steps(rates: Tensor, state_bits: int) -> list[tuple[int, int]]:
    """Steps (v coefficients, k bits) that spend the bits (d,) of falling rates; what rounding leaves is carried on.

    High rates are dealt to single coefficients, low ones to as many as 8 together, so that k stays small. It is at
    most two thirds of the state's bits: beyond that, a computed codebook has too few states to choose from. A step of
    0 bits passes its coefficients over.
    """
    values, first, carry, most = rates.tolist(), 0, 0.0, max(1, state_bits * 2 // 3)
    steps: list[tuple[int, int]] = []
    while first < len(values) and values[first] > LEAST_RATE:
        rate = values[first]
        vector = 1 if rate > 2.2 else 2 if rate > 0.75 else 4 if rate > 0.25 else 8
        while vector > len(values) - first:
            vector //= 2
        wanted = sum(values[first : first + vector]) + carry
        k = max(0, min(most, round(wanted)))
        steps.append((vector, k))
        first, carry = first + vector, min(wanted - k, 1.0)
    while steps and steps[-1][1] == 0:
        steps.pop()
    return steps


def _rank(steps: Sequence[Sequence[tuple[int, int]]]) -> int:
    return max((sum(vector for vector, _ in each) for each in steps), default=0)


def _moments(coordinates: Tensor, members: Tensor) -> Tensor:
    """Sums of the squares of each column, (T, d), over rows weighted by the columns of members (V, T)."""
    sums = coordinates.new_zeros(members.shape[1], coordinates.shape[1])
    for part, rows in zip(members.split(ROWS_PER_CHUNK), coordinates.split(ROWS_PER_CHUNK), strict=True):
        sums += part.T @ rows.square()
    return sums
