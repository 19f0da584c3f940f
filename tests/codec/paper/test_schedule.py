import pytest

from lighttoken.codec.paper.schedule import Cosine, Exponential, Linear


@pytest.mark.parametrize("schedule", [Exponential(2.0, 0.01), Linear(2.0, 0.01), Cosine(2.0, 0.01)])
def test_schedules_fall_from_start_to_end(schedule):
    temperatures = [schedule(i / 20) for i in range(21)]
    assert temperatures[0] == pytest.approx(2.0)
    assert temperatures[-1] == pytest.approx(0.01)
    assert temperatures == sorted(temperatures, reverse=True)


def test_midpoints_are_geometric_arithmetic_and_arithmetic():
    assert Exponential(1.0, 0.01)(0.5) == pytest.approx(0.1)
    assert Linear(1.0, 0.0)(0.5) == pytest.approx(0.5)
    assert Cosine(1.0, 0.0)(0.5) == pytest.approx(0.5)
    assert Cosine(1.0, 0.0)(0.25) > Linear(1.0, 0.0)(0.25)
