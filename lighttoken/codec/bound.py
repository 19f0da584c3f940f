"""The rate-distortion bound of a Gaussian source."""

import torch
from jaxtyping import Float64
from torch import Tensor

from lighttoken.codec.shapes import Spectrum


def reverse_water_filling(spectrum: Spectrum, bits: float) -> tuple[float, Float64[Tensor, " d"]]:
    """The rate-distortion bound of a Gaussian: least squared error per row at a number of bits per row.

    `spectrum`: variances along independent directions. Returns the error, the sum over directions of
    min(level, variance), and the bits of each direction, log2(variance / level) / 2 where positive
    (Cover and Thomas, Elements of Information Theory, theorem 10.3.3).
    """
    variances, order = spectrum.double().clamp_min(0).sort(descending=True)
    logs = variances.clamp_min(1e-300).log2()
    counts = torch.arange(1, len(logs) + 1, dtype=torch.float64, device=logs.device)
    # With the n largest coded, the level is their geometric mean times 2 ** (-2 bits / n); the right n is the largest
    # whose level still lies below all of them.
    levels = (logs.cumsum(0) - 2 * bits) / counts
    coded = int((levels <= logs).nonzero().max()) + 1
    rates = torch.zeros_like(logs)
    rates[order[:coded]] = (logs[:coded] - levels[coded - 1]) / 2
    return float(coded * 2 ** levels[coded - 1] + variances[coded:].sum()), rates
