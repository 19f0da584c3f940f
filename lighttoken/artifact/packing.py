"""How numbers are stored: bits eight to a byte, bytes deflated, matrices in a float or an integer precision."""

import zlib
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int16, Int64, Shaped, UInt8
from torch import Tensor

from lighttoken.errors import LighttokenError

Precision = Literal["float32", "float16", "int8", "int4"]  # that settings of codecs may ask for
Stored = Literal[Precision, "deflated"]
MAX_LEVEL = 2**15 - 1  # of deflated integers
_LEVELS = {"int8": 127, "int4": 7, "deflated": MAX_LEVEL}  # largest level of a symmetric quantizer, levels are -n..n
_PRECISIONS: dict[torch.dtype, Precision] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.int8: "int8",
    torch.uint8: "int4",
}
_BIT = torch.arange(8, dtype=torch.uint8)


def pack_bits(bits: Shaped[Tensor, "*rows m"]) -> UInt8[Tensor, "*rows bytes"]:
    """Pack bits, 0 or 1, eight to a byte; bit j of byte i is column 8i + j."""
    padding = -bits.shape[-1] % 8
    grouped = torch.nn.functional.pad(bits.to(torch.uint8), (0, padding)).unflatten(-1, (-1, 8))
    return (grouped << _BIT.to(bits.device)).sum(-1, dtype=torch.uint8)


def unpack_bits(codes: UInt8[Tensor, "*rows bytes"], m: int) -> UInt8[Tensor, "*rows m"]:
    """Undo `pack_bits` for m bits."""
    return (torch.bitwise_right_shift(codes.unsqueeze(-1), _BIT.to(codes.device)) & 1).flatten(-2)[..., :m]


def word_bits(size: int) -> int:
    """Bits of a word that chooses one of `size` entries. Raises ValueError unless `size` is a power of two."""
    bits = size.bit_length() - 1
    if size < 2 or size != 1 << bits:
        raise ValueError(f"{size} is not a power of two from 2 on")
    return bits


def pack_words(words: Shaped[Tensor, "n M"], bits: int) -> UInt8[Tensor, "n bytes"]:
    """Pack words, from 0 to 2^bits - 1, one after another, lowest bit first."""
    shifts = torch.arange(bits, device=words.device)
    return pack_bits((torch.bitwise_right_shift(words.long().unsqueeze(-1), shifts) & 1).flatten(1))


def read_words(codes: UInt8[Tensor, "n bytes"], count: int, bits: int) -> Int64[Tensor, "n M"]:
    """Undo `pack_words` for `count` words."""
    if bits == 8:
        return codes.long()
    values = 1 << torch.arange(bits, device=codes.device)
    return (unpack_bits(codes, count * bits).unflatten(-1, (count, bits)).long() * values).sum(-1)


def deflate(values: UInt8[Tensor, " n"], strategies: Sequence[int] = (zlib.Z_DEFAULT_STRATEGY,)) -> UInt8[Tensor, " _"]:
    """Bytes, deflated by the strategy that makes the fewest of them."""
    options = []
    for strategy in strategies:
        stream = zlib.compressobj(9, memLevel=9, strategy=strategy)
        options.append(stream.compress(values.cpu().numpy().tobytes()) + stream.flush())
    return torch.frombuffer(bytearray(min(options, key=len)), dtype=torch.uint8)


