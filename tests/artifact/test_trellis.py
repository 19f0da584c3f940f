import tracemalloc
import zlib

import pytest
import torch

from lighttoken.artifact import compiled
from lighttoken.artifact.trellis import (
    codebook,
    make_index,
    pack_step,
    pack_stream,
    pack_tiers,
    read_coefficients,
    row_starts,
    unpack_steps,
    unpack_tiers,
)

STEPS = torch.tensor(
    [
        [pack_step(1, 3), pack_step(2, 4), pack_step(4, 1), pack_step(8, 2)],
        [pack_step(2, 0), pack_step(2, 5), 0, 0],
        [0, 0, 0, 0],
    ],
    dtype=torch.uint8,
)
GAIN = torch.rand(3, 4) + 0.5
RANK = 15


def naive(bits: str, tier: int, state_bits: int) -> list[float]:
    """The coefficients of one row, read as the module's text says: a window that moves on by k bits per step."""
    book, values, read = codebook(state_bits), [], 0
    steps = list(zip(*(part[tier].tolist() for part in unpack_steps(STEPS)), strict=True))
    for j, (vector, k) in reversed(list(enumerate(steps))):
        read += k
        state = int(("0" * state_bits + bits[:read])[-state_bits:], 2)
        values = [float(GAIN[tier, j] * book[state, i]) if k else 0.0 for i in range(vector)] + values
    return (values + [0.0] * RANK)[:RANK]


@pytest.mark.parametrize(
    "tiers",
    [[0, 1, 2, 0, 0, 1, 2, 1, 0] * 5, [2, 0, 0, 0, 0, 2], [2]],
    ids=["mixed", "no bits behind the last byte", "no bits at all"],
)
@pytest.mark.parametrize("state_bits", [3, 8, 12, 16])
def test_coefficients_are_what_the_moving_window_shows(state_bits, tiers, monkeypatch):
    tiers = torch.tensor(tiers, dtype=torch.uint8)
    lengths = [10, 5, 0]
    rows = ["".join(str(int(b)) for b in torch.randint(2, (lengths[t],))) for t in tiers.tolist()]
    stream = pack_stream(torch.tensor([int(bit) for bit in "".join(rows)], dtype=torch.uint8))
    assert row_starts(tiers, STEPS).tolist() == [sum(map(len, rows[:i])) for i in range(len(rows))]
    index = make_index(tiers, STEPS, state_bits, RANK)
    coefficients = read_coefficients(torch.arange(len(tiers)), stream, GAIN, index)
    expected = [naive(row, tier, state_bits) for row, tier in zip(rows, tiers.tolist(), strict=True)]
    torch.testing.assert_close(coefficients, torch.tensor(expected))
    if compiled.library(compiled.DECODER):
        monkeypatch.setattr(compiled, "LEAST_NUMBERS", 0)
        monkeypatch.setattr(compiled, "read_coefficients", None)  # nothing is read by the plain code
        ids = torch.randint(len(tiers), (100,))
        assert torch.equal(compiled.read_rows(ids, stream, GAIN, index), coefficients[ids])


def test_the_codebook_is_computed_normal_and_without_repetition():
    book = codebook(12)
    assert book.shape == (4096, 8)
    assert torch.equal(book, codebook(12))
    assert torch.equal(codebook(8), book[:256])
    assert len(book.unique(dim=0)) == 4096
    assert float(book.mean()) == pytest.approx(0, abs=0.02)
    assert float(book.std()) == pytest.approx(1, abs=0.02)
    assert float((book**4).mean()) == pytest.approx(3, abs=0.15)
    correlation = torch.corrcoef(book.T) - torch.eye(8)
    assert float(correlation.abs().max()) < 0.07


@pytest.mark.parametrize("rows", [1, 2, 7, 5000])
def test_tiers_survive_packing(rows):
    tiers = torch.randint(16, (rows,), dtype=torch.uint8)
    assert torch.equal(unpack_tiers(pack_tiers(tiers), rows), tiers)


def test_tiers_of_another_table_or_damaged_are_refused():
    packed = pack_tiers(torch.zeros(10, dtype=torch.uint8))
    with pytest.raises(ValueError, match="tiers of 20 rows of 5 bytes instead of 10"):
        unpack_tiers(packed, 20)
    with pytest.raises(ValueError, match="tiers of 8 rows of more bytes instead of 4"):
        unpack_tiers(packed, 8)
    with pytest.raises(ValueError, match="tiers of 10 rows of more bytes instead of 5"):
        unpack_tiers(torch.cat([packed, packed[:1]]), 10)
    with pytest.raises(ValueError, match="tiers"):
        unpack_tiers(packed[:-6], 10)


@pytest.mark.parametrize("vector", [1, 2, 4, 8])
@pytest.mark.parametrize("bits", [0, 1, 15])
def test_a_step_is_one_byte(vector, bits):
    packed = torch.tensor([[pack_step(vector, bits)]], dtype=torch.uint8)
    assert [part.item() for part in unpack_steps(packed)] == [vector, bits]


def test_tiers_that_unpack_to_much_are_refused_without_being_unpacked():
    bomb = torch.frombuffer(bytearray(zlib.compress(bytes(50_000_000), 1)), dtype=torch.uint8)
    tracemalloc.start()
    with pytest.raises(ValueError, match="tiers of 600 rows of more bytes instead of 300"):
        unpack_tiers(bomb, 600)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000 + 2 * len(bomb)
