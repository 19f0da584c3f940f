"""The trellis code: how a stream of bits becomes the coefficients of a row. Decoding only; the search is the codec's.

A row of tier t is a string of bits, read by a window of `state_bits` bits that moves on by k bits per step. What the
window shows, a state, is looked up in a codebook and gives the next v coefficients, up to a gain:

    coefficients = gain[t, step] * codebook[state, :v]

Steps are listed by falling variance of their coefficients and read from the last to the first: what a row's first bits
can choose among is little, and there it does least harm.

Each bit takes part in several states, so that k bits choose well among far more than 2^k vectors (Marcellin and
Fischer 1990; the bit-shift trellis with a computed codebook is that of QTIP, Tseng et al., NeurIPS 2024). The windows
of a row do not wait for each other: any coefficient of any row is read on its own.
"""

import zlib

import torch
from torch import Tensor

MAX_VECTOR = 8  # most coefficients of a step
MAX_STATE_BITS = 16  # a window then lies within three bytes, wherever it starts
MAX_TIERS = 16  # a tier is half a byte before it is deflated
BLOCK = 32  # rows to a block of which the start is kept in memory
LEAD = 2  # zero bytes before the stream


def codebook(state_bits: int) -> Tensor:
    """The vectors of all states, (2 ** state_bits, 8) float32: computed, so that nothing is stored.

    Each number is the standard normal quantile of a hash of its place (the 32-bit finalizer of MurmurHash3), rounded
    to what float16 holds, so that a codebook kept in memory weighs little next to the codes.
    """
    x = torch.arange(2**state_bits * MAX_VECTOR) + 1
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return torch.special.ndtri((x.double() + 0.5) / 2**32).half().float().view(-1, MAX_VECTOR)


def pack_step(vector: int, bits: int) -> int:
    """One byte of the plan: v coefficients (1, 2, 4 or 8) for k bits (0 to 15); of 0 bits, they stay 0."""
    return (vector.bit_length() - 1) << 4 | bits


def unpack_steps(steps: Tensor) -> tuple[Tensor, Tensor]:
    """Undo `pack_step` for (T, n) uint8: vector sizes and bits, both (T, n) int64."""
    return 1 << (steps >> 4).long(), (steps & 15).long()


def pack_tiers(tiers: Tensor) -> Tensor:
    """Tiers (V,) uint8 below 16 as bytes: two to a byte, then deflate, which gains from runs of ids that are alike."""
    even = torch.nn.functional.pad(tiers.cpu(), (0, len(tiers) % 2)).view(-1, 2)
    content = (even[:, 0] | even[:, 1] << 4).numpy().tobytes()
    return torch.frombuffer(bytearray(zlib.compress(content, 9)), dtype=torch.uint8)


