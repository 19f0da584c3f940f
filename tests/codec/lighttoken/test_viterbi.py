import itertools

import pytest
import torch

from lighttoken.artifact.compiled import library
from lighttoken.artifact.trellis import codebook
from lighttoken.codec.lighttoken import compiled, viterbi
from lighttoken.codec.lighttoken.integers import search_integers
from lighttoken.codec.lighttoken.viterbi import new_bits, search

BITS = [1, 3, 2, 1]
VECTORS = [2, 1, 4, 2]


def brute_force(targets, books, state_bits):
    """The least error over all bit strings, by trying them all."""
    best = torch.full((len(targets[0]),), torch.inf)
    for choice in itertools.product(*(range(2**k) for k in BITS)):
        state, error = 0, 0
        for bits, k, target, book in zip(choice, BITS, targets, books, strict=True):
            state = (state << k | bits) % 2**state_bits
            error = error + (target - book[state]).square().sum(1)
        best = torch.minimum(best, error)
    return best


@pytest.mark.parametrize("state_bits", [4, 5, 9])
def test_no_other_bits_come_nearer(state_bits):
    targets = [torch.randn(20, v) for v in VECTORS]
    books = [torch.randn(2**state_bits, v) for v in VECTORS]
    states = search(targets, books, BITS, state_bits).long()
    error = sum((t - b[states[:, j]]).square().sum(1) for j, (t, b) in enumerate(zip(targets, books, strict=True)))
    torch.testing.assert_close(error, brute_force(targets, books, state_bits))


@pytest.mark.parametrize("state_bits", [4, 9])
def test_the_new_bits_lead_to_the_states(state_bits):
    targets = [torch.randn(30, v) for v in VECTORS]
    states = search(targets, [codebook(state_bits)[:, :v] for v in VECTORS], BITS, state_bits)
    bits, state = new_bits(states, BITS), torch.zeros(30, dtype=torch.long)
    assert bits.shape == (30, sum(BITS))
    for j, part in enumerate(bits.long().split(BITS, 1)):
        for bit in part.T:
            state = (state << 1 | bit) % 2**state_bits
        assert torch.equal(state, states[:, j].long())


@pytest.mark.parametrize(("state_bits", "bound"), [(6, 0.36), (8, 0.33), (10, 0.305)])
def test_more_states_come_nearer_to_the_bound_at_one_bit_per_coefficient(state_bits, bound):
    """A scalar quantizer of one bit has 0.363, the rate-distortion bound is 0.25."""
    rows = torch.randn(64, 200)
    book = codebook(state_bits)[:, :2] * 0.75**0.5
    states = search(list(rows.split(2, 1)), [book] * 100, [2] * 100, state_bits).long()
    error = float((rows - book[states].flatten(1)).square().mean())
    assert 0.25 < error < bound


def test_rows_are_searched_alike_in_any_company():
    rows = torch.randn(300, 12)
    books = [codebook(12)[:, :2]] * 6

    def states(part):
        return search(list(part.split(2, 1)), books, [2] * 6, 12)

    assert torch.equal(states(rows)[130:140], states(rows[130:140]))


def a_search_without_a_compiler(monkeypatch, **how):
    monkeypatch.setattr(compiled, "there", lambda: False)
    generator = torch.Generator().manual_seed(0)
    targets = [torch.randn(203, v, generator=generator) for v in VECTORS]
    return search(targets, [codebook(8)[:, :v] for v in VECTORS], BITS, 8, **how)


@pytest.mark.parametrize("count", [2, 3, 300])
def test_devices_share_the_rows(count, monkeypatch):
    alone = a_search_without_a_compiler(monkeypatch)
    assert torch.equal(a_search_without_a_compiler(monkeypatch, devices=[torch.device("cpu")] * count), alone)


def test_a_device_without_memory_searches_fewer_rows_at_a_time(monkeypatch, caplog):
    expected, whole, sizes = a_search_without_a_compiler(monkeypatch), viterbi._search_chunk, []

    def small(targets, *given):
        sizes.append(len(targets[0]))
        if sizes[-1] > 60:
            raise torch.OutOfMemoryError
        return whole(targets, *given)

    monkeypatch.setattr(viterbi, "_search_chunk", small)
    with caplog.at_level("INFO"):
        assert torch.equal(a_search_without_a_compiler(monkeypatch), expected)
    assert sizes == [203, 203, 203, 128, 64, *[32] * 6, 11]
    assert "cpu has no memory left; the search goes on with 32 rows at a time" in caplog.text


def test_a_device_that_has_no_memory_for_a_row_ends_the_search(monkeypatch):
    def none(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(viterbi, "_search_chunk", none)
    with pytest.raises(torch.OutOfMemoryError):
        a_search_without_a_compiler(monkeypatch)


@pytest.mark.parametrize("state_bits", [4, 8, 12])
@pytest.mark.skipif(not compiled.there(), reason="no C++ compiler")
def test_the_compiled_search_gives_the_bits_of_the_plain_one(state_bits, monkeypatch):
    vectors, bits = [8, 4, 2, 1, 1, 8, 2], [1, 2, 3, 4, 2, 1, 1]
    targets = [torch.randn(203, v) for v in vectors]
    books = [codebook(state_bits)[:, :v] for v in vectors]
    compiled_path = search(targets, books, bits, state_bits)
    monkeypatch.setattr(compiled, "there", lambda: False)
    assert torch.equal(search(targets, books, bits, state_bits), compiled_path)


@pytest.mark.parametrize("state_bits", [4, 6, 10])
def test_the_search_of_a_gpu_finds_the_plain_path_in_tritons_interpreter(state_bits, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed: the search of a GPU is not tested")
    from lighttoken.codec.lighttoken.viterbi_triton import search_chunk

    vectors, bits = [8, 4, 4, 2, 1, 1, 8, 2], [1, 2, 2, 3, 4, 2, 1, state_bits]
    targets = [torch.randn(13, v) for v in vectors]
    books = [codebook(state_bits)[:, :v] for v in vectors]
    norms = [book.square().sum(1, keepdim=True) for book in books]
    path = search_chunk(targets, [-2 * book for book in books], norms, bits, state_bits)
    monkeypatch.setattr(compiled, "there", lambda: False)
    assert torch.equal(path, search(targets, books, bits, state_bits))


@pytest.mark.parametrize("right", [True, False])
def test_a_gpu_searches_with_triton_only_if_it_finds_the_plain_path(right, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed: the search of a GPU is not tested")
    from lighttoken.codec.lighttoken import viterbi_triton

    if not right:
        found = viterbi_triton.search_chunk
        monkeypatch.setattr(viterbi_triton, "search_chunk", lambda *given: found(*given) ^ 1)
    assert viterbi._triton_agrees(torch.device("cpu")) is right


def test_without_a_working_compiler_the_log_says_so_and_the_plain_search_is_used(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    with caplog.at_level("INFO"):
        assert library.__wrapped__(compiled.SOURCE) is None
    assert "viterbi runs in PyTorch" in caplog.text
    assert "absent" in caplog.text
    assert not list((tmp_path / "lighttoken").iterdir())


@pytest.mark.skipif(not compiled.there(), reason="no C++ compiler")
def test_the_compiled_search_of_integers_gives_the_bits_of_the_plain_one(monkeypatch):
    targets, low = torch.randn(75, 40) * 9, torch.full((40,), 2)
    found = search_integers(targets, torch.ones(40), low)
    monkeypatch.setattr(compiled, "there", lambda: False)
    for ours, plain in zip(found, search_integers(targets, torch.ones(40), low), strict=True):
        assert torch.equal(ours, plain)
