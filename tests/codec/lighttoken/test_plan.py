import pytest
import torch

from lighttoken import LighttokenError
from lighttoken.artifact.trellis import unpack_steps
from lighttoken.codec.interface import Budget
from lighttoken.codec.lighttoken.plan import assign_tiers, deal_steps, plan_budget
from lighttoken.codec.lighttoken.rates import trellis_distortion


def test_tiers_rise_with_importance_and_part_what_lies_apart():
    importance = torch.tensor([1.0, 1.1, 100.0, 0.9, 110.0, 1e4])
    assert assign_tiers(importance, 3).tolist() == [0, 0, 1, 0, 1, 2]
    assert assign_tiers(importance, 1).tolist() == [0] * 6
    many = assign_tiers(torch.rand(1000).exp(), 8)
    assert many.dtype == torch.uint8
    assert int(many.max()) == 7


def test_rows_without_energy_are_in_the_lowest_tier():
    importance = torch.cat([torch.zeros(50), torch.rand(50) + 1])
    assert int(assign_tiers(importance, 4)[:50].max()) == 0


@pytest.mark.parametrize("most", [0.3, 1.0, 3.0, 7.0])
def test_steps_spend_the_bits_of_the_rates_in_order(most):
    rates = torch.linspace(most, 0, 96)
    steps = deal_steps(rates, 12)
    assert all(vector in (1, 2, 4, 8) and 0 <= k <= 8 for vector, k in steps)
    assert sum(k for _, k in steps) == pytest.approx(float(rates.sum()), abs=1.5)
    covered = 0
    for vector, k in steps:
        assert k == pytest.approx(float(rates[covered : covered + vector].sum()), abs=1.01)
        covered += vector
    assert covered <= 96


def test_no_rate_is_no_step():
    assert deal_steps(torch.zeros(20), 12) == []


@pytest.mark.parametrize(
    ("rate", "gap"), [(0.25, 0.13), (0.5, 0.24), (1.0, 0.43), (2.0, 0.85), (4.0, 1.54), (6.0, 2.7), (7.0, 4.44)]
)
def test_the_distortion_is_about_what_was_measured(rate, gap):
    """Gaps in dB of steps whose window is full, on 1,024 Gaussian rows."""
    measured = 2 ** (-2 * rate) * 10 ** (gap / 10)
    assert float(trellis_distortion(torch.tensor(rate), 12)) == pytest.approx(measured, rel=0.1)
    assert float(trellis_distortion(torch.tensor(0.0), 12)) == 1.0
    assert trellis_distortion(torch.tensor(rate), 8) > trellis_distortion(torch.tensor(rate), 12)


@pytest.fixture
def coordinates():
    return torch.randn(4000, 24) * torch.linspace(2, 0.1, 24) * (torch.rand(4000, 1) + 0.2)


def plan_at(coordinates, ratio, weights=None, **choices):
    budget = Budget("lighttoken", tuple(coordinates.shape), ratio, description_bytes=1000)
    weights = torch.ones(len(coordinates)) if weights is None else weights
    return plan_budget(coordinates, weights, budget, state_bits=12, lengths=torch.ones(24), **choices)


def spent(plan):
    bits = unpack_steps(plan.steps)[1].sum(1)
    return int(bits[plan.tiers.long()].sum())


@pytest.mark.parametrize("ratio", [4, 8, 16, 32])
def test_a_plan_fits_its_budget_and_uses_it(coordinates, ratio):
    budget = coordinates.numel() * 4 // ratio - 1000
    plan = plan_at(coordinates, ratio)
    assert plan.nbytes <= budget
    assert plan.nbytes > 0.97 * budget
    assert spent(plan) / 8 < budget


def test_a_direction_must_pay_for_its_row_of_the_decoder():
    """Wide tables of few rows: a row of the decoder costs as much as the codes of many rows."""
    rows = torch.randn(400, 256) * torch.linspace(2, 1, 256)
    weights, lengths = torch.ones(400), torch.ones(256)
    few = plan_budget(rows, weights, Budget("lighttoken", (400, 256), 40.0, 1000), 12, lengths)
    many = plan_budget(rows.repeat(20, 1), torch.ones(8000), Budget("lighttoken", (8000, 256), 40.0, 1000), 12, lengths)
    assert few.rank < many.rank / 2


def test_the_decoder_is_finest_where_most_coefficients_are_large(coordinates):
    spacing = plan_at(coordinates, 8).spacing
    assert bool((spacing.diff() > 0).all())


def test_heavy_rows_get_more_bits(coordinates):
    weights = torch.ones(4000)
    weights[:400] = 50
    weights /= weights.mean()
    plan = plan_at(coordinates, 12.0, weights)
    bits = unpack_steps(plan.steps)[1].sum(1)[plan.tiers.long()].float()
    assert float(bits[:400].mean()) > 1.5 * float(bits[400:].mean())


def test_the_plan_keeps_to_given_choices(coordinates):
    plan = plan_at(coordinates, 12.0, tiers=3)
    assert len(plan.steps) == 3


def test_a_budget_that_is_too_small_names_the_reachable_ratio(coordinates):
    with pytest.raises(LighttokenError, match=r"cannot be met: lighttoken reaches up to [\d.]+ on .*; choose ratio=\d"):
        plan_at(coordinates, 350.0)


@pytest.mark.parametrize("state_bits", [1, 2, 5, 8])
def test_steps_leave_the_state_some_memory(state_bits):
    steps = deal_steps(torch.linspace(9, 0, 40), state_bits)
    assert max(k for _, k in steps) == max(1, state_bits * 2 // 3)
