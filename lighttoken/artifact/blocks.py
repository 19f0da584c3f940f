"""The form of GGUF's row formats: small integers, a scale for each part of a block, a float16 scale for the block."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import embedding

from lighttoken.artifact.form import Form, read_bias
from lighttoken.artifact.layout import BYTES, HALVES, Layout, Tensors, bias_layout, shape_of
from lighttoken.artifact.packing import read_words


class BlockFormat(NamedTuple):
    """A format of GGUF. Its name follows from the bits of a number and from whether parts have a minimum."""

    name: str
    bits: int  # of a number
    minimum: bool  # a part has a minimum, and its numbers count from there; else they lie around 0
    part: int  # numbers that share a scale
    parts: int  # of a block
    scale_bits: int  # of a part's scale, and of its minimum; 0: the block is one part, with the block's scale

    def shapes(self, vocab_size: int, dim: int) -> dict[str, tuple[int, int]]:
        """The shapes of the tensors of `Blocks`, without the bias, for a width that is a multiple of `part`."""
        parts, kinds = dim // self.part, 1 + self.minimum
        shapes = {
            "codes": (vocab_size, -(-dim * self.bits // 8)),
            "block_scale": (-(-vocab_size * parts // self.parts), kinds),
        }
        return shapes | ({"scales": (vocab_size, -(-kinds * parts * self.scale_bits // 8))} if self.scale_bits else {})


FORMATS = {  # by name, from the most bits to the fewest; of two of the same size the better one is the last
    entry.name: entry
    for entry in (
        BlockFormat("Q8_0", 8, False, 32, 1, 0),
        BlockFormat("Q6_K", 6, False, 16, 16, 8),
        BlockFormat("Q5_K", 5, True, 32, 8, 6),
        BlockFormat("Q4_0", 4, False, 32, 1, 0),
        BlockFormat("Q4_K", 4, True, 32, 8, 6),
        BlockFormat("Q3_K", 3, False, 16, 16, 6),
        BlockFormat("Q2_K", 2, True, 16, 16, 4),
    )
}


@dataclass(frozen=True)
class Blocks(Form):
    """The numbers of a format of GGUF (ggml, `block_q8_0` and others): as many bits as there, in an order of ours.

    codes        (V, d bits/8) uint8          d words of b bits, packed
    scales       (V, bytes) uint8, K formats  scales of the row's parts, then their minima, as words
    block_scale  (N, 1 or 2) float16          what a part's scale, and its minimum, are multiplied by
    The parts of all rows, one after another, make N blocks: the end of a row need not be the end of a block.
    """

    name: ClassVar[str] = "blocks"
    required: ClassVar[tuple[str, ...]] = ("codes", "block_scale", "bias")
    shared: ClassVar[tuple[str, ...]] = ("bias",)
    factors: ClassVar[tuple[str, ...]] = ("block_scale",)
    scaled: ClassVar[tuple[str, ...]] = ("block_scale",)

    def layout(self, tensors: Tensors, vocab_size: int, dim: int) -> Layout:
        entry = _format_of(tensors, dim)
        types = {"codes": BYTES, "scales": BYTES, "block_scale": HALVES}
        shapes = entry.shapes(vocab_size, dim)
        return bias_layout(tensors, dim) | {name: (shape, types[name]) for name, shape in shapes.items()}

    def read(self, ids: Int64[Tensor, " n"], tensors: Tensors, dim: int) -> Float[Tensor, "n d"]:
        entry = _format_of(tensors, dim)
        parts, kinds = dim // entry.part, 1 + entry.minimum
        # The scale of each part, and its minimum: (n, parts, kinds).
        positions = ids.unsqueeze(1) * parts + torch.arange(parts, device=ids.device)
        blocks = torch.div(positions, entry.parts, rounding_mode="floor")
        scales = embedding(blocks, tensors["block_scale"].float())
        if entry.scale_bits:
            words = read_words(tensors["scales"][ids], kinds * parts, entry.scale_bits).unflatten(1, (kinds, parts))
            scales = scales * (words - (0 if entry.minimum else 1 << (entry.scale_bits - 1))).transpose(1, 2)
        # The numbers, from the minimum or around 0.
        words = read_words(tensors["codes"][ids], dim, entry.bits).unflatten(1, (parts, entry.part))
        lowest = scales[..., 1:] if entry.minimum else (1 << (entry.bits - 1)) * scales
        return read_bias(tensors, dim) + (words * scales[..., :1] - lowest).flatten(1)


def _format_of(tensors: Tensors, dim: int) -> BlockFormat:
    """The format of the tensors, from their shapes. Raises ValueError if there is none."""
    (_, width), (_, kinds) = shape_of(tensors, "codes", 2), shape_of(tensors, "block_scale", 2)
    for entry in FORMATS.values():
        if dim % entry.part == 0 and (width * 8, kinds) == (dim * entry.bits, 1 + entry.minimum):
            return entry
    raise ValueError(f"rows of {width} bytes, blocks of {kinds} scales instead of those of a format for width {dim}")
