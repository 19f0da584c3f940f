"""The integer code: what its bits mean, one by one."""

import pytest
import torch

from lighttoken.artifact import integers

STEPS = torch.tensor([[64 + 3, 64 + 1, 64, 18], [64 + 2, 64, 17, 17], [17, 17, 17, 0]], dtype=torch.uint8)
GAIN = torch.tensor([[8.0, 4.0, 1.0, 9.0], [2.0, 3.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]])


def read_by_hand(bits: str, low: list[int], gain: list[float]) -> list[float]:
    """The coefficients of one row, as the docstring of the module says."""
    path = [0] * 6 + [int(bit) for bit in bits[: len(low)]]
    rest, values = bits[len(low) :], []
    lows = []
    for r in low:
        lows.append(int(rest[:r] or "0", 2))
        rest = rest[r:]
    for i, r in enumerate(low):
        high = rest.index("1")
        rest = rest[high + 1 :]
        u = (high << r) + lows[i]
        now = i + 6
        j = 2 * (path[now] ^ path[now - 1] ^ path[now - 6]) + (path[now - 2] ^ path[now - 4])
        m = (u + 1) // 2 if u % 2 else -(u // 2)
        values.append(gain[i] / 2**r * ((m if j < 2 else -m) + (j - 1.5) / 4))
    assert rest == ""
    return values


def test_every_bit_means_what_the_module_says():
    tiers = torch.tensor([0, 1, 2, 0, 1])
    # path, low bits (3 and 1; 2), high parts
    rows = ["101" + "110" + "1" + "1" + "0001" + "01", "11" + "10" + "001" + "1", "", "011" + "001" + "0" + "111"]
    rows.append("00" + "01" + "0000001" + "01")
    counts, low = integers.integer_steps(STEPS)
    assert counts.tolist() == [3, 2, 0]
    lengths = torch.tensor([len(row) for row in rows])
    bits = "".join(rows)
    stream = [int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8)]
    index = integers.make_index(lengths, counts, low)
    ids = torch.tensor([4, 0, 2, 1, 3, 0])
    read = integers.read_integers(ids, tiers[ids], torch.tensor(stream, dtype=torch.uint8), GAIN, index)
    for values, i in zip(read.tolist(), ids.tolist(), strict=True):
        tier = int(tiers[i])
        count = int(counts[tier])
        expected = read_by_hand(rows[i], low[tier, :count].tolist(), GAIN[tier].tolist())
        assert values == expected + [0.0] * (3 - count)


def test_folding_numbers_the_integers_by_their_distance_from_zero():
    m = torch.arange(-5, 6)
    for j in range(4):
        u = integers.fold(m, torch.tensor(j))
        assert torch.equal(integers.unfold(u, torch.tensor(j)), m)
        points = (m + (j - 1.5) / 4).abs()
        assert torch.equal(u, points.argsort().argsort())


def test_rows_are_packed_and_joined_as_they_are_read():
    generator = torch.Generator().manual_seed(0)
    counts, low = integers.integer_steps(STEPS)
    tiers = torch.randint(3, (50,), generator=generator)
    packed, lengths, numbers = [], torch.zeros(50, dtype=torch.long), {}
    for tier, count in enumerate(counts.tolist()):
        ids = (tiers == tier).nonzero().flatten()
        path = torch.randint(2, (len(ids), count), generator=generator, dtype=torch.uint8)
        u = torch.randint(40, (len(ids), count), generator=generator)
        rows, lengths[ids] = integers.pack_rows(path, u, low[tier, :count])
        packed.append((ids, rows))
        numbers[tier] = ids, path, u
    ends = lengths.cumsum(0)
    stream = torch.zeros(-(-int(ends[-1]) // 8), dtype=torch.uint8)
    for ids, rows in packed:
        integers.join_rows(stream, (ends - lengths)[ids], rows)
    index = integers.make_index(lengths, counts, low)
    read = integers.read_integers(torch.arange(50), tiers, stream, GAIN, index)
    for tier, (ids, path, u) in numbers.items():
        j = integers.offsets(path.long())
        scale = GAIN[tier, : path.shape[1]] * 2.0 ** -low[tier, : path.shape[1]]
        assert torch.equal(read[ids, : path.shape[1]], (integers.unfold(u, j) + (j - 1.5) / 4) * scale)


def test_lengths_survive_packing_and_damage_is_named():
    least = torch.tensor([5, 5, 900, 0])
    lengths = least + torch.tensor([0, 3, 40000, 0])
    packed = integers.pack_lengths(lengths, least)
    assert torch.equal(integers.unpack_lengths(packed, least), lengths)
    with pytest.raises(ValueError, match="a row of 65536 bits beyond the least of its tier, 65535 at most"):
        integers.pack_lengths(least + torch.tensor([0, 0, 0, 65536]), least)
    with pytest.raises(ValueError, match="lengths of 3 rows of more bytes instead of 6"):
        integers.unpack_lengths(packed, least[:3])
    with pytest.raises(ValueError, match="lengths of 4 rows: "):
        integers.unpack_lengths(packed[2:], least)
    with pytest.raises(ValueError, match="an integer after other steps"):
        integers.integer_steps(torch.tensor([[17, 64]], dtype=torch.uint8))
