from dataclasses import replace

import pytest
import torch

from lighttoken import LighttokenError, compress_table
from lighttoken.artifact.blocks import FORMATS
from lighttoken.codec.baselines.gguf import GGUF, quantize_blocks

BITS = {"Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K": 5.5, "Q4_K": 4.5, "Q4_0": 4.5, "Q3_K": 3.4375, "Q2_K": 2.625}  # of ggml
# nmse of `normal_table` with ggml's own functions (llama-cpp-python 0.3.36, gcc -O2).
NMSE = {
    "Q8_0": 2.86e-5,
    "Q6_K": 3.146e-4,
    "Q5_K": 1.299e-3,
    "Q4_K": 5.104e-3,
    "Q4_0": 7.405e-3,
    "Q3_K": 0.02272,
    "Q2_K": 0.08812,
}


@pytest.fixture(scope="module")
def normal_table():
    table = torch.randn(400, 512, generator=torch.Generator().manual_seed(0)) * 0.04
    table[5], table[7, :32], table[9] = 0, 0, table[9].abs()
    return table


def compress(table, name, ratio=1.5):
    return compress_table(table, GGUF(format=name), ratio, progress=False)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_has_the_bits_and_the_error_of_ggml(normal_table, name):
    compressed = compress(normal_table, name)
    stored = sum(tensor.nbytes for other, tensor in compressed.tensors.items() if other != "bias")
    assert stored * 8 == BITS[name] * normal_table.numel()
    assert compressed.summary["nmse"] == pytest.approx(NMSE[name], rel=5e-3, abs=5e-7)
    assert not compressed.decode([5]).any()


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_rows_are_those_of_the_package_gguf(normal_table, name):
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[name]
    rows = gguf.quants.dequantize(gguf.quants.quantize(normal_table.numpy(), kind), kind)
    assert torch.equal(compress(normal_table, name).decode(), torch.from_numpy(rows))


@pytest.mark.parametrize("name", ["Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K"])
def test_blocks_run_over_the_ends_of_rows(name):
    table = torch.randn(37, 96)  # 37 * 96 numbers are 13 blocks and a part of one
    entry = FORMATS[name]
    numbers = torch.nn.functional.pad(table.flatten(), (0, -table.numel() % 256)).view(-1, entry.parts, entry.part)
    words, steps, block_scale = quantize_blocks(numbers, entry)
    scales = block_scale.float().unsqueeze(1) * (steps.float() - (0 if entry.minimum else 1 << (entry.scale_bits - 1)))
    rows = words.float() - (0 if entry.minimum else 1 << (entry.bits - 1))
    rows = rows * scales[..., :1] - (scales[..., 1:] if entry.minimum else 0)
    expected = rows.flatten()[: table.numel()].view(37, 96)
    compressed = compress(table, name)
    torch.testing.assert_close(compressed.decode(), expected)
    assert compressed.tensors["block_scale"].shape == (14, 1 + entry.minimum)


def test_the_largest_format_that_fits_is_taken(normal_table):
    for ratio, name in ((3.0, "Q8_0"), (4.5, "Q6_K"), (6.9, "Q4_K"), (9.0, "Q3_K"), (11.5, "Q2_K")):
        assert compress(normal_table, None, ratio).summary["format"] == name
    with pytest.raises(LighttokenError, match=r"ratio 12 cannot be met: gguf reaches up to 11\.\d on"):
        compress(normal_table, None, 12)
    with pytest.raises(LighttokenError, match=r"ratio 5 cannot be met: gguf reaches up to 4\.\d on"):
        compress(normal_table, "Q6_K", 5)


def test_a_width_that_a_format_cannot_have_and_an_unknown_format_are_refused():
    with pytest.raises(LighttokenError, match="the table has width 48, Q4_K needs a multiple of 32; choose"):
        compress(torch.randn(500, 48), "Q4_K")
    with pytest.raises(LighttokenError, match="the table has width 8, GGUF needs a multiple of 16; choose"):
        compress(torch.randn(500, 8), None)
    with pytest.raises(LighttokenError, match="format is 'Q4_K_M'; choose one of Q8_0, Q6_K, .*, or null"):
        GGUF(format="Q4_K_M")
    compressed = compress(torch.randn(500, 48), None)
    assert compressed.summary["format"] == "Q6_K"
    odd = compressed.tensors | {"codes": compressed.tensors["codes"][:, :-1]}
    with pytest.raises(
        ValueError, match="rows of 35 bytes, blocks of 1 scales instead of those of a format for width 48"
    ):
        replace(compressed, tensors=odd).check()
