"""Synthetic tables with a real spectrum, and the Gaussian bound of a table."""

import torch
from torch import Tensor

from lighttoken.codec.bound import reverse_water_filling
from lighttoken.codec.lowrank import weighted_moments
from lighttoken.config.schema import load_backbone


def synthetic_table(model: str, vocab_size: int, dim: int) -> Tensor:
    """Gaussian rows (V, d) with the covariance of a model's table, scaled to lengths drawn from its rows."""
    table = load_backbone(model).table()
    variances = torch.linalg.eigvalsh(weighted_moments(table, torch.ones(len(table)))[1]).flip(0).clamp_min(0).float()
    spectrum = torch.nn.functional.interpolate(variances.view(1, 1, -1), dim, mode="linear", align_corners=True)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(vocab_size, dim, generator=generator) * spectrum.flatten().sqrt()
    rotation, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator))
    lengths = torch.linalg.vector_norm(table - table.mean(0), dim=1)
    drawn = lengths[torch.randint(len(table), (vocab_size, 1), generator=generator)]
    return torch.nn.functional.normalize(rows, dim=1) * drawn @ rotation


def bound_nmse(table: Tensor, nbytes: int) -> float:
    """The Gaussian bound of the nmse of a table (V, d) at a number of bytes, if all of them were codes."""
    spectrum = torch.linalg.eigvalsh(weighted_moments(table, torch.ones(len(table)))[1])
    return reverse_water_filling(spectrum, 8 * nbytes / len(table))[0] / float(table.var()) / table.shape[1]
