"""The integer code: coefficients of high rate as integers on a fine grid. Decoding only; the codec has the search.

A trellis window chooses among computed vectors, and they are too few where a coefficient has more than about 2.5 bits.
Integers have no such limit. A row's first coefficients can be coded this way; they have a stream of their own. A row:

    path bits     one per coefficient; three delayed ones choose the grid of the coefficient, see `offsets`
    low bits      r of every coefficient's integer, the highest first
    high parts    of every coefficient: as many zeros as the integer has steps of 2^r, then a one

The four grids interleave: an integer m of grid j stands for gain * 2^-r * (m + (j - 1.5) / 4). Rows differ in length:
likely integers are short. That is entropy coding, and the path gains up to 1.3 dB on top (entropy-coded trellis
quantization, Fischer and Wang 1992; convolutional code of 64 states, Ungerboeck 1982). On Gaussian coefficients the
code is 0.7 to 1.4 dB from the rate-distortion bound from 2.5 bits on. A row is read alone, all coefficients at once.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lighttoken.artifact.packing import deflate, inflate
from lighttoken.artifact.trellis import bytes_of_rows, words_of

STATES = 64
DELAY = 6  # path bits before its own that choose a coefficient's grid
INTEGER_STEP = 4 << 4  # in a byte of the plan: `artifact.trellis.pack_step` has exponents up to 3
MAX_HIGH = 255  # steps of a high part: the search makes no longer one
MAX_BEYOND = 2**16 - 1  # bits of a row beyond the least of its tier, which `pack_lengths` has two bytes for


def offsets(path: Int64[Tensor, "n G"]) -> Int64[Tensor, "n G"]:
    """The grid j of each coefficient from its path bit and those of the coefficients before it, 0 before the first."""
    bits = torch.nn.functional.pad(path, (DELAY, 0))
    delayed = [bits[:, DELAY - delay : bits.shape[1] - delay] for delay in range(DELAY + 1)]
    return 2 * (delayed[0] ^ delayed[1] ^ delayed[6]) + (delayed[2] ^ delayed[4])


def fold(m: Tensor, j: Tensor) -> Tensor:
    """Integers as numbers from 0 on, the likely ones first: of grids 0 and 1, which lie left of 0, 0, 1, -1, 2, ..."""
    m = torch.where(j < 2, m, -m)
    return torch.where(m > 0, 2 * m - 1, -2 * m)


def unfold(u: Tensor, j: Tensor) -> Tensor:
    """Undo `fold`."""
    m = torch.where((u & 1) > 0, torch.bitwise_right_shift(u + 1, 1), -torch.bitwise_right_shift(u, 1))
    return torch.where(j < 2, m, -m)


def integer_steps(steps: UInt8[Tensor, "T s"]) -> tuple[Int64[Tensor, " T"], Int64[Tensor, "T G"]]:
    """How many coefficients of each tier are integers, and their numbers r of low bits; G is the largest count.

    Raises ValueError if a tier has other steps before an integer.
    """
    integers = steps >= INTEGER_STEP
    counts = integers.sum(1)
    if bool((integers != (torch.arange(steps.shape[1], device=steps.device) < counts.unsqueeze(1))).any()):
        raise ValueError("an integer after other steps")
    low = torch.where(integers, steps.long() - INTEGER_STEP, 0)[:, : int(counts.max())]
    if bool((low > 15).any()):
        raise ValueError("an integer of more than 15 low bits")
    return counts, low


def pack_lengths(lengths: Int64[Tensor, " V"], least: Int64[Tensor, " V"]) -> UInt8[Tensor, " bytes"]:
    """Bits of all rows beyond the `least` that their tiers have: low bytes, high bytes, then deflate.

    Raises ValueError for a row of more than `MAX_BEYOND`.
    """
    beyond = (lengths - least).cpu()
    if int(beyond.max()) > MAX_BEYOND:
        raise ValueError(f"a row of {int(beyond.max())} bits beyond the least of its tier, {MAX_BEYOND} at most")
    return deflate(torch.cat([beyond & 255, beyond >> 8]).to(torch.uint8))


def unpack_lengths(packed: UInt8[Tensor, " bytes"], least: Int64[Tensor, " V"]) -> Int64[Tensor, " V"]:
    """Undo `pack_lengths`. Raises ValueError if the bytes do not hold so many rows."""
    low, high = inflate(packed, 2 * len(least), f"lengths of {len(least)} rows").long().view(2, len(least))
    return least.cpu() + low + 256 * high


def least_lengths(counts: Int64[Tensor, " T"], low: Int64[Tensor, "T G"]) -> Int64[Tensor, " T"]:
    """Bits of the shortest row of each tier: every high part is a single one."""
    return 2 * counts + low.sum(1)


def make_index(
    lengths: Int64[Tensor, " V"], counts: Int64[Tensor, " T"], low: Int64[Tensor, "T G"]
) -> dict[str, Tensor]:
    """What `read_integers` needs.

    starts   (V + 1,) int64  where each row starts in the stream, in bits
    columns  (bytes,) int64  0, 1, ...: as many as the bytes that the longest row can lie in, and three
    counts   (T,) int32      coefficients of a tier
    low      (T, G) int32    their low bits
    place    (T, G) int32    where these end, in bits from the row's start
    high     (T,) int32      where the high parts start
    """
    place = counts.unsqueeze(1) + low.cumsum(1)
    return {
        "starts": torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
        "columns": torch.arange(int(lengths.max() + 7) // 8 + 4),
        "counts": counts.int(),
        "low": low.int(),
        "place": place.int(),
        "high": (counts + low.sum(1)).int(),
    }


def read_integers(
    ids: Int64[Tensor, " n"],
    tier: Int64[Tensor, " n"],
    stream: UInt8[Tensor, " N"],
    gain: Float[Tensor, "T s"],
    index: Mapping[str, Tensor],
) -> Float[Tensor, "n G"]:
    """The integer coefficients of rows, 0 behind those that a row's tier has.

    The first bit of the stream is the highest of its first byte. Differentiable in the gains. Shifts are functions for
    ONNX, as in `artifact.trellis`.
    """
    shift_right, low = torch.bitwise_right_shift, index["low"][tier]
    count = low.shape[1]

    # 1. The bytes of each row, and their bits.
    row = bytes_of_rows(stream, index["starts"][ids], index["columns"])
    bits = (shift_right(row.unsqueeze(2), torch.arange(7, -1, -1, device=row.device).int()) & 1).flatten(1)

    # 2. The grid of each coefficient. Bits behind a tier's path are read too, for coefficients that the tier has not.
    path = torch.nn.functional.pad(bits, (0, max(0, count - bits.shape[1])))[:, :count]
    j = offsets(path)

    # 3. Low bits: the word of three bytes that ends with them, shifted to their last bit.
    last = (index["place"][tier] - 1).clamp_min(0)
    words = words_of(row).gather(1, shift_right(last, 3).long())
    below = shift_right(words, 7 - (last & 7)) & (torch.bitwise_left_shift(torch.ones_like(low), low) - 1)

    # 4. High parts: a zero belongs to the coefficient of the next one, the number of ones before it.
    inside = (torch.arange(bits.shape[1], device=bits.device) >= index["high"][tier].unsqueeze(1)).int()
    ones, zeros = bits * inside, (1 - bits) * inside
    owner = (ones.cumsum(1) - ones).clamp_max(count)
    high = torch.zeros_like(zeros[:, :1]).expand(-1, count + 1).scatter_add(1, owner.long(), zeros)[:, :count]

    # 5. The integers on their grids.
    scale = gain[:, :count] * torch.exp2(-index["low"].to(gain))
    m = unfold(torch.bitwise_left_shift(high, low) + below, j)
    there = torch.arange(count, device=ids.device) < index["counts"][tier].unsqueeze(1)
    points = m.to(gain.dtype) + (j.to(gain.dtype) - 1.5) / 4
    return torch.where(there, points * scale[tier], torch.zeros_like(points))


def pack_rows(
    path: UInt8[Tensor, "n G"], u: Int64[Tensor, "n G"], low: Int64[Tensor, " G"]
) -> tuple[UInt8[Tensor, "n bytes"], Int64[Tensor, " n"]]:
    """The bits of rows of one tier, packed, each from its first byte on, and their lengths in bits."""
    n, count = path.shape
    high = u >> low
    ends = (high + 1).cumsum(1)  # behind the one of each high part
    first = count + int(low.sum())
    lengths = first + (ends[:, -1] if count else torch.zeros(n, dtype=torch.long, device=u.device))
    bits = torch.zeros(n, -(-int(lengths.max()) // 8) * 8 if n else 0, dtype=torch.uint8, device=u.device)
    bits[:, :count] = path
    place = count
    for i, r in enumerate(low.tolist()):
        shifts = torch.arange(r - 1, -1, -1, device=u.device)
        bits[:, place : place + r] = ((u[:, i, None] >> shifts) & 1).to(torch.uint8)
        place += r
    bits.scatter_(1, first + ends - 1, 1)
    weights = 1 << torch.arange(7, -1, -1, device=u.device)
    return (bits.view(n, -1, 8) * weights).sum(2).to(torch.uint8), lengths


def join_rows(stream: UInt8[Tensor, " N"], starts: Int64[Tensor, " n"], packed: UInt8[Tensor, "n bytes"]) -> None:
    """Put packed rows at their bits into a stream that holds zeros there."""
    shifted = packed.int() << (8 - (starts & 7)).int().unsqueeze(1)  # over two bytes
    place = (starts >> 3).unsqueeze(1) + torch.arange(packed.shape[1], device=packed.device)
    for offset, part in ((0, shifted >> 8), (1, shifted & 255)):
        at = (place + offset).clamp_max(len(stream) - 1)
        stream.index_put_((at,), part.to(torch.uint8), accumulate=True)
