import pytest
import torch

from lighttoken import LighttokenError
from lighttoken.artifact.trellis import unpack_steps
from lighttoken.codec.bound import reverse_water_filling
from lighttoken.codec.lighttoken.plan import assign_tiers, deal_steps, plan_budget, trellis_distortion


def test_reverse_water_filling_by_hand():
    # Variances 4 and 1. At 1 bit, only the first is coded: 4 * 2 ** -2 = 1, level with the second.
    error, rates = reverse_water_filling(torch.tensor([4.0, 1.0]), 1.0)
    assert error == pytest.approx(2.0)
    assert rates.tolist() == pytest.approx([1.0, 0.0])
    # At 3 bits both are, down to a level of 2 * 2 ** -3.
    error, rates = reverse_water_filling(torch.tensor([1.0, 4.0]), 3.0)
    assert error == pytest.approx(2 * 0.25)
    assert rates.tolist() == pytest.approx([1.0, 2.0])
    # White: the one-dimensional bound, four times.
    error, rates = reverse_water_filling(torch.full((4,), 9.0), 8.0)
    assert error == pytest.approx(4 * 9 * 2**-4)
    assert rates.tolist() == pytest.approx([2.0] * 4)


@pytest.mark.parametrize("bits", [0.0, 5.0, 40.0])
def test_reverse_water_filling_spends_its_bits_down_to_one_level(bits):
    spectrum = torch.linspace(3, 0.01, 50)
    error, rates = reverse_water_filling(spectrum, bits)
    assert float(rates.sum()) == pytest.approx(bits, abs=1e-9)
    left = spectrum.double() * 2 ** (-2 * rates)
    coded = left[rates > 0]
    assert error == pytest.approx(float(left.sum()))
    if bits:
        torch.testing.assert_close(coded, coded[:1].expand_as(coded))
        assert float(left.max()) <= float(coded[0]) * (1 + 1e-9)


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
    ("rate", "measured"), [(0.25, 0.735), (1.0, 0.284), (2.0, 0.078), (4.0, 0.0072), (6.0, 0.0006)]
)
def test_the_distortion_is_about_what_was_measured(rate, measured):
    assert float(trellis_distortion(torch.tensor(rate), 12)) == pytest.approx(measured, rel=0.1)
    assert float(trellis_distortion(torch.tensor(0.0), 12)) == 1.0
    assert trellis_distortion(torch.tensor(rate), 8) > trellis_distortion(torch.tensor(rate), 12)


@pytest.fixture
def coordinates():
    return torch.randn(4000, 24) * torch.linspace(2, 0.1, 24) * (torch.rand(4000, 1) + 0.2)


def spent(plan):
    bits = unpack_steps(plan.steps)[1].sum(1)
    return int(bits[plan.tiers.long()].sum())


@pytest.mark.parametrize("ratio", [4, 8, 16, 32])
def test_a_plan_fits_its_budget_and_uses_it(coordinates, ratio):
    budget = coordinates.numel() * 4 // ratio
    plan = plan_budget(coordinates, torch.ones(4000), ratio, overhead=1000, state_bits=12)
    assert plan.nbytes <= budget
    assert plan.nbytes > 0.97 * budget
    assert spent(plan) / 8 < budget


def test_heavy_rows_get_more_bits(coordinates):
    weights = torch.ones(4000)
    weights[:400] = 50
    weights /= weights.mean()
    plan = plan_budget(coordinates, weights, 12.0, overhead=1000, state_bits=12)
    bits = unpack_steps(plan.steps)[1].sum(1)[plan.tiers.long()].float()
    assert float(bits[:400].mean()) > 1.5 * float(bits[400:].mean())


def test_the_plan_keeps_to_what_it_is_told(coordinates):
    plan = plan_budget(coordinates, torch.ones(4000), 12.0, 1000, 12, tiers=3, precision="int8")
    assert (len(plan.steps), plan.precision) == (3, "int8")


def test_a_budget_that_is_too_small_names_the_reachable_ratio(coordinates):
    with pytest.raises(LighttokenError, match=r"cannot be met: .* choose a ratio above 1 and up to \d"):
        plan_budget(coordinates, torch.ones(4000), 350.0, overhead=1000, state_bits=12)


@pytest.mark.parametrize("state_bits", [1, 2, 5, 8])
def test_steps_leave_the_state_some_memory(state_bits):
    steps = deal_steps(torch.linspace(9, 0, 40), state_bits)
    assert max(k for _, k in steps) == max(1, state_bits * 2 // 3)
