import pytest
import torch

from lighttoken import LighttokenError
from lighttoken.codec.interface import Budget
from lighttoken.codec.paper.plan import CODE_EFFICIENCY, plan_budget, predict_error, split_bits


def by_bisection(spectrum: list[float], bits: float) -> float:
    """Reverse water-filling by searching for the level: sum over directions of min(level, variance)."""
    low, high = 0.0, max(spectrum)
    for _ in range(200):
        level = (low + high) / 2
        spent = sum(max(0.0, 0.5 * torch.log2(torch.tensor(v / level)).item()) for v in spectrum if v > 0)
        low, high = (level, high) if spent > bits else (low, level)
    return sum(min(high, v) for v in spectrum)


@pytest.mark.parametrize("m", [8, 24, 64])
def test_prediction_is_reverse_water_filling(m):
    spectrum = [4.0, 2.0, 1.0, 0.25, 0.01]
    expected = by_bisection(spectrum, CODE_EFFICIENCY * m)
    assert predict_error(torch.tensor(spectrum), 0, m, "int4") == pytest.approx(expected, rel=1e-4)


def test_prediction_by_hand():
    # Variances 4 and 1, b ideal bits. Both coded: level 2 * 2 ** -b each.
    bits = 4 * CODE_EFFICIENCY
    assert predict_error(torch.tensor([4.0, 1.0]), 0, 4, "int8") == pytest.approx(2 * 2 * 2**-bits)
    # Variances 4 and 0.01, 1 bit at the code's efficiency: the first alone is coded.
    one_bit = 4 * 2 ** (-2 * CODE_EFFICIENCY) + 0.01
    assert predict_error(torch.tensor([4.0, 0.01]), 0, 1, "int8") == pytest.approx(one_bit)


def test_exact_factors_take_their_directions_away():
    spectrum = torch.tensor([4.0, 2.0, 1.0])
    assert predict_error(spectrum, 2, 0, "float32") == pytest.approx(1.0)
    assert predict_error(spectrum, 3, 0, "int4") == pytest.approx(0.013 * 7)


@pytest.mark.parametrize(("m", "most"), [(400, 112), (104, 112), (8, 112), (112, 112), (120, 112), (40, 12), (16, 4)])
def test_stages_share_whole_bytes_evenly(m, most):
    stages = split_bits(m, most)
    assert sum(stages) == m
    assert all(stage % 8 == 0 and 0 < stage <= max(most, 8) for stage in stages)
    assert max(stages) - min(stages) <= 8


def plan(ratio: float, rows: int = 1000, **changes):
    settings = {
        "spectrum": torch.linspace(2, 0.1, 16),
        "budget": Budget("lighttoken_paper", (rows, 16), ratio, description_bytes=0),
        "measure": lambda k, m: 300 + 500 * k + (125 + 16) * m,
        "rank": None,
        "stage_bits": 16,
        "coefficient_precision": "int4",
    }
    return plan_budget(**(settings | changes))


def test_stages_that_take_words_to_describe_are_counted():
    chosen = plan(5, measure=lambda k, m: 300 + 500 * k + 141 * m + 900 * len(split_bits(m, 16)))
    spent = 300 + 500 * chosen.rank + 141 * sum(chosen.stages) + 900 * len(chosen.stages)
    assert spent <= 12800


@pytest.mark.parametrize("rank", [-1, 17])
def test_a_rank_outside_the_table_is_refused(rank):
    with pytest.raises(LighttokenError, match=f"rank {rank} is not between 0 and the table's width 16"):
        plan(5, rank=rank)


def test_a_table_too_small_to_compress_says_so():
    with pytest.raises(
        LighttokenError, match="reaches up to 0.7 on a table of shape .*; the table is too small to compress"
    ):
        plan(2, rows=16)


@pytest.mark.parametrize("ratio", [2, 5, 10, 20])
def test_the_plan_fits_and_one_byte_a_row_more_would_not(ratio):
    chosen = plan(ratio)
    measured = 300 + 500 * chosen.rank + 141 * sum(chosen.stages)
    assert measured <= 64000 / ratio
    assert measured + 8 * 141 > 64000 / ratio or sum(chosen.stages) == 8 * 16


def test_a_given_rank_is_kept():
    assert plan(5, rank=3).rank == 3


def test_no_stages_means_the_largest_rank_that_fits():
    chosen = plan(20, stage_bits=0)
    assert (chosen.rank, chosen.stages) == (5, ())


def test_a_ratio_out_of_reach_names_the_range():
    with pytest.raises(
        LighttokenError,
        match=r"ratio 100 cannot be met: lighttoken_paper reaches up to 44\.8 on .*; choose ratio=44\.8 or",
    ):
        plan(100)
    with pytest.raises(LighttokenError, match=r"up to 10\.7"):
        plan(100, rank=9)
