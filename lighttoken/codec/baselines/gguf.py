"""The row formats of GGUF, in which llama.cpp and its users store tables."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lighttoken.artifact.blocks import FORMATS, BlockFormat, Blocks
from lighttoken.artifact.packing import pack_words
from lighttoken.codec.interface import Budget, Codec, Importance, Reporter
from lighttoken.codec.shapes import Fitted, Table
from lighttoken.errors import LighttokenError

BLOCKS_PER_CHUNK = 4096  # so that work space stays small next to the table
LEAST_SCALE = 1e-15  # GROUP_MAX_EPS of ggml: a part of smaller scales is 0
# Of make_qkx2_quants, by bits: the least and the most that is added to the number of levels in the search of the scale.
SEARCH = {2: (-0.5, 1.0), 4: (-1.0, 1.0), 5: (-0.5, 1.0)}


@dataclass(frozen=True)
class GGUF(Codec):
    """The formats of ggml (Gerganov et al., `ggml-quants.c`, the functions quantize_row_*_ref of 2024 to 2026).

    The same: scales, minima and numbers, found as those functions find them, and as many bits. Differs: blocks of 256
    run over the ends of rows where the width is no multiple of 256; llama.cpp stores such a table in a larger format
    (Q4_K becomes Q5_0, Q6_K becomes Q8_0). llama.cpp can also weigh columns by calibration texts; here all weigh the
    same.
    """

    name: str = "gguf"
    format: str | None = None
    form = Blocks()

    def __post_init__(self) -> None:
        if self.format not in (None, *FORMATS):
            raise LighttokenError(f"format is {self.format!r}; choose one of {', '.join(FORMATS)}, or null")

    def fit(self, table: Table, importance: Importance, budget: Budget, reporter: Reporter) -> Fitted:
        """The format, or the largest that fits."""
        vocab_size, dim = table.shape
        named = FORMATS.values() if self.format is None else [FORMATS[self.format]]
        usable = [entry for entry in named if dim % entry.part == 0]
        if not usable:
            raise LighttokenError(
                f"the table has width {dim}, {self.format or 'GGUF'} needs a multiple of "
                f"{min(entry.part for entry in named)}; choose codec=scalar"
            )
        entry = budget.largest((entry, _nbytes(entry, vocab_size, dim)) for entry in usable)
        numbers = torch.nn.functional.pad(table.flatten(), (0, -table.numel() % (entry.part * entry.parts)))
        blocks = numbers.view(-1, entry.parts, entry.part).split(BLOCKS_PER_CHUNK)
        bar = reporter.bar(blocks, description=entry.name, unit="chunk")
        words, scales, block_scale = map(torch.cat, zip(*(quantize_blocks(part, entry) for part in bar), strict=True))
        tensors = {
            "codes": pack_rows(words.flatten()[: table.numel()].view(vocab_size, dim), entry.bits),
            "block_scale": block_scale,
            "bias": torch.zeros(dim).half(),
        }
        if entry.scale_bits:
            parts = scales.flatten(0, 1)[: vocab_size * dim // entry.part].view(vocab_size, dim // entry.part, -1)
            tensors["scales"] = pack_words(parts.transpose(1, 2).flatten(1), entry.scale_bits)
        return tensors, {"format": entry.name}


def _nbytes(entry: BlockFormat, vocab_size: int, dim: int) -> int:
    shapes = entry.shapes(vocab_size, dim)
    return (
        sum(rows * columns * (2 if name == "block_scale" else 1) for name, (rows, columns) in shapes.items()) + 2 * dim
    )


def pack_rows(words: Tensor, bits: int) -> Tensor:
    """`pack_words`, some rows at a time: it takes eight times the memory of the words for every bit."""
    return torch.cat([pack_words(part, bits) for part in words.split(BLOCKS_PER_CHUNK)])


def quantize_blocks(x: Tensor, entry: BlockFormat) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks (n, parts, part) as words of numbers, of the same shape, words of scales (n, parts, kinds), both uint8,
    and float16 scales of blocks (n, kinds), where kinds is 2 with a minimum and 1 without.
    """
    if entry.minimum:
        return _with_minimum(x, entry)
    half = 1 << (entry.bits - 1)
    if not entry.scale_bits:
        largest = _largest(x)
        scale = largest.abs() / 127 if entry.bits == 8 else largest / -half
        # ggml rounds halves of Q8_0 away from 0, and those of Q4_0 up.
        levels = x * _inverse(scale)
        words = (
            levels.abs().add(0.5).floor() * levels.sign() + half if entry.bits == 8 else (levels + half + 0.5).floor()
        )
        return _words(words, entry.bits), torch.empty(*x.shape[:2], 0, dtype=torch.uint8), scale.squeeze(2).half()
    # The scale of each part, the scale of the block from the largest of them, then the numbers.
    scales = _search_q3(x) if entry.bits == 3 else _search(x, half)
    top = 1 << (entry.scale_bits - 1)
    largest = _largest(scales.transpose(1, 2))
    block_scale = torch.where(largest.abs() < LEAST_SCALE, 0.0, largest / -top).half()
    steps = (scales * _inverse(largest / -top)).round().clamp(-top, top - 1)
    words = (x * _inverse(block_scale.float() * steps)).round() + half
    return _words(words, entry.bits), _words(steps + top, entry.scale_bits), block_scale.squeeze(2)


