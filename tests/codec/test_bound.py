import pytest
import torch

from lighttoken.codec.bound import reverse_water_filling


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
