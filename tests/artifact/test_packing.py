import pytest
import torch

from lighttoken import LighttokenError
from lighttoken.artifact.packing import (
    MAX_LEVEL,
    dequantize,
    pack_bits,
    pack_levels,
    quantize,
    rounded,
    stored_bytes,
    unpack_bits,
    unpack_levels,
)
from lighttoken.codec.paper.plan import PRECISION_ERROR


@pytest.mark.parametrize("m", [0, 1, 7, 8, 9, 24, 61])
def test_bits_survive_packing(m):
    bits = torch.rand(50, m) > 0.5
    codes = pack_bits(bits)
    assert codes.dtype == torch.uint8
    assert codes.shape == (50, -(-m // 8))
    assert torch.equal(unpack_bits(codes, m).bool(), bits)


def test_bit_order_is_lowest_first():
    assert pack_bits(torch.tensor([[1, 0, 1, 0, 0, 0, 0, 0, 1]])).tolist() == [[0b101, 1]]


@pytest.mark.parametrize("scale_dim", [0, 1])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "int4"])
@pytest.mark.parametrize("columns", [1, 4, 5])
def test_quantized_error_is_that_of_the_precision(precision, scale_dim, columns):
    matrix = torch.randn(20000, columns) * 0.01 if scale_dim else torch.randn(columns, 20000) * 0.01
    restored = dequantize(*quantize(matrix, precision, scale_dim), matrix.shape[1])
    nmse = (restored - matrix).square().mean() / matrix.square().mean()
    assert nmse <= 1.15 * PRECISION_ERROR[precision] + (1e-6 if precision == "float16" else 0)
    if precision.startswith("int"):
        assert nmse >= 0.7 * PRECISION_ERROR[precision]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_levels_times_scale_come_back_exactly(precision):
    largest = {"int8": 127, "int4": 7}[precision]
    matrix = torch.tensor([[-largest, 0, 3, largest]]).float() * 0.5
    assert torch.equal(dequantize(*quantize(matrix, precision, 0), 4), matrix)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "int4"])
@pytest.mark.parametrize(("shape", "scale_dim"), [((0, 5), 0), ((7, 0), 1), ((6, 4), 0), ((5, 7), 0), ((5, 7), 1)])
def test_stored_bytes_are_those_of_the_tensors(shape, precision, scale_dim):
    values, scale = quantize(torch.randn(shape), precision, scale_dim)
    assert stored_bytes(*shape, precision, scale_dim) == values.nbytes + (0 if scale is None else scale.nbytes)


@pytest.mark.parametrize("spread", [0.3, 4.0, 500.0])
def test_deflated_levels_come_back_in_about_their_entropy(spread):
    levels = (torch.randn(40, 500) * spread).round().clamp(-MAX_LEVEL, MAX_LEVEL)
    packed = pack_levels(levels)
    assert torch.equal(unpack_levels(packed, 40, 500, "it"), levels.to(torch.int16))
    shares = levels.unique(return_counts=True)[1] / levels.numel()
    entropy = -float((shares * shares.log2()).sum())
    # A code word has a bit at least; the two bytes of wide levels are coded one without the other.
    assert 8 * packed.nbytes / levels.numel() < max(entropy, 1) * (1.35 if spread > 100 else 1.08) + 0.05


def test_deflated_levels_at_the_ends_of_their_range():
    levels = torch.tensor([[MAX_LEVEL, -MAX_LEVEL, 0], [128, -128, 1]])
    assert torch.equal(unpack_levels(pack_levels(levels), 2, 3, "it"), levels.to(torch.int16))
    matrix, scale = torch.tensor([[1e9, -1e9, 0.3]]), torch.tensor([[0.1]])
    assert torch.equal(dequantize(*quantize(matrix, "deflated", scale=scale), 3), rounded(matrix, "deflated", scale))


@pytest.mark.parametrize(("rows", "columns"), [(2, 4), (3, 3), (1, 2)])
def test_deflated_levels_of_another_shape_are_refused(rows, columns):
    with pytest.raises(ValueError, match="it of .* bytes instead of"):
        unpack_levels(pack_levels(torch.ones(2, 3)), rows, columns, "it")


def test_no_levels_are_deflated_too():
    assert unpack_levels(pack_levels(torch.zeros(0, 3)), 0, 3, "it").shape == (0, 3)


def test_int4_takes_half_a_byte():
    values, scale = quantize(torch.randn(10, 6), "int4", 1)
    assert values.shape == (10, 3)
    assert values.nbytes == 30
    assert scale.shape == (1, 6)


def test_a_slice_of_zeros_stays_zero():
    matrix = torch.zeros(4, 3)
    assert torch.equal(dequantize(*quantize(matrix, "int8", 1), 3), matrix)


def test_unknown_precision_names_the_choices():
    with pytest.raises(LighttokenError, match="'int3'; choose one of float32, float16, int8, int4"):
        quantize(torch.zeros(1, 1), "int3", 0)
