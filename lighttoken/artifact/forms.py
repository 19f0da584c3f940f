"""Forms of a compressed table without hash codes, for the baselines: what `codes` is, and how a row is read from it.

A row is its bias plus what one of these reads; the tensors that are there tell which one it is.

`codebooks` (M, 2^b, w): `codes` are M words of b bits. The words choose entries of w numbers, which lie side by side
    until a row is full; each further d/w words add another layer on top. w = d: additive quantizers, one layer a word.
    `rotation` (d, d), if there, is multiplied from the right.
`levels` (2^b,): `codes` are a word of b bits for every number of a row, times the row's scale, `row_scale` (R, 1).
    With R < V rows are shared: those marked in `kept` (one bit per id) have their own and all others the first one, or,
    without marks, ids share a row if they have the same hash.
`core1`: `codes` and `core1`, `core2`, ... are the cores of a tensor train, (r, v, w, r') each. Digit i of an id to the
    bases v picks a matrix (w, r, r') of core i; their products are the row's numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding

from lighttoken.artifact.packing import read_words, unpack_bits, word_bits

HASH = 2654435761  # Knuth's multiplicative hash: 2^32 over the golden ratio

Tensors = Mapping[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Form:
    """How one form is read and checked."""

    read: Callable[[Tensor, Tensors, int], Tensor]  # of ids (n,), tensors and d: rows (n, d), less the bias
    shapes: Callable[[Tensors, int, int], Shapes]  # of tensors, V and d: what they should be like; raises ValueError
    index: Callable[[Tensors, int], dict[str, Tensor]]  # of tensors and V: what `read` needs next to what is stored


def find_form(tensors: Tensors) -> Form | None:
    """The form of these tensors; None for hash codes."""
    return next((form for name, form in FORMS.items() if name in tensors), None)


def hashed_rows(vocab_size: int, rows: int) -> Tensor:
    """The row (V,) int64 of each id, out of fewer rows, by its hash."""
    return torch.arange(vocab_size) * HASH % 2**32 % rows


def _read_entries(ids: Tensor, tensors: Tensors, dim: int) -> Tensor:
    count, size, width = tensors["codebooks"].shape
    words = read_words(tensors["codes"][ids], count, word_bits(size))
    places = words + size * torch.arange(count, device=words.device)
    entries = embedding(places, tensors["codebooks"].float().view(-1, width))
    rows = entries.unflatten(1, (-1, dim // width)).sum(1).flatten(1)
    return rows @ tensors["rotation"].float() if "rotation" in tensors else rows


def _entry_shapes(stored: Tensors, vocab_size: int, dim: int) -> Shapes:
    count, size, width = stored["codebooks"].shape
    if dim % width or count % (dim // width):
        raise ValueError(f"{count} codebooks of width {width} do not fill rows of {dim}")
    code = -(-count * word_bits(size) // 8)
    return {"codes": (vocab_size, code), "codebooks": (count, size, width), "rotation": (dim, dim)}


def _read_levels(ids: Tensor, tensors: Tensors, dim: int) -> Tensor:
    if "index.places" in tensors:
        ids = tensors["index.places"][ids]
    levels = tensors["levels"].float()
    words = read_words(tensors["codes"][ids], dim, word_bits(len(levels)))
    return levels[words] * embedding(ids, tensors["row_scale"].float())


def _level_shapes(stored: Tensors, vocab_size: int, dim: int) -> Shapes:
    size, rows = len(stored["levels"]), len(stored["row_scale"])
    if "kept" in stored and rows != (marks := int(unpack_bits(stored["kept"], vocab_size).sum())) + 1:
        raise ValueError(f"{rows} rows for {marks} ids that have their own")
    if rows > vocab_size:
        raise ValueError(f"{rows} rows for {vocab_size} ids")
    code = -(-dim * word_bits(size) // 8)
    return {"codes": (rows, code), "levels": (size,), "row_scale": (rows, 1), "kept": (-(-vocab_size // 8),)}


def _places(stored: Tensors, vocab_size: int) -> dict[str, Tensor]:
    if "kept" in stored:
        kept = unpack_bits(stored["kept"].cpu(), vocab_size).long()
        return {"index.places": kept.cumsum(0) * kept}
    rows = len(stored["row_scale"])
    return {"index.places": hashed_rows(vocab_size, rows)} if rows < vocab_size else {}


def _read_cores(ids: Tensor, tensors: Tensors, dim: int) -> Tensor:
    slices, rest = [], ids
    for core in reversed(_cores(tensors)):  # the last digit counts ones
        slices.append(core.float()[:, rest % core.shape[1]])
        rest = torch.div(rest, core.shape[1], rounding_mode="floor")
    rows = slices.pop().squeeze(0)  # (n, w, r)
    while slices:
        rows = torch.einsum("nxa,anwb->nxwb", rows, slices.pop()).flatten(1, 2)
    return rows.squeeze(2)[:, :dim]


def _core_shapes(stored: Tensors, vocab_size: int, dim: int) -> Shapes:
    ids, width, rank = 1, 1, 1
    for core in _cores(stored):
        if core.ndim != 4 or core.shape[0] != rank:
            raise ValueError(f"a core has shape {tuple(core.shape)} where the rank is {rank}")
        _, v, w, rank = core.shape
        ids, width = ids * v, width * w
    if ids < vocab_size or width < dim or rank != 1:
        raise ValueError(f"the cores make a table ({ids}, {width}), {rank} times")
    return {name: tuple(stored[name].shape) for name in _core_names(stored)}


def _cores(tensors: Tensors) -> list[Tensor]:
    return [tensors[name] for name in _core_names(tensors)]


def _core_names(tensors: Tensors) -> list[str]:
    return ["codes", *sorted(name for name in tensors if name.startswith("core"))]


def _no_index(stored: Tensors, vocab_size: int) -> dict[str, Tensor]:
    return {}


FORMS = {  # by a tensor that only it has
    "codebooks": Form(_read_entries, _entry_shapes, _no_index),
    "levels": Form(_read_levels, _level_shapes, _places),
    "core1": Form(_read_cores, _core_shapes, _no_index),
}
