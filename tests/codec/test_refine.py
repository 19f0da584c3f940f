import torch

from lighttoken.codec.refine import refit_decoder


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