def unpack_tiers(packed: Tensor, rows: int) -> Tensor:
    """Undo `pack_tiers`: tiers (rows,) uint8. Raises ValueError if the bytes are not those of so many rows."""
    try:
        content = zlib.decompress(packed.cpu().numpy().tobytes())
    except zlib.error as error:
        raise ValueError(f"tiers: {error}") from error
    if len(content) != -(-rows // 2):
        raise ValueError(f"tiers of {2 * len(content)} rows instead of {rows}")
    pairs = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return torch.stack([pairs & 15, pairs >> 4], 1).flatten()[:rows]


def row_starts(tiers: Tensor, steps: Tensor) -> Tensor:
    """Where each row's bits start in the stream, (V,) int64, for tiers (V,): rows lie in the order of their ids."""
    lengths = unpack_steps(steps)[1].sum(1)[tiers.long()]
    return lengths.cumsum(0) - lengths


def make_index(tiers: Tensor, steps: Tensor, state_bits: int, rank: int) -> dict[str, Tensor]:
    """What `read_coefficients` needs to find any row and coefficient, from tiers (V,) and steps (T, n).

    `tiers`, padded to whole blocks of `BLOCK` rows, and where each block starts (`blocks`), so that a row's start takes
    a sum over one block; the `lengths` (T,) of rows in bits and `columns`, as many as the bytes that the longest can
    lie in. For each coefficient of each tier, (T, rank): the `position` of its window's end in bits from the row's
    start, the `component` of the state's vector and the `step` that tells its gain. One without bits has step n, whose
    gain is 0, and position 0. `book`: the codebook in float16, which holds it.
    """
    vectors, bits = unpack_steps(steps)
    read = bits.flip(1).cumsum(1).flip(1)  # when each step has read its bits
    shape, n = (len(steps), rank), steps.shape[1]
    position, component = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape, dtype=torch.uint8)
    step = torch.full(shape, n, dtype=torch.int32)  # not int16, which torch.distributed cannot send
    for tier, repeats in enumerate(vectors):  # trailing bytes of 0, in tiers of few steps, may lead beyond the rank
        owner = torch.arange(n).repeat_interleave(repeats)[:rank]
        first = repeats.cumsum(0) - repeats
        end = len(owner)
        position[tier, :end] = read[tier][owner].int()
        component[tier, :end] = (torch.arange(end) - first[owner]).to(torch.uint8)
        step[tier, :end] = torch.where(bits[tier][owner] > 0, owner, n).int()
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
    ids: Tensor,
    stream: Tensor,
    gain: Tensor,
    tiers: Tensor,
    blocks: Tensor,
    lengths: Tensor,
    columns: Tensor,
    position: Tensor,
    component: Tensor,
    step: Tensor,
    book: Tensor,
) -> Tensor:
    """Coefficients (n, rank) of rows ids (n,) of a stream of bytes, for gains (T, n) and the rest from `make_index`.

    The first bit of the stream is the highest of byte `LEAD`. Differentiable in the gains.
    """
    block, place = ids // BLOCK, ids % BLOCK
    before = torch.arange(BLOCK, device=ids.device) < place.unsqueeze(1)
    starts = blocks[block] + (lengths[tiers.view(-1, BLOCK)[block].long()] * before).sum(1)
    tier = tiers[ids].long()

    # The bytes of each row, moved to start with its first bit, behind two of zeros; then windows lie alike in a tier.
    # Shifts are spelt out: ONNX knows these operators and not those behind << and >>.
    shift_right = torch.bitwise_right_shift
    where = LEAD + shift_right(starts, 3).unsqueeze(1) + columns
    raw = stream[where.clamp_max(len(stream) - 1)].int()  # behind the last row, what is read is not used
    row = shift_right(raw[:, :-1] * 2**8 + raw[:, 1:], (8 - (starts & 7)).int().unsqueeze(1)) & 255
    row = torch.nn.functional.pad(row, (2, 1))
    words = row[:, :-2] * 2**16 + row[:, 1:-1] * 2**8 + row[:, 2:]

    last = position + 15  # bit of the window, counted from the zeros
    words = words.gather(1, (shift_right(last, 3) - 2).clamp_min(0).long()[tier])
    state = shift_right(words, (7 - (last & 7))[tier])
    place = (state & (len(book) - 1)) * MAX_VECTOR + component.int()[tier]
    gains = torch.nn.functional.pad(gain, (0, 1)).gather(1, step.long())
    return book.flatten().index_select(0, place.flatten()).view_as(place) * gains[tier]


def pack_stream(bits: Tensor) -> Tensor:
    """Bits (N,), 0 or 1, as the bytes that `read_coefficients` reads."""
    packed = torch.zeros(LEAD + -(-len(bits) // 8), dtype=torch.uint8, device=bits.device)
    for j in range(8):  # without a copy of the bits, which are as many as the table has bytes at small ratios
        part = bits[j::8].to(torch.uint8)
        packed[LEAD : LEAD + len(part)] |= part << (7 - j)
    return packed
