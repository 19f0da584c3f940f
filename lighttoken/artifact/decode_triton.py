"""The coefficients of rows on a GPU, in one launch: what `read_coefficients` and `read_related` find.

Kernels in Triton, which comes with PyTorch for CUDA on Linux. On a CPU they run in its interpreter, for tests.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lighttoken.artifact.relations import DEPTH, KINDS, MAPS, PARENT_BITS, maps_by_kind, read_related
from lighttoken.artifact.trellis import BLOCK, LEAD, MAX_VECTOR, make_index, pack_step, read_coefficients

ROWS, COLUMNS = 16, 64  # rows and coefficients of a program: as many as its registers hold
VECTORS = 16  # of a product: the fewest that a GPU multiplies as a matrix; there are zeros in place of those that lack
BLOCK_ROWS, LEAD_BITS, VECTOR = tl.constexpr(BLOCK), tl.constexpr(8 * LEAD), tl.constexpr(MAX_VECTOR)
KIND_SHIFT, PARENTS, LEVELS = tl.constexpr(PARENT_BITS), tl.constexpr((1 << PARENT_BITS) - 1), tl.constexpr(DEPTH)


class Code(NamedTuple):
    """The codes of a table: the stream, the tensors of `trellis.make_index`, and the maps of the relations or None."""

    stream: Any
    tiers: Any
    blocks: Any
    lengths: Any
    position: Any
    component: Any
    step: Any
    book: Any
    gain: Any
    relations: Any
    slope: Any
    offset: Any
    slant: Any
    m: int
    steps: int
    state_bits: int


class TritonReader:
    """Reads the codes of one table. With `related`, rows are predicted from those above them."""

    def __init__(
        self, stream: UInt8[Tensor, " N"], gain: Float[Tensor, "T s"], index: Mapping[str, Tensor], related: bool
    ):
        names = ("tiers", "blocks", "lengths", "position", "component", "step", "book")
        tensors = {"stream": stream, "gain": gain} | {name: index[name] for name in names}
        maps: dict[str, Any] = dict.fromkeys(("relations", "slope", "offset", "slant"))
        if related:
            tensors |= zip(maps, (index["relations"], *maps_by_kind(index["maps"])), strict=True)
        given = maps | {name: tensor.contiguous() for name, tensor in tensors.items()}
        state_bits = len(index["book"]).bit_length() - 1
        self.code = Code(**given, m=index["position"].shape[1], steps=gain.shape[1], state_bits=state_bits)

    def read(self, ids: Int64[Tensor, " n"]) -> Float[Tensor, "n m"]:
        """Coefficients of rows."""
        rows = self.code.gain.new_empty(len(ids), self.code.m)
        grid = (triton.cdiv(len(ids), ROWS), triton.cdiv(self.code.m, COLUMNS))
        with torch.cuda.device_of(ids):
            _read[grid](ids, rows, len(ids), self.code, ROWS, COLUMNS)
        return rows

    def project(
        self, ids: Int64[Tensor, " n"], vectors: Float[Tensor, "N m"], offsets: Float[Tensor, "N 1"]
    ) -> Float[Tensor, "N n"]:
        """Offsets plus products of at most `VECTORS` vectors with the coefficients of rows, which are not written."""
        products = vectors.new_empty(len(vectors), len(ids))
        given = (ids, vectors, offsets, products, len(ids), len(vectors))
        with torch.cuda.device_of(ids):
            _project[(triton.cdiv(len(ids), ROWS),)](*given, self.code, ROWS, COLUMNS, VECTORS)
        return products


def agrees(device: torch.device) -> bool:
    """Whether the kernels find on a device what the plain code finds there, in random codes of 80 rows."""
    random, ids, m = torch.Generator().manual_seed(0), torch.arange(80), 72
    steps = torch.tensor([[pack_step(1, 3)] * 16 + [pack_step(8, 2)] * 7, [pack_step(4, 1)] * 18 + [0] * 5])
    index = make_index((ids % 2).to(torch.uint8), steps.to(torch.uint8), 8, m)
    parents = ids - (ids % 3).clamp_max(1)  # chains of three rows
    kinds = torch.where(parents < ids, ids % (KINDS - 1) + 1, 0)
    index |= {"relations": (parents + (kinds << PARENT_BITS)).int(), "maps": torch.randn(m, MAPS, generator=random)}
    index = {name: tensor.to(device) for name, tensor in index.items()}
    stream = torch.randint(256, (LEAD + 5 * len(ids),), generator=random, dtype=torch.uint8)
    gain, vectors = torch.rand(steps.shape, generator=random), torch.randn(3, m, generator=random)
    ids, stream, gain, vectors = (tensor.to(device) for tensor in (ids, stream, gain, vectors))

    def plain(rows: Int64[Tensor, " n"]) -> Float[Tensor, "n m"]:
        return read_coefficients(rows, stream, gain, index)

    for expected, related in ((plain(ids), False), (read_related(ids, index["relations"], index["maps"], plain), True)):
        reader, products = TritonReader(stream, gain, index, related), vectors.double() @ expected.double().T
        rows, multiplied = reader.read(ids), reader.project(ids, vectors, vectors.new_zeros(3, 1))
        close = torch.allclose(rows, expected, atol=1e-4) and torch.allclose(multiplied.double(), products, atol=1e-3)
        if not close:
            return False
    return True


@triton.jit(do_not_specialize=["n"])  # it differs from batch to batch
def _read(ids, rows, n, code, row_block: tl.constexpr, column_block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * row_block + tl.arange(0, row_block)
    column = tl.program_id(1) * column_block + tl.arange(0, column_block)
    there = (row < n)[:, None] & (column < code.m)
    chosen = tl.load(ids + row, mask=row < n, other=0).to(tl.int64)
    values = _coefficients(chosen, column, there, code)
    tl.store(rows + row[:, None] * code.m + column, values, mask=there)


@triton.jit
def _project(  # type: ignore[no-untyped-def]
    ids, vectors, offsets, products, n, count, code,
    row_block: tl.constexpr, column_block: tl.constexpr, vector_block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * row_block + tl.arange(0, row_block)
    vector = tl.arange(0, vector_block)
    chosen = tl.load(ids + row, mask=row < n, other=0).to(tl.int64)
    total = tl.zeros((vector_block, row_block), tl.float32)
    total += tl.load(offsets + vector, mask=vector < count, other=0.0)[:, None]
    for first in range(0, code.m, column_block):
        column = first + tl.arange(0, column_block)
        there = (vector < count)[:, None] & (column < code.m)
        factor = tl.load(vectors + vector[:, None] * code.m + column, mask=there, other=0.0)
        values = _coefficients(chosen, column, (row < n)[:, None] & (column < code.m), code)
        total = tl.dot(factor, tl.trans(values), total, input_precision="ieee")
    there = (vector < count)[:, None] & (row < n)
    tl.store(products + vector[:, None].to(tl.int64) * n + row, total, mask=there)


@triton.jit
def _coefficients(ids, column, there, code):  # type: ignore[no-untyped-def]
    """Coefficients of rows, which those above them predict: the row farthest above comes first."""
    if code.relations is None:
        values = _decode(ids, column, there, code)
    else:
        values = tl.zeros(there.shape, tl.float32)
        for level in tl.static_range(LEVELS, -1, -1):
            above, known = ids, there
            for _ in tl.static_range(level):
                relation = tl.load(code.relations + above)
                above, known = (relation & PARENTS).to(tl.int64), known & (relation >> KIND_SHIFT > 0)[:, None]
            at = (tl.load(code.relations + above) >> KIND_SHIFT)[:, None] * code.m + column
            place = (tl.log((above + 200).to(tl.float32)) / 4 - 2)[:, None]
            predicted = place * tl.load(code.slope + column, mask=column < code.m, other=0.0)
            predicted += tl.load(code.offset + at, mask=known, other=0.0)
            predicted += tl.load(code.slant + at, mask=known, other=0.0) * values
            values = tl.where(known, _decode(above, column, known, code) + predicted, 0.0)
    return values


@triton.jit
def _decode(ids, column, there, code):  # type: ignore[no-untyped-def]
    """What the bits of rows say: see trellis.py."""
    # 1. Where the row starts: where its block does, plus the lengths of the rows before it in there.
    first, place = ids // BLOCK_ROWS * BLOCK_ROWS, tl.arange(0, BLOCK_ROWS)
    earlier = place < (ids - first)[:, None]
    tiers = tl.load(code.tiers + first[:, None] + place, mask=earlier, other=0)
    lengths = tl.load(code.lengths + tiers, mask=earlier, other=0)
    start = tl.load(code.blocks + ids // BLOCK_ROWS) + LEAD_BITS + tl.sum(lengths, 1)

    # 2. The window of each coefficient, within three bytes. What is before the row's first bit counts as zeros.
    tier = tl.load(code.tiers + ids).to(tl.int32)[:, None]
    at = tier * code.m + column
    step = tl.load(code.step + at, mask=there, other=code.steps)
    coded = there & (step < code.steps)
    position = tl.load(code.position + at, mask=coded, other=1)
    last = (start & 7).to(tl.int32)[:, None] + position - 1  # bit, counted from the byte that the row starts in
    byte = code.stream + (start >> 3)[:, None] + (last >> 3)
    word = tl.load(byte - 2, mask=coded, other=0).to(tl.int32) << 16
    word |= tl.load(byte - 1, mask=coded, other=0).to(tl.int32) << 8
    word |= tl.load(byte, mask=coded, other=0).to(tl.int32)
    state = (word >> (7 - (last & 7))) & ((1 << tl.minimum(position, code.state_bits)) - 1)

    # 3. The state's vector in the codebook, times the gain.
    entry = state * VECTOR + tl.load(code.component + at, mask=coded, other=0)
    value = tl.load(code.book + entry, mask=coded, other=0.0).to(tl.float32)
    return value * tl.load(code.gain + tier * code.steps + step, mask=coded, other=0.0)
