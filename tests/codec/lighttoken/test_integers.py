"""The search of the integer code: against all paths, and against the rate-distortion bound."""

import itertools
import math

import torch

from lighttoken.artifact.integers import offsets, pack_rows, unfold
from lighttoken.codec.lighttoken.integers import BIT_COST, DISTORTION, integer_bits, search_integers


def cost(targets, spacing, low, path, u):
    j = offsets(path)
    decoded = (4 * unfold(u, j) + j - 1.5) * spacing
    return ((targets - decoded) / spacing).square().sum(1) + BIT_COST * (u >> low).sum(1)


def test_no_path_and_no_integer_is_better():
    generator = torch.Generator().manual_seed(0)
    low, spacing = torch.tensor([1, 1, 0, 0, 0, 0, 0, 0]), torch.linspace(0.1, 1, 8)
    targets = torch.randn(6, 8, generator=generator) * 6 * spacing
    path, u = search_integers(targets, spacing, low)
    found = cost(targets, spacing, low, path.long(), u)
    for bits in itertools.product((0, 1), repeat=8):
        other = torch.tensor(bits).expand(6, 8)
        j = offsets(other)
        nearest = (targets / spacing - (j - 1.5)) / 4
        best = torch.full((6, 8), torch.inf)
        for shift in (-1, 0, 1):
            m = (nearest.round() + shift).long()
            folded = torch.where(torch.where(j < 2, m, -m) > 0, 2 * m.abs() - 1, 2 * m.abs())
            error = ((targets / spacing) - (4 * m + j - 1.5)).square() + BIT_COST * (folded >> low)
            best = torch.minimum(best, error)
        assert bool((found <= best.sum(1) + 1e-4).all())


def test_a_gaussian_costs_the_bits_and_leaves_the_error_that_the_planner_expects():
    targets = torch.randn(400, 96, generator=torch.Generator().manual_seed(0))
    for octaves in (1.6, 3.2, 6.5):  # of the deviation over the spacing
        bits, low = integer_bits(torch.full((96,), octaves))
        spacing = torch.full((96,), 2.0**-octaves)
        path, u = search_integers(targets, spacing, low)
        _, lengths = pack_rows(path, u, low)
        j = offsets(path.long())
        error = float((targets - (4 * unfold(u, j) + j - 1.5) * spacing).square().mean())
        rate = float(lengths.float().mean()) / 96
        assert abs(rate - float(bits[0])) < 0.05
        assert abs(error / (DISTORTION * 4**-octaves) - 1) < 0.1
        assert 10 * math.log10(error * 4**rate) < 1.3  # dB from the rate-distortion bound
