import pytest
import torch

from lighttoken import compress_table
from lighttoken.codec.loss import table_errors
from lighttoken.codec.prior import WordFrequency
from lighttoken.run.measure import common_frequencies, measure_artifact, measure_table


def test_the_singular_values_are_those_of_the_table(table):
    summary = measure_table(table)
    assert (summary["rows"], summary["dim"]) == (1200, 32)
    exact = torch.linalg.svdvals(table)
    index = torch.tensor(summary["singular_values"]["index"])
    torch.testing.assert_close(
        torch.tensor(summary["singular_values"]["value"]), exact[index - 1], rtol=1e-3, atol=1e-3
    )
    assert (index[0], index[-1]) == (1, 32)
    wide = measure_table(torch.randn(2000, 600))["singular_values"]
    assert len(wide["index"]) == len(wide["value"]) <= 128


def test_the_bound_of_white_noise_is_six_decibels_per_bit():
    bound = measure_table(torch.randn(20000, 16))["gaussian_bound"]
    bits = [32 / ratio for ratio in bound["ratio"]]
    for rate, nmse in zip(bits, bound["nmse"], strict=True):
        if rate < 6:
            assert nmse == pytest.approx(4**-rate, rel=0.05)


def test_the_tenths_are_ordered_by_frequency_and_average_to_the_nmse(table):
    compressed = compress_table(table, "svd", ratio=4, progress=False)
    frequencies = torch.rand(len(table))
    errors = measure_artifact(table, compressed, frequencies)
    tenths = errors["nmse_by_frequency_tenth"]
    assert len(tenths) == 10
    assert sum(tenths) / 10 == pytest.approx(compressed.summary["nmse"], rel=1e-4)
    rarest = table_errors(table, compressed.decode(), frequencies)["rarest_nmse"]
    assert tenths[-1] == pytest.approx(rarest, rel=1e-4)
    assert errors["bound_nmse"] < compressed.summary["nmse"]
    assert sum(errors["bytes_by_part"].values()) == compressed.nbytes
    assert "nmse_by_frequency_tenth" not in measure_artifact(table, compressed, None)


@pytest.mark.slow
def test_the_common_frequencies_are_those_of_the_default_prior(tokenizer):
    rows = len(tokenizer)
    frequencies = common_frequencies(tokenizer, rows)
    assert torch.equal(frequencies, WordFrequency().frequencies(tokenizer, rows))
    assert common_frequencies(tokenizer, rows) is frequencies  # counted once
    assert common_frequencies(object(), rows) is None


@pytest.mark.parametrize("scale", [1e-15, 1e10])
def test_the_bound_is_that_of_a_table_of_any_scale(table, scale):
    expected, measured = measure_table(table), measure_table(table * scale + 100 * scale)
    assert measured["gaussian_bound"]["nmse"] == pytest.approx(expected["gaussian_bound"]["nmse"], rel=1e-3)
