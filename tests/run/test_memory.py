import sys

import pytest
import torch

from lighttoken.run.memory import Peak, peak_memory, peak_of_process


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process's memory")
def test_the_peak_is_that_of_the_work_inside():
    with peak_memory() as peak:
        torch.ones(2_000, 5_000)  # freed at once
    assert 0.9 < peak.in_tables(2_000, 5_000) < 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process's memory")
def test_watching_a_piece_of_work_does_not_lose_the_peak_before_it():
    before = peak_of_process()
    torch.ones(before // 4 + 10_000_000)  # freed at once
    with peak_memory():
        pass
    assert peak_of_process() > before + 30_000_000


def test_a_peak_that_is_not_known_has_no_number():
    assert Peak().in_tables(10, 10) is None