def inflate(packed: UInt8[Tensor, " bytes"], count: int, name: str, planes: int = 1) -> UInt8[Tensor, " _"]:
    """Undo `deflate`: `count` bytes of `name`, or a multiple of them, up to `planes`.

    Raises ValueError if there is another number of bytes; unpacks no more than these.
    """
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(packed.cpu().numpy().tobytes(), count * planes + 1)
    except zlib.error as error:
        raise ValueError(f"{name}: {error}") from error
    wrong = len(content) not in range(count, count * planes + 1, count)
    if wrong or not stream.eof or stream.unused_data:
        found = len(content) if wrong and len(content) <= count * planes else "more"
        raise ValueError(f"{name} of {found} bytes instead of {count}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def quantize(
    matrix: Float[Tensor, "rows columns"],
    precision: Stored | str,
    scale_dim: int = 0,
    scale: Float[Tensor, "_ _"] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Store a matrix in a precision: its values, and float32 scales or None for a float precision.

    Integers are symmetric and uniform: value = level * scale, one scale per slice along `scale_dim`
    (0: one per row, scales (rows, 1); 1: one per column, scales (1, columns)). The scale of each slice is the one
    of least squared error among 32 clippings of its largest magnitude, unless a `scale` is given. int4 packs two levels
    to a byte. `deflated` needs a scale: its levels have up to 16 bits and are stored by `pack_levels`.
    """
    if precision not in get_args(Stored):
        raise LighttokenError(f"unknown precision {precision!r}; choose one of {', '.join(get_args(Precision))}")
    if precision not in _LEVELS:
        return matrix.to(getattr(torch, precision)), None
    n = _LEVELS[precision]
    if scale is None:
        scale = _best_scale(matrix, n, scale_dim)
    levels = _round(matrix, scale, n)
    if precision == "deflated":
        return pack_levels(levels), scale
    return (_pack_nibbles(levels.to(torch.int8)) if precision == "int4" else levels.to(torch.int8)), scale


def rounded(matrix: Float[Tensor, "rows columns"], precision: Stored, scale: Tensor | None) -> Tensor:
    """What `dequantize` returns for the values of a matrix, given its scale; it packs nothing."""
    if scale is None:
        return matrix.to(getattr(torch, precision)).float()
    return _round(matrix, scale, _LEVELS[precision]) * scale


def precision_of(values: Tensor) -> Stored:
    """The precision of values that `quantize` returned."""
    return "deflated" if values.dtype == torch.uint8 and values.ndim == 1 else _PRECISIONS[values.dtype]


def pack_levels(levels: Shaped[Tensor, "rows columns"]) -> UInt8[Tensor, " bytes"]:
    """Integers of 16 bits, deflated: 0, -1, 1, -2, ... become 0, 1, 2, 3, ...; low bytes, then the high ones if any.

    Deflate's Huffman codes give a level the bits that its share asks for, anew after every 32,768 bytes: rows in the
    order of their spread are coded best. Runs, as of high bytes, may be shortened; other repeats are chance here.
    """
    folded = torch.where(levels < 0, -2 * levels - 1, 2 * levels).int().flatten()
    planes = [folded & 255] + ([folded >> 8] if bool((folded > 255).any()) else [])
    return deflate(torch.cat(planes).to(torch.uint8), (zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE))


def unpack_levels(packed: UInt8[Tensor, " bytes"], rows: int, columns: int, name: str) -> Int16[Tensor, "rows columns"]:
    """Undo `pack_levels`. Raises ValueError if the bytes do not hold so many levels."""
    if rows * columns == 0:
        return torch.zeros(rows, columns, dtype=torch.int16)
    planes = inflate(packed, rows * columns, name, planes=2).int().view(-1, rows, columns)
    folded = planes[0] + 256 * planes[1:].sum(0)
    return torch.where(folded % 2 == 1, -(folded + 1) // 2, folded // 2).to(torch.int16)


def _best_scale(matrix: Tensor, n: int, scale_dim: int) -> Tensor:
    largest = matrix.abs().amax(1 - scale_dim, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    best_scale, best_error = largest / n, torch.full_like(largest, torch.inf)
    for clip in torch.linspace(0.25, 1.0, 32).tolist():
        scale = largest * (clip / n)
        error = (_round(matrix, scale, n) * scale - matrix).square().sum(1 - scale_dim, keepdim=True)
        best_scale = torch.where(error < best_error, scale, best_scale)
        best_error = torch.minimum(error, best_error)
    return best_scale.float()


def stored_bytes(rows: int, columns: int, precision: Precision, scale_dim: int) -> int:
    """Bytes of the tensors that `quantize` returns for a matrix (rows, columns)."""
    if precision in ("float32", "float16"):
        return rows * columns * getattr(torch, precision).itemsize
    row = -(-columns // 2) if precision == "int4" else columns
    return rows * row + 4 * (columns if scale_dim else rows)


def dequantize(values: Tensor, scale: Tensor | None, columns: int) -> Tensor:
    """Undo `quantize`: a float32 matrix (rows, columns)."""
    if scale is None:
        return values.float()
    if precision_of(values) == "deflated":
        return unpack_levels(values, len(scale), columns, "levels").to(scale.device) * scale
    levels = _unpack_nibbles(values, columns) if values.dtype == torch.uint8 else values
    return levels.float() * scale


def _round(matrix: Tensor, scale: Tensor, n: int) -> Tensor:
    return (matrix / scale).round().clamp(-n, n)


def _pack_nibbles(levels: Tensor) -> Tensor:
    pairs = torch.nn.functional.pad(levels + 8, (0, levels.shape[-1] % 2)).to(torch.uint8).unflatten(-1, (-1, 2))
    return pairs[..., 0] | (pairs[..., 1] << 4)


def _unpack_nibbles(packed: Tensor, columns: int) -> Tensor:
    return (
        torch.stack([packed & 15, torch.bitwise_right_shift(packed, 4)], -1).flatten(-2)[..., :columns].to(torch.int8)
        - 8
    )
