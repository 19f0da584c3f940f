"""The search of the integer code (`artifact.integers`), and the bits that it takes."""

import math
from functools import cache

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lighttoken.artifact.integers import DELAY, MAX_HIGH, STATES, fold, offsets, unfold
from lighttoken.codec.lighttoken import compiled

ROWS_PER_CHUNK = 512  # whose path costs fit into a cache
# Squared error over that of the distance between neighbours on all four grids: measured on Gaussian coefficients.
DISTORTION = 0.26
# What a bit costs, in the same unit: at high rates the squared error falls by 2 ln 2 of itself with one more bit.
BIT_COST = 2 * math.log(2) * DISTORTION
MAX_LOW = 15
LEAST_SCALE, MOST_SCALE, SCALES_PER_OCTAVE, QUANTILES = -2.0, 15.0, 16, 1024  # of the planner's table of bits


def search_integers(
    targets: Float[Tensor, "n G"], spacing: Float[Tensor, " G"], low: Int64[Tensor, " G"]
) -> tuple[UInt8[Tensor, "n G"], Int64[Tensor, "n G"]]:
    """The path bits of coefficients and their integers as `fold` numbers them.

    Least squared error plus `BIT_COST` for every bit, in units of a coefficient's `spacing` (of neighbours on all
    grids; 4 of it are the step of a grid), by dynamic programming over the path.
    """
    path = torch.zeros(targets.shape, dtype=torch.uint8, device=targets.device)
    u = torch.zeros(targets.shape, dtype=torch.int64, device=targets.device)
    for part, rows in zip(torch.arange(len(targets)).split(ROWS_PER_CHUNK), targets.split(ROWS_PER_CHUNK), strict=True):
        points = (rows / spacing).T.contiguous()  # rows last: every operation then runs along memory
        cost, numbers = _branches(points, low)
        path[part] = _best_path(cost).T
        j = offsets(path[part].long())
        u[part] = numbers.gather(1, j.T.unsqueeze(1)).squeeze(1).T
    return path, u


def _branches(points: Float[Tensor, "G n"], low: Int64[Tensor, " G"]) -> tuple[Tensor, Tensor]:
    """Of each coefficient and grid, the cost of its best integer and that integer's number: (G, 4, n)."""
    j, r = torch.arange(4, device=points.device).view(1, 4, 1), low.view(-1, 1, 1)
    nearest = ((points.unsqueeze(1) - (j - 1.5)) / 4).round()
    costs, numbers = [], []
    for m in (nearest, nearest - nearest.sign()):  # the next one towards 0 may be shorter
        u = torch.minimum(fold(m.long(), j), ((MAX_HIGH + 1) << r) - 1)
        numbers.append(u)
        costs.append((points.unsqueeze(1) - (4 * unfold(u, j) + j - 1.5)).square() + BIT_COST * (u >> r))
    shorter = costs[1] < costs[0]
    return torch.minimum(*costs), torch.where(shorter, numbers[1], numbers[0])


def _best_path(cost: Float[Tensor, "G 4 n"]) -> UInt8[Tensor, "G n"]:
    """The path bits of least total cost. A state is the last `DELAY` path bits, the newest lowest."""
    grids = _grids().to(cost.device)
    if cost.device.type == "cpu" and compiled.there():
        return compiled.search_integers(cost, grids)
    total = cost.new_full((STATES, cost.shape[2]), torch.inf)
    total[0] = 0
    origins = []
    for branch in cost:
        # State q or q + 32 moves to 2 q + bit: (origin, q, bit, row).
        arrivals = total.view(2, STATES // 2, 1, -1) + branch[grids].view(2, STATES // 2, 2, -1)
        best, origin = arrivals.min(0)
        origins.append(origin.to(torch.uint8).view(STATES, -1))
        total = best.view(STATES, -1)
    state = total.argmin(0)
    path = torch.empty(len(cost), cost.shape[2], dtype=torch.uint8, device=cost.device)
    for step in range(len(cost) - 1, -1, -1):
        path[step] = (state & 1).to(torch.uint8)
        origin = origins[step].gather(0, state.unsqueeze(0)).squeeze(0).long()
        state = (state >> 1) | (origin * (STATES // 2))
    return path


@cache
def _grids() -> Int64[Tensor, " 128"]:
    """The grid that a path's last bits choose: by origin, the other bits of the state, new bit."""
    windows = torch.arange(2 * STATES).view(2, STATES // 2, 2)  # the oldest bit highest, the newest lowest
    bits = (windows.unsqueeze(-1) >> torch.arange(DELAY, -1, -1)) & 1
    return offsets(bits.flatten(0, 2))[:, -1]


def integer_bits(scale: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Int64[Tensor, "*shape"]]:
    """Bits of a Gaussian coefficient, and its best number of low bits, at a deviation of 2^scale spacings."""
    bits, low = _bits_by_scale()
    place = ((scale.clamp(LEAST_SCALE, MOST_SCALE) - LEAST_SCALE) * SCALES_PER_OCTAVE).round().long()
    return bits[place.cpu()].to(scale), low[place.cpu()].to(scale.device)


@cache
def _bits_by_scale() -> tuple[Tensor, Tensor]:
    """For deviations from 2^LEAST_SCALE to 2^MOST_SCALE, by numerical integration over the normal quantiles.

    A path chooses between two grids in every state: the two of least cost are taken to be as likely.
    """
    quantiles = torch.special.ndtri((torch.arange(QUANTILES) + 0.5) / QUANTILES)
    best_bits, best_low = [], []
    for i in range(int((MOST_SCALE - LEAST_SCALE) * SCALES_PER_OCTAVE) + 1):
        scale = LEAST_SCALE + i / SCALES_PER_OCTAVE
        # Around the best number of low bits, which grows with the scale.
        tried = range(max(0, int(scale) - 3), min(MAX_LOW, max(0, int(scale))) + 1)
        bits = []
        for r in tried:
            cost, u = _branches((quantiles * 2**scale).unsqueeze(0), torch.tensor([r]))
            chosen = u.gather(1, cost.argsort(1)[:, :2]) >> r
            bits.append(2 + r + float(chosen.double().mean()))
        best_bits.append(min(bits))
        best_low.append(tried[bits.index(min(bits))])
    return torch.tensor(best_bits), torch.tensor(best_low)
