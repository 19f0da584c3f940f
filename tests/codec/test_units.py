"""Tables of any scale and any common mean: the same codes, and errors that are the true ones."""

import pytest
import torch

from lighttoken import LighttokenError, compress_table
from lighttoken.artifact.table import ERRORS
from lighttoken.codec.baselines.svd import SVD
from lighttoken.codec.lighttoken.method import LightToken
from lighttoken.codec.loss import table_errors
from lighttoken.codec.units import Units, find_units

SVD_FLOAT16 = SVD(coefficient_precision="float16", matrix_precision="float16")

QUICK = LightToken(state_bits=6, tiers=2)


def compress(table, codec=QUICK, **settings):
    return compress_table(table, codec, 8.0, progress=False, **settings)


def true_nmse(table, compressed):
    table = table.double()
    return float((compressed.decode() - table).square().mean() / table.var())


@pytest.mark.parametrize("factor", [2.0**-13, 1.0, 100.0])
def test_ordinary_tables_are_left_as_they_are(table, factor):
    units = find_units(table * factor)
    assert units == Units()
    assert units.normalise(table) is table


@pytest.mark.parametrize("codec", [QUICK, "scalar", "hashing_trick", "vocabulary_pruning"])
@pytest.mark.parametrize("exponent", [36, -66])
def test_a_power_of_two_changes_the_scale_of_the_rows_alone(table, codec, exponent):
    first, second = compress(table * 2.0**30, codec), compress(table * 2.0**exponent, codec)
    torch.testing.assert_close(
        second.decode().double() * 2.0**-exponent, first.decode().double() * 2.0**-30, rtol=1e-6, atol=1e-6
    )
    assert second.summary == first.summary


@pytest.mark.parametrize("codec", [QUICK, "scalar", "svd", "tensor_train"])
def test_a_common_mean_does_not_hurt(table, codec):
    shifted = table - table.mean(0) + 1e4
    compressed = compress(shifted, codec)
    assert compressed.summary["nmse"] == pytest.approx(true_nmse(shifted, compressed), rel=1e-4)
    # The float32 bias takes bytes that svd, whose sizes are few, spends on one component more.
    assert compressed.summary["nmse"] < 1.2 * compress(table - table.mean(0), codec).summary["nmse"]
    assert compressed.tensors["bias"].dtype == torch.float32


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_errors_are_the_true_ones_at_any_scale(table, scale):
    rows = table + 0.1 * torch.randn_like(table)
    errors, expected = (table_errors(table * f, rows * f, torch.ones(1200)) for f in (scale, 1.0))
    assert errors == pytest.approx(expected, abs=2e-6)
    assert tuple(errors) == ERRORS


@pytest.mark.parametrize("codec", [QUICK, "scalar", "svd"])
def test_a_constant_table_is_kept_exactly(codec):
    compressed = compress(torch.full((1200, 32), 3.3), codec)
    assert bool((compressed.decode() == torch.tensor(3.3)).all())
    assert compressed.summary["nmse"] == 0


def test_weights_of_any_scale_are_the_same_weights(table):
    weights = torch.rand(1200) + 0.1
    expected = compress(table, weights=weights)._files
    assert compress(table, weights=weights.double() * 2.0**-200)._files == expected
    assert compress(table, weights=weights * 2.0**126)._files == expected


def test_a_scale_that_float16_cannot_hold_is_refused_with_the_factor_that_cures_it(table):
    with pytest.raises(
        LighttokenError, match=r"2\*\*-63, which the artifact's 'right' cannot hold in float16;"
    ) as seen:
        compress(table * 1e-20, SVD_FLOAT16)
    assert "multiply the table by 2**63" in str(seen.value)
    assert len(str(seen.value)) < 300
    assert compress(table * 1e-20 * 2.0**63, SVD_FLOAT16).summary["nmse"] < 0.6


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("make", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, lambda t: t.T.contiguous().T])
def test_a_table_of_another_layout_is_made_dense(table, make):
    assert compress(make(table), "svd")._files == compress(table, "svd")._files


@pytest.mark.filterwarnings("ignore:.*quantize", "ignore:.*nested")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: t.to("meta"), "a table on the meta device has no numbers; load the checkpoint's weights first"),
        (lambda t: t.double() * 1e100, r"up to 6.\d+e\+100, beyond what float32 holds; scale the table down"),
        (lambda t: t.double() * 1e-100, r"up to 6.\d+e-100 only, too small for float32 .*; scale the table up"),
        (lambda t: t + 0j, r"got torch.complex64 of shape \(1200, 32\)"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.quint8), "a quantized tensor; pass a plain one"),
        (lambda t: torch.nested.nested_tensor([t, t[:3]]), "a nested tensor; pass a plain one"),
    ],
)
def test_what_has_no_numbers_that_float32_holds_is_refused(table, make, message):
    with pytest.raises(LighttokenError, match=message):
        compress(make(table), "svd")
