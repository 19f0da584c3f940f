"""Forms: how one kind of compressed table stores its rows, and how they are read back.

    bits       bits of a linear code, with or without a low-rank part             lighttoken_paper, svd
    trellis    coefficients that a window reads from a stream of bits             lighttoken
    codebooks  words that choose entries of codebooks                             pq, opq, rq, lsq
    levels     a word for every number of a row, and scales of the row            scalar, hashing_trick
    blocks     words of GGUF's blocks, scales of parts of a block (`blocks.py`)   gguf
    cores      the cores of a tensor train                                        tensor_train

The artifact names its form. A class lists its tensors; all have a `bias` (d,), the row that others are added to.
Letters: V rows of the table, d columns, n rows that are read, m bits or coefficients of a row, k rank, T tiers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn.functional import embedding

from lighttoken.artifact.blocks import Blocks
from lighttoken.artifact.compiled import read_rows
from lighttoken.artifact.form import INDEX, Form, LinearForm, read_bias, read_matrix
from lighttoken.artifact.integers import MAX_HIGH, integer_steps, least_lengths, read_integers, unpack_lengths
from lighttoken.artifact.integers import make_index as integer_index
from lighttoken.artifact.layout import (
    BYTES,
    FLOATS,
    HALVES,
    INT8,
    SCALES,
    Layout,
    Tensors,
    bias_layout,
    matrix_layout,
    shape_of,
)
from lighttoken.artifact.packing import dequantize, read_words, unpack_bits, unpack_levels, word_bits
from lighttoken.artifact.relations import MAPS, check_links, read_related
from lighttoken.artifact.trellis import LEAD, MAX_STATE_BITS, MAX_TIERS, make_index, unpack_steps, unpack_tiers

HASH = 2654435761  # Knuth's multiplicative hash: 2^32 over the golden ratio
INTEGERS = "integers."  # prefix of what the integer code adds to `INDEX`


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
class Trellis(LinearForm):
    """The trellis code of `artifact.trellis`.

    codes    (N,) uint8              the stream of the bits of all rows
    tiers    (bytes,) uint8          the tier of each row, packed
    steps    (T, s) uint8            what each tier's bits mean
    gain     (T, s) int8             the scale of each step's coefficients, with `.scale` (T, 1)
    decoder  (bytes,) uint8          what a coefficient adds to a row: levels (m, d), packed, with `.scale` (m, 1)
    integers (N,) uint8, optional    the stream of `artifact.integers`, where the steps say that there are integers
    lengths  (bytes,) uint8          the bits of each row in it, packed
    maps     (bytes,) uint8, opt.    what a row's parent says of it (`artifact.relations`): levels (m, `MAPS`), packed,
                                     with `.scale` (m, 1)
    relations (8,) uint8             hash of the relations, which follow from the tokenizer
    links    (bytes,) uint8, opt.    the relations themselves, where there is no tokenizer, packed
    """

    name: ClassVar[str] = "trellis"
    required: ClassVar[tuple[str, ...]] = ("codes", "tiers", "steps", "gain", "gain.scale", "decoder", "bias")
    shared: ClassVar[tuple[str, ...]] = ("decoder", "bias")
    factors: ClassVar[tuple[str, ...]] = ("gain",)
    scaled: ClassVar[tuple[str, ...]] = ("decoder",)
    state_bits: int = 12  # of the window: 2 ** state_bits states

    def layout(self, tensors: Tensors, vocab_size: int, dim: int) -> Layout:
        if not 1 <= self.state_bits <= MAX_STATE_BITS:
            raise ValueError(f"state_bits is {self.state_bits} instead of 1 to {MAX_STATE_BITS}")
        coded = "decoder" in tensors and tensors["decoder"].ndim == 1
        m, _ = shape_of(tensors, "decoder.scale" if coded else "decoder", 2)
        if m > dim:
            raise ValueError(f"a decoder of {m} rows for a table of {dim} columns")
        tiers, steps = shape_of(tensors, "steps", 2)
        if not (1 <= tiers <= MAX_TIERS and 1 <= steps <= max(m, 1)):
            raise ValueError(f"steps has shape {(tiers, steps)} instead of 1 to {MAX_TIERS} tiers of 1 to {m} steps")
        layout = bias_layout(tensors, dim)
        if coded:
            layout |= {"decoder": (shape_of(tensors, "decoder", 1), BYTES), "decoder.scale": ((m, 1), SCALES)}
        else:  # before format 6
            layout |= matrix_layout(tensors, "decoder", m, dim)
        layout |= {"steps": ((tiers, steps), BYTES), "gain": ((tiers, steps), INT8), "gain.scale": ((tiers, 1), SCALES)}
        if "maps" in tensors:
            layout |= {"maps.scale": ((m, 1), SCALES), "relations": ((8,), BYTES)}
        optional = ("integers", "lengths", "maps", "links")
        streams = ["codes", "tiers", *(name for name in optional if name in tensors)]
        return layout | {name: (shape_of(tensors, name, 1), BYTES) for name in streams}

    def check(self, tensors: Tensors, vocab_size: int, dim: int) -> None:
        m, steps, tiers = self._rank(tensors), tensors["steps"], unpack_tiers(tensors["tiers"], vocab_size)
        read_matrix(tensors, "decoder", dim)
        if "maps" in tensors:
            read_matrix(tensors, "maps", MAPS)
        if "links" in tensors:
            check_links(tensors["links"], tensors["relations"], vocab_size)
        if int(tiers.max()) >= len(steps):
            raise ValueError(f"rows of tier {int(tiers.max())} and steps of shape {tuple(steps.shape)}")
        vectors, bits = unpack_steps(steps)
        if int((vectors.cumsum(1) * (bits > 0)).max()) > m:
            raise ValueError(f"steps lead beyond the decoder's {m} rows")
        rows = torch.bincount(tiers, minlength=len(steps))  # of each tier
        length = LEAD + -(-int((rows * bits.sum(1).cpu()).sum()) // 8)
        if len(tensors["codes"]) != length:
            raise ValueError(f"codes has shape {tuple(tensors['codes'].shape)} instead of {(length,)}")
        counts, low = integer_steps(steps)
        if bool(counts.any()) != ("integers" in tensors):
            raise ValueError("integers in the steps or in the tensors, and not in both")
        if "integers" in tensors:
            lengths = self._lengths(tensors, tiers.cpu())
            most = int((counts * (MAX_HIGH + 2)).max() + low.sum(1).max())
            if int(lengths.max()) > most or len(tensors["integers"]) != -(-int(lengths.sum()) // 8):
                raise ValueError(
                    f"integers has shape {tuple(tensors['integers'].shape)}, which the lengths do not fill"
                )

    def index(self, tensors: Tensors, vocab_size: int, dim: int) -> dict[str, Tensor]:
        tiers, steps = unpack_tiers(tensors["tiers"].cpu(), vocab_size), tensors["steps"].cpu()
        index = make_index(tiers, steps, self.state_bits, self._rank(tensors))
        if tensors["decoder"].ndim == 1:
            levels = unpack_levels(tensors["decoder"], self._rank(tensors), dim, "decoder")
            index["levels"] = levels if bool((levels.abs() > 127).any()) else levels.to(torch.int8)
        if "maps" in tensors:
            index["maps"] = read_matrix(tensors, "maps", MAPS)
        if "integers" in tensors:
            integers = integer_index(self._lengths(tensors, tiers), *integer_steps(steps))
            index |= {INTEGERS + name: tensor for name, tensor in integers.items()}
        return {INDEX + name: tensor for name, tensor in index.items()}

    def basis(self, tensors: Tensors, dim: int) -> Float[Tensor, "m d"]:
        if tensors["decoder"].ndim == 1:  # else it is trained, or of an earlier format
            return tensors[INDEX + "levels"].float() * tensors["decoder.scale"]
        return read_matrix(tensors, "decoder", dim)

    def coordinates(self, ids: Int64[Tensor, " n"], tensors: Tensors) -> Float[Tensor, "n m"]:
        index = {name.removeprefix(INDEX): tensor for name, tensor in tensors.items() if name.startswith(INDEX)}
        gain = read_matrix(tensors, "gain", tensors["steps"].shape[1])
        if "integers" not in tensors:
            return read_rows(ids, tensors["codes"], gain, index, related="maps" in tensors)
        if "maps" not in tensors:
            return self._with_integers(ids, tensors, index, gain)
        read = partial(self._with_integers, tensors=tensors, index=index, gain=gain)
        return read_related(ids, index["relations"], index["maps"], read)

    def _with_integers(self, ids: Int64[Tensor, " n"], tensors: Tensors, index: Tensors, gain: Tensor) -> Tensor:
        """What both streams of rows decode to, (n, m)."""
        coefficients = read_rows(ids, tensors["codes"], gain, index)
        of_integers = {name.removeprefix(INTEGERS): tensor for name, tensor in index.items()}
        integers = read_integers(ids, index["tiers"][ids].long(), tensors["integers"], gain, of_integers)
        return coefficients + torch.nn.functional.pad(integers, (0, coefficients.shape[1] - integers.shape[1]))

    def _rank(self, tensors: Tensors) -> int:
        """Rows of the decoder."""
        return len(tensors["decoder" if tensors["decoder"].ndim == 2 else "decoder.scale"])

    def _lengths(self, tensors: Tensors, tiers: UInt8[Tensor, " V"]) -> Int64[Tensor, " V"]:
        """Bits of the rows in the stream of integers."""
        return unpack_lengths(tensors["lengths"], least_lengths(*integer_steps(tensors["steps"].cpu()))[tiers.long()])


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
