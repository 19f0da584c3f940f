"""The planner: spends the bytes of a ratio over tiers of rows, directions and the decoder, by predicted distortion.

Rows are grouped by importance into tiers; a tier's directions get bits by reverse water-filling, down to one level of
distortion for the whole table. A tier's first directions, of high rates, become integers; the bits of the others are
dealt out as trellis steps of k bits for v coefficients.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lighttoken.artifact.integers import INTEGER_STEP
from lighttoken.artifact.packing import stored_bytes
from lighttoken.artifact.trellis import LEAD, pack_step, pack_tiers, unpack_steps
from lighttoken.codec.interface import Budget
from lighttoken.codec.lighttoken.integers import DISTORTION, integer_bits
from lighttoken.codec.lighttoken.rates import trellis_distortion, trellis_gap
from lighttoken.codec.shapes import Table, Weights

Step = tuple[int, int]  # v coefficients, k bits; of an integer, 0 and its low bits

# A direction must save this share of the error that its bits, and those of its row of the decoder, save elsewhere.
# All of it, 1, has the least weighted error, and hidden states of real texts that are further from the original than
# with 0.3: text has more frequent tokens than their weights say, and these use directions that others do not.
PAYS = 0.3
DEFLATED = 1.08  # bits of deflated levels of the decoder over their entropy
TIER_COUNTS = (1, 2, 4, 6, 8, 12)  # the planner's choices
# The trellis leaves a squared error above the level that its rates ask for, see `trellis_distortion`; integers are
# planned to leave as much, so that a bit gains as much in both.
INTEGER_LEVEL = 1.25
LEAST_RATE = 0.02  # bits per coefficient: directions of a lower rate get none
LEAST_INTEGER = 2.0  # directions of a lower rate are no integers
# Integers must lower the predicted error to this share. True errors are below the predicted ones, those of the trellis
# by 5 to 10 % more (10,174 rows of MiniLM-L6, 6x to 25x, 12 and 14 state bits): at 0.93 both are alike.
WORTH = 0.92
BISECTIONS = 20
ROWS_PER_CHUNK = 2048
PRIOR_ROWS = 64  # weight of the common spectrum, in rows, when a tier's spectrum is estimated


@dataclass(frozen=True)
class Plan:
    """How the bytes are spent.

    tiers      (V,) uint8      the tier of each row
    steps      (T, s) uint8    the steps of each tier (`artifact.trellis`)
    gain       (T, s) float32  the scale of each step's coefficients, not yet quantized
    unit       (m,) float32    the deviation of each direction, in which coefficients are counted
    spacing    (m,) float32    of the levels of each row of the decoder, for directions of norm 1
    nbytes     of the tensors; those of the integers and of the decoder, which the search decides, as expected
    integers   (T,) float32    expected bits of a row's integers, see `artifact.integers`
    predicted  weighted squared error over the weighted energy of the centred table
    """

    tiers: Tensor
    steps: Tensor
    gain: Tensor
    unit: Tensor
    spacing: Tensor
    nbytes: int
    integers: Tensor
    predicted: float

    @property
    def rank(self) -> int:
        """Directions that get bits in any tier: rows of the decoder."""
        return len(self.spacing)

    @property
    def integer_bytes(self) -> int:
        """Expected bytes of the tensors of the integers."""
        return integer_bytes(torch.bincount(self.tiers.cpu().long(), minlength=len(self.integers)), self.integers)

    def describe(self) -> dict[str, Any]:
        """The plan in plain JSON values."""
        bits = unpack_steps(self.steps)[1].sum(1) + self.integers.round().long()
        rows = torch.bincount(self.tiers.cpu().long(), minlength=len(bits))
        return {
            "rank": self.rank,
            "tier_rows": rows.tolist(),
            "tier_bits": bits.tolist(),
            "bits_per_row": round(float((rows * bits).sum() / rows.sum()), 2),
            "predicted": float(f"{self.predicted:.4g}"),
        }


def plan_budget(
    coordinates: Table,
    weights: Weights,
    budget: Budget,
    state_bits: int,
    lengths: Float[Tensor, " d"],
    tiers: int | None = None,
    integers: bool = True,
    variances: Float[Tensor, " d"] | None = None,
) -> Plan:
    """The plan of least predicted weighted error whose tensors fit the budget.

    `coordinates`: the centred table along its principal directions, largest first; `weights` have mean 1; `lengths`:
    of the directions in the table, where they have norm 1 under the error metric. With `tiers` the planner keeps to so
    many; without `integers` it plans none. `coordinates` may be what is left of them after a prediction; `variances`
    are those of the whole ones then. Raises LighttokenError if no plan is small enough.
    """
    energy = torch.linalg.vector_norm(coordinates, dim=1).square()
    spectrum = spectrum_of(coordinates, weights)
    variances = spectrum if variances is None else variances
    plain: list[Plan] = []
    coded: list[Plan] = []  # with integers
    smallest = budget.table_bytes
    for count in TIER_COUNTS if tiers is None else (tiers,):
        assignment = assign_tiers(energy * weights, count)
        allocation = _Allocation(coordinates, weights, energy, assignment, spectrum, variances, state_bits, lengths)
        smallest = allocation.smallest()
        plan = allocation.within(budget.tensor_bytes, integers=False)
        plain += [plan] if plan else []
        # Only rates that the trellis serves badly make it worth while to look at integers.
        vectors, bits = unpack_steps(plan.steps) if plan else (torch.ones(1), torch.zeros(1))
        if integers and bool(((vectors == 1) & (bits > LEAST_INTEGER)).any()):
            plan = allocation.within(budget.tensor_bytes, integers=True)
            coded += [plan] if plan else []
    if not plain + coded:
        raise budget.out_of_reach(smallest)
    best_of = [min(plans, key=lambda plan: plan.predicted) for plans in (plain, coded) if plans]
    return best_of[-1] if best_of[-1].predicted < WORTH * best_of[0].predicted else best_of[0]


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
    fixed         bytes that do not depend on the level: tiers, the bytes before the stream, the bias
    """

    def __init__(
        self,
        coordinates: Tensor,
        weights: Tensor,
        energy: Tensor,
        tiers: Tensor,
        spectrum: Tensor,
        variances: Tensor,
        state_bits: int,
        lengths: Tensor,
    ):
        self.tiers, self.spectrum, self.state_bits, self.lengths = tiers, spectrum.cpu(), state_bits, lengths
        (self.vocab_size, self.dim), count = coordinates.shape, int(tiers.max()) + 1
        # Sums over the rows of each tier.
        members = torch.nn.functional.one_hot(tiers.long(), count).to(coordinates.dtype)
        rows = members.sum(0)
        self.rows = rows.cpu()
        self.weight = (members.T @ weights / rows.clamp_min(1)).cpu()
        # A small tier says little of its spectrum: the common one, at the tier's energy, counts as PRIOR_ROWS rows.
        members = members * weights.unsqueeze(1)
        common = spectrum / spectrum.sum().clamp_min(1e-30) * (members.T @ energy).unsqueeze(1)
        shrunk = _moments(coordinates, members) + common / rows.clamp_min(1).unsqueeze(1) * PRIOR_ROWS
        self._weighted = (shrunk / (rows + PRIOR_ROWS).unsqueeze(1)).cpu()
        self.moments = self._weighted / self.weight.unsqueeze(1)
        self.known = (variances - spectrum).cpu() * self.vocab_size  # weighted squares that a prediction has taken off
        self.fixed = LEAD + len(pack_tiers(tiers)) + 2 * self.dim

    def within(self, nbytes: int, integers: bool) -> Plan | None:
        """The plan of the lowest level that fits, by bisection of its logarithm; None if none does."""
        weighted = self._weighted
        high = float(weighted.max().clamp_min(1e-30))
        low, best = high * 2.0**-40, None
        varies = bool(weighted.max() > 0)
        for _ in range(BISECTIONS):
            level = (low * high) ** 0.5
            dealt = self._deal(self._rates(level), integers)
            if not any(dealt.steps) and varies:  # no direction reaches the level
                high = level
            elif self._bytes(dealt, level) > nbytes:
                low = level
            else:
                high, best = level, dealt
        return self._plan(best, high) if best is not None else None

    def smallest(self) -> int:
        """Bytes of tensors with a single bit per row of one tier."""
        steps: list[list[Step]] = [[] for _ in self.rows]
        steps[int(self.rows.argmax())] = [(1, 1)]
        return self._bytes(_Dealt(steps, torch.zeros(len(steps))), float(self._weighted.max()))

    def _deal(self, rates: Float[Tensor, "T d"], integers: bool) -> "_Dealt":
        """The steps of all tiers. Their first directions are integers, as long as these need fewer bits."""
        if not integers or float(rates.max()) <= LEAST_INTEGER:
            return _Dealt([deal_steps(tier, self.state_bits) for tier in rates], torch.zeros(len(rates)))
        # The spacing that leaves the level of distortion that the trellis leaves at these rates.
        bits, low = integer_bits(rates - math.log2(INTEGER_LEVEL / DISTORTION) / 2)
        lost = bits - rates + math.log2(INTEGER_LEVEL) / 2  # against the bound, as the trellis loses its gap
        saved = torch.where(rates > LEAST_INTEGER, trellis_gap(rates, self.state_bits) / 6.02 - lost, -1.0).cumsum(1)
        counts = torch.where(saved.amax(1) > 0, saved.argmax(1) + 1, 0)
        steps = [
            [(0, r) for r in tier_low[:count]] + deal_steps(tier[count:], self.state_bits)
            for tier, tier_low, count in zip(rates, low.tolist(), counts.tolist(), strict=True)
        ]
        return _Dealt(steps, (bits * (torch.arange(self.dim) < counts.unsqueeze(1))).sum(1))

    def _rates(self, level: float) -> Float[Tensor, "T d"]:
        """Bits for every direction, by reverse water-filling: log2(variance / level) / 2.

        A direction must pay for its bits and for those of its row of the decoder.
        """
        rates = (self._weighted / level).clamp_min(1).log2() / 2
        saved = self._kept(level)
        bits = self.rows @ rates + self._decoder_bits(self._spacing(level, self.dim))
        pays = saved > PAYS * 2 * math.log(2) * level * bits
        return rates * pays.cumprod(0)

    def _spacing(self, level: float, rank: int) -> Float[Tensor, " rank"]:
        """The spacing of the levels of each row of the decoder at which a bit gains as much there as in the codes.

        Uniform rounding of a number to levels D apart costs D^2 / 12 times the weighted energy of its coefficients in
        all rows, the codes cost the level a coefficient.
        """
        energy = self._kept(level)[:rank].clamp_min(1e-30)
        return (12 * level / energy).sqrt().clamp(self.lengths[:rank] / 2**14, self.lengths[:rank])

    def _kept(self, level: float) -> Float[Tensor, " d"]:
        """The weighted squares of every direction that the decoded rows have."""
        return self.known + self.rows @ (self._weighted - level).clamp_min(0)

    def _decoder_bits(self, spacing: Float[Tensor, " rank"]) -> Float[Tensor, " rank"]:
        """Expected bits of every row of the decoder, its numbers taken to be Gaussian, and of its scale."""
        spread = self.lengths[: len(spacing)] / spacing / math.sqrt(self.dim)
        bits = (1 + 2 * math.pi * math.e * spread.square()).log2() / 2  # close to the entropy of rounded numbers
        return DEFLATED * self.dim * bits.clamp_min(1) + 32  # a Huffman code has no shorter words

    def _bytes(self, dealt: "_Dealt", level: float) -> int:
        per_row = [sum(k for vector, k in tier if vector) for tier in dealt.steps]
        codes = -(-int(self.rows.double() @ torch.tensor(per_row).double()) // 8)
        longest = max(1, *map(len, dealt.steps))
        gains = len(dealt.steps) * longest + stored_bytes(len(dealt.steps), longest, "int8", 0)
        decoder = math.ceil(float(self._decoder_bits(self._spacing(level, _rank(dealt.steps))).sum()) / 8) + 64
        return self.fixed + codes + gains + decoder + integer_bytes(self.rows, dealt.integers)

    def _plan(self, dealt: "_Dealt", level: float) -> Plan:
        steps, longest = dealt.steps, max(1, *map(len, dealt.steps))
        packed = torch.zeros(len(steps), longest, dtype=torch.uint8)
        gain = torch.zeros(len(steps), longest)
        errors, spectrum = self.moments.tolist(), self.spectrum.clamp_min(1e-30).tolist()
        for tier, tier_steps in enumerate(steps):
            first, error = 0, errors[tier]
            left = INTEGER_LEVEL * level / float(self.weight[tier])
            rates = torch.tensor([k / max(vector, 1) for vector, k in tier_steps])
            distortions = trellis_distortion(rates, self.state_bits).tolist()
            for j, ((vector, k), distortion) in enumerate(zip(tier_steps, distortions, strict=True)):
                end = first + max(vector, 1)
                packed[tier, j] = pack_step(vector, k) if vector else INTEGER_STEP + k
                if vector == 0:
                    gain[tier, j] = 4 * 2**k * math.sqrt(left / DISTORTION / spectrum[first])
                    error[first] = left
                elif k:
                    # A decoded coefficient has the variance that the code keeps, in units of the decoder's row.
                    ratios = [
                        moment / variance
                        for moment, variance in zip(error[first:end], spectrum[first:end], strict=True)
                    ]
                    gain[tier, j] = math.sqrt((1 - distortion) * fmean(ratios))
                    error[first:end] = [distortion * moment for moment in error[first:end]]
                first = end
        mass = self.rows * self.weight
        spacing = self._spacing(level, _rank(steps))
        lost = float((mass @ torch.tensor(errors)).sum()) + len(spacing) * self.dim * level  # the second: by rounding
        predicted = lost / float((mass @ self.moments).sum() + self.known.sum() + 1e-30)
        unit = self.spectrum.sqrt()
        unit = unit.clamp_min(float(unit.max()) * 1e-6 + 1e-15)[: len(spacing)]
        return Plan(self.tiers, packed, gain, unit, spacing, self._bytes(dealt, level), dealt.integers, predicted)


@dataclass(frozen=True)
class _Dealt:
    """The steps of all tiers, and the expected bits of a row's integers, (T,)."""

    steps: list[list[Step]]
    integers: Tensor


def integer_bytes(rows: Tensor, integers: Tensor) -> int:
    """Expected bytes of the stream of integers and of the lengths of its rows, by tier; 0 without integers."""
    if not bool(integers.any()):
        return 0
    return math.ceil(float(rows.double() @ integers.double()) / 8) + int(rows[integers > 0].sum()) + 64


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
    return max((sum(max(vector, 1) for vector, _ in tier) for tier in steps), default=0)


def spectrum_of(coordinates: Table, weights: Weights) -> Float[Tensor, " d"]:
    """The weighted mean square along each direction."""
    return _moments(coordinates, weights.unsqueeze(1)).squeeze(0) / len(coordinates)


def _moments(coordinates: Tensor, members: Tensor) -> Tensor:
    """Sums of the squares of each column, (T, d), over rows weighted by the columns of members (V, T)."""
    sums = coordinates.new_zeros(members.shape[1], coordinates.shape[1])
    for part, rows in zip(members.split(ROWS_PER_CHUNK), coordinates.split(ROWS_PER_CHUNK), strict=True):
        sums += part.T @ rows.square()
    return sums
