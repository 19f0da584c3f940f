"""Quantizers that the package does not have, for comparison: they return decoded rows and a number of bytes."""

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from lighttoken.codec.lowrank import weighted_moments
from lighttoken.errors import LighttokenError

Quantized = tuple[Tensor, int, str]  # rows (V, d), bytes, chosen sizes


def klt_lloyd_max(table: Tensor, ratio: float) -> Quantized:
    """Principal directions in float16, Lloyd-Max levels of each coordinate; every bit goes to the largest gain."""
    vocab_size, dim = table.shape
    mean, covariance = weighted_moments(table, torch.ones(vocab_size))
    variances, directions = torch.linalg.eigh(covariance)
    variances, directions = variances.flip(0).clamp_min(1e-12), directions.flip(1).half().float()

    # 1. The bits of every direction, by falling gain. The error of a direction is convex in its bits, so its first bit
    # comes before its second.
    levels = {bits: _lloyd_max(2**bits) for bits in range(1, 9)}
    left = [1.0, *(error for _, error in levels.values())]
    budget = vocab_size * dim * 4 / ratio - 4 * dim
    gains = sorted(
        ((float(variances[i]) * (left[b] - left[b + 1]), i, b) for i in range(dim) for b in range(8)), reverse=True
    )
    bits, spent = [0] * dim, 0.0
    for _, i, b in gains:
        cost = vocab_size / 8 + (2 * dim + 4 if b == 0 else 0)
        if spent + cost <= budget and bits[i] == b:
            bits[i], spent = b + 1, spent + cost

    # 2. The nearest level of every coordinate.
    centred = table - mean
    rows = mean.expand_as(table).clone()
    for i in (i for i in range(dim) if bits[i]):
        scale, (codes, _) = variances[i].sqrt().float(), levels[bits[i]]
        coordinate = centred @ directions[:, i] / scale
        nearest = codes[torch.searchsorted((codes[1:] + codes[:-1]) / 2, coordinate)]
        rows += torch.outer(nearest * scale, directions[:, i])
    return rows, math.ceil(spent + 4 * dim), f"{sum(b > 0 for b in bits)} directions, {sum(bits)} bits"


def _lloyd_max(count: int) -> tuple[Tensor, float]:
    """Levels of least squared error for a unit Gaussian, and that error (Lloyd 1957, Max 1960)."""
    normal = torch.distributions.Normal(0.0, 1.0)
    sample = normal.icdf((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000).float()
    levels = normal.icdf((torch.arange(count) + 0.5) / count)
    for _ in range(300):
        nearest = torch.searchsorted((levels[1:] + levels[:-1]) / 2, sample)
        sums = torch.zeros(count).index_add_(0, nearest, sample)
        levels = sums / torch.bincount(nearest, minlength=count).clamp_min(1)
    nearest = torch.searchsorted((levels[1:] + levels[:-1]) / 2, sample)
    return levels, float((sample - levels[nearest]).square().mean())


def faiss_prq(table: Tensor, ratio: float) -> Quantized:
    """The product-residual quantizer of faiss, fitted to the centred table: of the sizes that fit, the best ones.

    The bytes are those of codes, float16 codebooks and mean. Raises LighttokenError if no size fits.
    """
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    (vocab_size, dim), best = table.shape, None
    mean = table.mean(0)
    centred = np.ascontiguousarray((table - mean).numpy())
    for bits, splits in itertools.product((4, 6, 8), (8, 16, 32, 64)):
        if dim % splits:
            continue

        def nbytes(m: int, bits: int = bits, splits: int = splits) -> int:
            return vocab_size * -(-m * splits * bits // 8) + 2 * 2**bits * m * dim + 4 * dim

        m = max((m for m in range(1, 65) if nbytes(m) <= table.numel() * 4 / ratio), default=0)
        if m:
            quantizer = faiss.ProductResidualQuantizer(dim, splits, m, bits)
            quantizer.train(centred)
            rows = torch.from_numpy(quantizer.decode(quantizer.compute_codes(centred))) + mean
            error = float((rows - table).square().mean())
            if best is None or error < best[0]:
                best = (error, rows, nbytes(m), f"{splits}x{m}x{bits}")
    if best is None:
        raise LighttokenError(f"no shape of faiss prq fits {ratio:g}x")
    return best[1:]
