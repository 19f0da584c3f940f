import pytest
import torch

from lighttoken.codec.refine import flip_bits, refine_codes, refit_decoder


def test_refit_is_weighted_least_squares():
    bits, target = torch.rand(300, 12) > 0.5, torch.randn(300, 5)
    weights = torch.rand(300) + 0.1
    decoder, bias = refit_decoder(bits, target, weights)
    design = torch.cat([bits.float(), torch.ones(300, 1)], 1) * weights.sqrt().unsqueeze(1)
    expected = torch.linalg.lstsq(design, target * weights.sqrt().unsqueeze(1)).solution
    torch.testing.assert_close(torch.cat([decoder, bias[None]]), expected, atol=1e-4, rtol=1e-4)


def test_units_that_never_change_or_repeat_do_no_harm():
    useful = torch.rand(300, 4) > 0.5
    bits = torch.cat([useful, useful, torch.ones(300, 2, dtype=torch.bool)], 1)
    target = useful.float() @ torch.randn(4, 5) + 1
    decoder, bias = refit_decoder(bits, target, torch.ones(300))
    torch.testing.assert_close(bits.float() @ decoder + bias, target, atol=1e-3, rtol=1e-3)
    assert decoder.abs().max() < 10


def test_no_bits_leave_the_mean():
    target = torch.randn(50, 3)
    decoder, bias = refit_decoder(torch.empty(50, 0, dtype=torch.bool), target, torch.ones(50))
    assert decoder.shape == (0, 3)
    torch.testing.assert_close(bias, target.mean(0), atol=1e-5, rtol=1e-4)


def squared(bits, target, decoder):
    return (target - bits.float() @ decoder).square().sum(1)


def test_no_rows_error_rises_and_no_single_flip_is_left_that_helps():
    bits, decoder, target = torch.rand(300, 12) > 0.5, torch.randn(12, 6), torch.randn(300, 6)
    new = flip_bits(bits, target - bits.float() @ decoder, decoder, sweeps=30)
    assert bool((squared(new, target, decoder) <= squared(bits, target, decoder) + 1e-5).all())
    assert not torch.equal(new, bits)
    for j in range(12):
        other = new.clone()
        other[:, j] = ~other[:, j]
        assert bool((squared(other, target, decoder) >= squared(new, target, decoder) - 1e-4).all())


def test_flipping_is_the_same_in_chunks(monkeypatch):
    bits, decoder, target = torch.rand(50, 8) > 0.5, torch.randn(8, 6), torch.randn(50, 6)
    residual = target - bits.float() @ decoder
    whole = flip_bits(bits, residual, decoder)
    monkeypatch.setattr("lighttoken.codec.refine.ROWS_PER_CHUNK", 7)
    assert torch.equal(flip_bits(bits, residual, decoder), whole)


def test_refinement_never_raises_the_weighted_error(table):
    weights = torch.rand(1200) + 0.1
    weights /= weights.mean()
    bits, left = torch.rand(1200, 40) > 0.5, table[:, :3] + 0.1 * torch.randn(1200, 3)
    new, right, decoder, bias, errors = refine_codes(bits, left, table, weights, rounds=20, tolerance=1e-4)
    assert len(errors) > 4
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.7 * errors[0]
    rows = left @ right + new.float() @ decoder + bias
    assert float((weights * (table - rows).square().mean(1)).mean()) == pytest.approx(errors[-1], rel=1e-4)


def test_refinement_ends_where_a_round_gains_too_little(table):
    bits, left = torch.rand(1200, 40) > 0.5, table[:, :0]
    *_, few = refine_codes(bits, left, table, torch.ones(1200), rounds=50, tolerance=0.1)
    *_, many = refine_codes(bits, left, table, torch.ones(1200), rounds=50, tolerance=0.001)
    assert len(few) < len(many) < 50