def _with_minimum(x: Tensor, entry: BlockFormat) -> tuple[Tensor, Tensor, Tensor]:
    found = torch.stack(_search_with_minimum(x, entry.bits), 2).squeeze(3)  # scale and minimum: (n, parts, 2)
    top = (1 << entry.scale_bits) - 1
    largest = found.amax(1, keepdim=True)
    block_scale = (largest / top).half()
    steps = (found * (top * _inverse(largest))).round().clamp(0, top)
    scale, minimum = (block_scale.float() * steps).unsqueeze(3).unbind(2)
    words = _words(((x + minimum) * _inverse(scale)).round(), entry.bits)
    return words, _words(steps, entry.scale_bits), block_scale.squeeze(1)


def _search_with_minimum(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and minimum, both from 0 on, of each part (.., part): make_qkx2_quants."""
    top, (first, last) = (1 << bits) - 1, SEARCH[bits]
    size = x.abs()
    weights = size if bits == 2 else size + x.square().mean(-1, keepdim=True).sqrt()
    low, high = x.amin(-1, keepdim=True).clamp_max(0), x.amax(-1, keepdim=True)
    total, moment = weights.sum(-1, keepdim=True), (weights * x).sum(-1, keepdim=True)

    def error(words: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
        off = words * scale + minimum - x
        return (weights * (off.abs() if bits == 2 else off.square())).sum(-1, keepdim=True)

    scale, minimum = (high - low) / top, low
    least = error(((x - low) * _inverse(scale)).round().clamp(0, top), scale, minimum)
    for added in torch.arange(round((last - first) * 10) + 1).mul(0.1).add(first).tolist():
        words = ((x - minimum) * ((added + top) * _inverse(high - minimum))).round().clamp(0, top)  # the best so far
        weighted = weights * words
        s1, s2, sx = (t.sum(-1, keepdim=True) for t in (weighted, weighted * words, weighted * x))
        determinant = total * s2 - s1 * s1
        fitted = (total * sx - moment * s1) / determinant, (s2 * moment - s1 * sx) / determinant
        above = fitted[1] > 0
        fitted = torch.where(above, sx / s2, fitted[0]), torch.where(above, 0.0, fitted[1])
        new = error(words, *fitted)
        better = (determinant > 0) & (new < least)
        least, scale, minimum = (
            torch.where(better, a, b) for a, b in zip((new, *fitted), (least, scale, minimum), strict=True)
        )
    return scale, -minimum


def _search(x: Tensor, half: int) -> Tensor:
    """Scale of each part, numbers weighted by their squares: make_qx_quants with rmse_type 1."""
    largest, weights = _largest(x), x.square()
    scale, best = torch.zeros_like(largest), torch.full_like(largest, -torch.inf)
    for added in (0, *range(-9, 0), *range(1, 10)):
        words = (x * (-(half + 0.1 * added) * _inverse(largest))).round().clamp(-half, half - 1)
        sx, s2 = _moments(weights, words, x)
        better = (s2 > 0) & (sx * sx > best * s2)
        scale, best = torch.where(better, sx / s2, scale), torch.where(better, sx / s2 * sx, best)
    return scale


def _search_q3(x: Tensor) -> Tensor:
    """Scale of each part, numbers improved one after another: make_q3_quants."""
    half, weights = 4, x.square()
    words = (x * (-half * _inverse(_largest(x)))).round().clamp(-half, half - 1)
    sx, s2 = _moments(weights, words, x)
    for _ in range(5):
        for i in range(x.shape[-1]):
            at, w, word = x[..., i : i + 1], weights[..., i : i + 1], words[..., i : i + 1]
            rest_x, rest_2 = sx - w * at * word, s2 - w * word * word
            new = (at * rest_2 / rest_x).round().clamp(-half, half - 1)
            new_x, new_2 = rest_x + w * at * new, rest_2 + w * new * new
            better = (rest_x > 0) & (new_2 > 0) & (new_x * new_x * s2 > sx * sx * new_2)
            sx, s2 = torch.where(better, new_x, sx), torch.where(better, new_2, s2)
            words[..., i : i + 1] = torch.where(better, new, word)
    return torch.where(s2 > 0, sx / s2, 0.0)


def _moments(weights: Tensor, words: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    weighted = weights * words
    return (weighted * x).sum(-1, keepdim=True), (weighted * words).sum(-1, keepdim=True)


def _largest(x: Tensor) -> Tensor:
    """The number of largest magnitude, with its sign."""
    return x.gather(-1, x.abs().argmax(-1, keepdim=True))


def _inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 for 0."""
    return torch.where(x == 0, 0.0, 1 / x)


def _words(words: Tensor, bits: int) -> Tensor:
    return words.clamp(0, (1 << bits) - 1).to(torch.uint8)
