"""The trellis code: how a stream of bits becomes the coefficients of a row. Decoding only; the codec has the search.

A row of tier t is a string of bits. A window of `state_bits` bits moves over it, k bits per step. The bits in it are a
state; the state's vector in a codebook, times a gain, gives the next v coefficients:

    bits of a row     0 1 1 0 1 0 0 1 1 1 0 1 ...         k = 2 bits per step
    step s           [. . . . 0 1]                        coefficients[s] = gain[t, s] * codebook[state, :v]
    step s - 1           [. . 0 1 1 0]
    step s - 2               [0 1 1 0 1 0]

Steps are listed by falling variance of their coefficients and read from the last to the first: a row's first windows
hold few bits and choose among few vectors, and there this does least harm.

Every bit is part of several states, so that k bits choose well among far more than 2^k vectors (Marcellin and
Fischer 1990; the bit-shift trellis with a computed codebook is that of QTIP, Tseng et al., NeurIPS 2024). The windows
of a row do not depend on each other: any coefficient of any row can be read alone.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float32, Int32, Int64, UInt8
from torch import Tensor

from lighttoken.artifact.packing import deflate, inflate

MAX_VECTOR = 8  # most coefficients of a step
MAX_STATE_BITS = 16  # a window lies within three bytes then, wherever it starts
MAX_TIERS = 16  # a tier is half a byte before it is deflated
BLOCK = 32  # rows of a block; the start of each block is kept in memory
LEAD = 2  # zero bytes before the stream


def codebook(state_bits: int) -> Float32[Tensor, "states 8"]:
    """The vectors of all states, computed, so that no artifact stores them.

    Each number is the standard normal quantile of a hash of its position (the 32-bit finalizer of MurmurHash3), rounded
    to float16, so that a codebook in memory is small next to the codes.
    """
    x = torch.arange(2**state_bits * MAX_VECTOR) + 1
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return torch.special.ndtri((x.double() + 0.5) / 2**32).half().float().view(-1, MAX_VECTOR)


def pack_step(vector: int, bits: int) -> int:
    """One byte of the plan: v coefficients (1, 2, 4 or 8) for k bits (0 to 15); of 0 bits, they stay 0.

    Bytes from 64 on are coefficients of the integer code (`artifact.integers`), which has a stream of its own.
    """
    return (vector.bit_length() - 1) << 4 | bits


def unpack_steps(steps: UInt8[Tensor, "T s"]) -> tuple[Int64[Tensor, "T s"], Int64[Tensor, "T s"]]:
    """Undo `pack_step`: vector sizes and bits. An integer is a step of one coefficient and no bits here."""
    exponent, bits = (steps >> 4).long(), (steps & 15).long()
    return torch.where(exponent < 4, 1 << exponent, 1), torch.where(exponent < 4, bits, 0)


def pack_tiers(tiers: UInt8[Tensor, " V"]) -> UInt8[Tensor, " bytes"]:
    """Tiers below 16 as bytes: two to a byte, then deflate, which gains from runs of ids of one tier."""
    even = torch.nn.functional.pad(tiers.cpu(), (0, len(tiers) % 2)).view(-1, 2)
    return deflate(even[:, 0] | even[:, 1] << 4)


def unpack_tiers(packed: UInt8[Tensor, " bytes"], rows: int) -> UInt8[Tensor, " rows"]:
    """Undo `pack_tiers`. Raises ValueError if the bytes do not hold so many rows."""
    pairs = inflate(packed, -(-rows // 2), f"tiers of {rows} rows")
    return torch.stack([pairs & 15, pairs >> 4], 1).flatten()[:rows]


def row_starts(tiers: UInt8[Tensor, " V"], steps: UInt8[Tensor, "T s"]) -> Int64[Tensor, " V"]:
    """Where the bits of each row start in the stream: rows lie in the order of their ids."""
    lengths = unpack_steps(steps)[1].sum(1)[tiers.long()]
    return lengths.cumsum(0).sub_(lengths)


def make_index(tiers: UInt8[Tensor, " V"], steps: UInt8[Tensor, "T s"], state_bits: int, m: int) -> dict[str, Tensor]:
    """What `read_coefficients` needs to find any coefficient of any row.

    tiers      (V padded to whole blocks of `BLOCK` rows,) uint8
    blocks     (blocks,) int64         where each block starts in the stream: a row's start is then a sum over one block
    lengths    (T,) int64              bits of a row
    columns    (bytes,) int64          0, 1, ...: as many as the bytes that the longest row can lie in
    position   (T, m) int32            where the window of a coefficient ends, in bits from the row's start
    component  (T, m) uint8            its place in the vector of the state
    step       (T, m) int32            the step that has its gain; s, whose gain is 0, for coefficients without bits
    book       (2^state_bits, 8) float16  the codebook, which float16 holds without rounding
    """
    vectors, bits = unpack_steps(steps)
    read = bits.flip(1).cumsum(1).flip(1)  # when each step has read its bits: the last step is read first
    shape, count = (len(steps), m), steps.shape[1]
    position, component = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape, dtype=torch.uint8)
    step = torch.full(shape, count, dtype=torch.int32)  # not int16, which torch.distributed cannot send
    for tier, sizes in enumerate(vectors):
        # The step of each coefficient. Trailing bytes of 0, in tiers of few steps, may lead beyond the last one.
        owner = torch.arange(count).repeat_interleave(sizes)[:m]
        first = sizes.cumsum(0) - sizes
        end = len(owner)
        position[tier, :end] = read[tier][owner].int()
        component[tier, :end] = (torch.arange(end) - first[owner]).to(torch.uint8)
        step[tier, :end] = torch.where(bits[tier][owner] > 0, owner, count).int()
    lengths = bits.sum(1)
    return {
        "tiers": torch.nn.functional.pad(tiers, (0, -len(tiers) % BLOCK)),
        "blocks": row_starts(tiers, steps)[::BLOCK].clone(),
        "lengths": lengths,
        "columns": torch.arange(int(lengths.max() + 7) // 8 + 1),
        "position": position,
        "component": component,
        "step": step,
        "book": codebook(state_bits).half(),
    }


def read_coefficients(
    ids: Int64[Tensor, " n"], stream: UInt8[Tensor, " N"], gain: Float[Tensor, "T s"], index: Mapping[str, Tensor]
) -> Float[Tensor, "n m"]:
    """Coefficients of rows, from the stream of all rows and what `make_index` returns.

    The first bit of the stream is the highest of byte `LEAD`. Differentiable in the gains. Shifts are functions here:
    ONNX knows these operators and not those behind << and >>.
    """
    shift_right = torch.bitwise_right_shift
    tier = index["tiers"][ids].long()

    # 1. Words of three bytes at every byte of each row, behind two bytes of zeros that the first windows reach into.
    words = words_of(bytes_of_rows(stream, starts_of(ids, index) + 8 * LEAD, index["columns"]))

    # 2. The window of each coefficient: the word that it ends in, shifted to the window's last bit.
    last = index["position"] + 15  # bit of the window, counted from the zeros
    words = words.gather(1, (shift_right(last, 3) - 2).clamp_min(0).long()[tier])
    state = shift_right(words, (7 - (last & 7))[tier])

    # 3. The state's vector in the codebook, times the gain.
    book = index["book"].float()  # first: an exported graph then folds it, and needs no float16 of a browser's GPU
    entry = (state & (len(book) - 1)) * MAX_VECTOR + index["component"].int()[tier]
    gains = torch.nn.functional.pad(gain, (0, 1)).gather(1, index["step"].long())
    return book.flatten().index_select(0, entry.flatten()).view_as(entry) * gains[tier]


def starts_of(ids: Int64[Tensor, " n"], index: Mapping[str, Tensor]) -> Int64[Tensor, " n"]:
    """Where the bits of rows start: where the block of a row does, plus the lengths of the rows before it in there."""
    block, place_in_block = ids // BLOCK, ids % BLOCK
    before = torch.arange(BLOCK, device=ids.device) < place_in_block.unsqueeze(1)
    return index["blocks"][block] + (index["lengths"][index["tiers"].view(-1, BLOCK)[block].long()] * before).sum(1)


def bytes_of_rows(
    stream: UInt8[Tensor, " N"], starts: Int64[Tensor, " n"], columns: Int64[Tensor, " b"]
) -> Int32[Tensor, "n _"]:
    """The bytes of rows, b - 1 of each, that start at bits of a stream: a row's first bit becomes a byte's highest.

    Behind the end of the stream its last byte is read again, which nothing uses.
    """
    shift_right = torch.bitwise_right_shift
    places = shift_right(starts, 3).unsqueeze(1) + columns
    pairs = stream[places.clamp_max(len(stream) - 1)].int()
    return shift_right(pairs[:, :-1] * 2**8 + pairs[:, 1:], (8 - (starts & 7)).int().unsqueeze(1)) & 255


def words_of(rows: Int32[Tensor, "n b"]) -> Int32[Tensor, "n _"]:
    """Words of three bytes: the one at byte j of a row ends with it, and begins with zeros for the first two bytes."""
    rows = torch.nn.functional.pad(rows, (2, 1))
    return rows[:, :-2] * 2**16 + rows[:, 1:-1] * 2**8 + rows[:, 2:]


def pack_stream(bits: Tensor) -> UInt8[Tensor, " bytes"]:
    """Bits (N,), 0 or 1, as the bytes that `read_coefficients` reads."""
    packed = torch.zeros(LEAD + -(-len(bits) // 8), dtype=torch.uint8, device=bits.device)
    for j in range(8):  # without a copy of the bits, which are as many as the table has bytes at small ratios
        part = bits[j::8].to(torch.uint8)
        packed[LEAD : LEAD + len(part)] |= part << (7 - j)
    return packed
