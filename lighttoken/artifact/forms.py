"""Forms: how one kind of compressed table stores its rows, and how they are read back.

    bits       bits of a linear code, with or without a low-rank part             lighttoken_paper, svd
    trellis    coefficients that a window reads (`trellis_form.py`)               lighttoken
    codebooks  words that choose entries of codebooks                             pq, opq, rq, lsq
    levels     a word for every number of a row, and scales of the row            scalar, hashing_trick
    blocks     words of GGUF's blocks, scales of parts of a block (`blocks.py`)   gguf
    cores      the cores of a tensor train                                        tensor_train

The artifact names its form. A class lists its tensors; all have a `bias` (d,), the row that others are added to.
Letters: V rows of the table, d columns, n rows that are read, m bits or coefficients of a row, k rank, T tiers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import embedding

from lighttoken.artifact.blocks import Blocks
from lighttoken.artifact.form import INDEX, Form, LinearForm, read_bias, read_matrix
from lighttoken.artifact.layout import BYTES, FLOATS, HALVES, Layout, Tensors, bias_layout, matrix_layout, shape_of
from lighttoken.artifact.packing import dequantize, read_words, unpack_bits, word_bits
from lighttoken.artifact.trellis_form import Trellis

HASH = 2654435761  # Knuth's multiplicative hash: 2^32 over the golden ratio


@dataclass(frozen=True)
class Bits(LinearForm):
    """Bits of a linear code, and a low-rank part.

    codes    (V, m/8) uint8          the bits of each row, packed
    decoder  (m, d)                  what a bit adds to a row
    left     (V, k), optional        coordinates of the low-rank part
    right    (k, d), optional        its directions
    Matrices are in a float precision, or integers with a `.scale` per row (`left`: per column).
    """

    name: ClassVar[str] = "bits"
    required: ClassVar[tuple[str, ...]] = ("codes", "decoder", "bias")
    shared: ClassVar[tuple[str, ...]] = ("decoder", "bias")
    factors: ClassVar[tuple[str, ...]] = ("left", "right")
    scaled: ClassVar[tuple[str, ...]] = ("decoder", "right")

    def layout(self, tensors: Tensors, vocab_size: int, dim: int) -> Layout:
        m, _ = shape_of(tensors, "decoder", 2)
        layout = bias_layout(tensors, dim) | matrix_layout(tensors, "decoder", m, dim)
        layout["codes"] = ((vocab_size, -(-m // 8)), BYTES)
        if {"left", "right"} & tensors.keys():
            rank, _ = shape_of(tensors, "right", 2)
            layout |= matrix_layout(tensors, "right", rank, dim)
            layout |= matrix_layout(tensors, "left", vocab_size, rank, scales=(1, rank))
        return layout

    def basis(self, tensors: Tensors, dim: int) -> Float[Tensor, "m d"]:
        parts = [read_matrix(tensors, name, dim) for name in ("decoder", "right") if name in tensors]
        return torch.cat(parts)

    def coordinates(self, ids: Int64[Tensor, " n"], tensors: Tensors) -> Float[Tensor, "n m"]:
        bits = unpack_bits(tensors["codes"][ids], len(tensors["decoder"])).float()
        if "left" not in tensors:
            return bits
        left = dequantize(embedding(ids, tensors["left"]), tensors.get("left.scale"), len(tensors["right"]))
        return torch.cat([bits, left], 1)


@dataclass(frozen=True)
class Codebooks(Form):
    """Words that choose entries of codebooks.

    codes      (V, bytes) uint8       M words of b bits, packed
    codebooks  (M, 2^b, w) float16    entries of w numbers, which lie side by side until a row is full; each further d/w
                                      words add a layer on top (w = d: additive quantizers, a layer for every word)
    rotation   (d, d), optional       multiplied from the right
    """

    name: ClassVar[str] = "codebooks"
    required: ClassVar[tuple[str, ...]] = ("codes", "codebooks", "bias")
    shared: ClassVar[tuple[str, ...]] = ("bias", "codebooks", "rotation")
    scaled: ClassVar[tuple[str, ...]] = ("codebooks",)

    def layout(self, tensors: Tensors, vocab_size: int, dim: int) -> Layout:
        count, size, width = shape_of(tensors, "codebooks", 3)
        if not (count and width) or dim % width or count % (dim // width):
            raise ValueError(f"{count} codebooks of width {width} do not fill rows of {dim}")
        layout = bias_layout(tensors, dim) | {"codebooks": ((count, size, width), FLOATS)}
        layout["codes"] = ((vocab_size, -(-count * word_bits(size) // 8)), BYTES)
        return layout | ({"rotation": ((dim, dim), FLOATS)} if "rotation" in tensors else {})

    def read(self, ids: Int64[Tensor, " n"], tensors: Tensors, dim: int) -> Float[Tensor, "n d"]:
        count, size, width = tensors["codebooks"].shape
        words = read_words(tensors["codes"][ids], count, word_bits(size))
        # One table of all entries: word i of a row looks into the i-th part of it.
        positions = words + size * torch.arange(count, device=words.device)
        entries = embedding(positions, tensors["codebooks"].float().view(-1, width))
        rows = entries.unflatten(1, (-1, dim // width)).sum(1).flatten(1)
        rows = rows @ tensors["rotation"].float() if "rotation" in tensors else rows
        return read_bias(tensors, dim) + rows


@dataclass(frozen=True)
class Levels(Form):
    """A word of b bits for every number of a row.

    codes      (R, bytes) uint8       d words of b bits, packed
    levels     (2^b,)                 what a word stands for, times
    row_scale  (R, G)                 the scale of the row, or of each of the G equal parts of it
    kept       (V/8,), optional       one bit per id: ids that have a row of their own; all others share the first row
    With R < V and without `kept`, ids of the same hash share a row.
    """

    name: ClassVar[str] = "levels"
    required: ClassVar[tuple[str, ...]] = ("codes", "levels", "row_scale", "bias")
    shared: ClassVar[tuple[str, ...]] = ("bias", "levels")
    factors: ClassVar[tuple[str, ...]] = ("row_scale",)
    scaled: ClassVar[tuple[str, ...]] = ("row_scale",)

    def layout(self, tensors: Tensors, vocab_size: int, dim: int) -> Layout:
        (size,), (rows, parts) = shape_of(tensors, "levels", 1), shape_of(tensors, "row_scale", 2)
        if not 1 <= rows <= vocab_size:
            raise ValueError(f"{rows} rows for {vocab_size} ids")
        if not parts or dim % parts:
            raise ValueError(f"{parts} scales for a row of {dim} numbers")
        layout = bias_layout(tensors, dim) | {"levels": ((size,), FLOATS), "row_scale": ((rows, parts), FLOATS)}
        layout["codes"] = ((rows, -(-dim * word_bits(size) // 8)), BYTES)
        return layout | ({"kept": ((-(-vocab_size // 8),), BYTES)} if "kept" in tensors else {})

    def check(self, tensors: Tensors, vocab_size: int, dim: int) -> None:
        if "kept" in tensors:
            rows, marks = len(tensors["row_scale"]), int(unpack_bits(tensors["kept"], vocab_size).sum())
            if rows != marks + 1:
                raise ValueError(f"{rows} rows for {marks} ids that have their own")

    def index(self, tensors: Tensors, vocab_size: int, dim: int) -> dict[str, Tensor]:
        if "kept" in tensors:
            kept = unpack_bits(tensors["kept"].cpu(), vocab_size)
            return {f"{INDEX}rows": kept.cumsum(0).mul_(kept)}
        rows = len(tensors["row_scale"])
        return {f"{INDEX}rows": hashed_rows(vocab_size, rows)} if rows < vocab_size else {}

    def read(self, ids: Int64[Tensor, " n"], tensors: Tensors, dim: int) -> Float[Tensor, "n d"]:
        if f"{INDEX}rows" in tensors:
            ids = tensors[f"{INDEX}rows"][ids]
        levels = tensors["levels"].float()
        words = read_words(tensors["codes"][ids], dim, word_bits(len(levels)))
        scales = embedding(ids, tensors["row_scale"].float())
        rows = levels[words].unflatten(1, (scales.shape[1], -1)) * scales.unsqueeze(2)
        return read_bias(tensors, dim) + rows.flatten(1)


@dataclass(frozen=True)
class Cores(Form):
    """A tensor train.

    codes, core1, core2   (r, v, w, r') float16
    Digit i of an id to the bases v picks a matrix (w, r, r') of core i; their products are the row's numbers.
    """

    name: ClassVar[str] = "cores"
    required: ClassVar[tuple[str, ...]] = ("codes", "core1", "core2", "bias")
    shared: ClassVar[tuple[str, ...]] = ("bias", "core1", "core2")
    cores: ClassVar[tuple[str, ...]] = ("codes", "core1", "core2")
    scaled: ClassVar[tuple[str, ...]] = ("codes",)

    def layout(self, tensors: Tensors, vocab_size: int, dim: int) -> Layout:
        shapes, ids, width, rank = {name: shape_of(tensors, name, 4) for name in self.cores}, 1, 1, 1
        for name, (first, v, w, last) in shapes.items():
            if first != rank:
                raise ValueError(f"{name} has shape {shapes[name]} where the rank is {rank}")
            ids, width, rank = ids * v, width * w, last
        (_, v, w, rank1), (*_, rank2), (_, v2, w2, _) = shapes.values()
        if rank1 > v * w or rank2 > v2 * w2:  # no decomposition needs more; a few bytes would ask for much memory
            raise ValueError(f"the cores have ranks {rank1} and {rank2} instead of at most {v * w} and {v2 * w2}")
        if ids < vocab_size or width != dim or rank != 1:
            raise ValueError(f"the cores make {rank} tables ({ids}, {width}) instead of one ({vocab_size}, {dim})")
        return bias_layout(tensors, dim) | {name: (shape, HALVES) for name, shape in shapes.items()}

    def read(self, ids: Int64[Tensor, " n"], tensors: Tensors, dim: int) -> Float[Tensor, "n d"]:
        # The matrices that the digits pick, (r, n, w, r') each; the last digit counts ones.
        matrices, rest = [], ids
        for core in (tensors[name] for name in reversed(self.cores)):
            matrices.append(core.float()[:, rest % core.shape[1]])
            rest = torch.div(rest, core.shape[1], rounding_mode="floor")
        # Their products, from the first core on.
        rows = matrices.pop().squeeze(0)  # (n, w, r)
        while matrices:
            rows = torch.einsum("nxa,anwb->nxwb", rows, matrices.pop()).flatten(1, 2)
        return read_bias(tensors, dim) + rows.squeeze(2)


FORMS: dict[str, type[Form]] = {form.name: form for form in (Bits, Trellis, Codebooks, Levels, Blocks, Cores)}


def make_form(description: Mapping[str, Any]) -> Form:
    """Undo `Form.describe`. Raises ValueError for what describes no form."""
    values = dict(description)
    name = values.pop("name", None)
    if not isinstance(name, str) or name not in FORMS:
        raise ValueError(f"form is {name!r} instead of one of {', '.join(FORMS)}")
    expected = sorted(field.name for field in fields(FORMS[name]))
    if sorted(values) != expected or any(type(value) is not int for value in values.values()):
        raise ValueError(f"form {name} has {values} instead of integers for {expected}")
    return FORMS[name](**values)


def hashed_rows(vocab_size: int, rows: int) -> Int64[Tensor, " V"]:
    """The row of each id, out of fewer rows, by its hash."""
    return torch.arange(vocab_size).mul_(HASH).remainder_(2**32).remainder_(rows)  # in place: ids may be many
