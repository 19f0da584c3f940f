"""The reconstruction loss: an upper bound of the squared Euclidean distance that favours direction."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lighttoken.codec.shapes import Table, Weights
from lighttoken.codec.units import find_units

ROWS_PER_CHUNK = 256  # so that work space stays small next to the table


class ReconstructionLoss(NamedTuple):
    """Weighted means over a batch of rows; `total` is the loss, the rest is what it is made of."""

    total: Float[Tensor, ""]
    magnitude: Float[Tensor, ""]  # (|x| - |y|)^2
    angular: Float[Tensor, ""]  # 2 |x| |y| (1 - cos t), before it is multiplied by b
    cosine: Float[Tensor, ""]


def reconstruction_loss(x: Table, y: Table, weights: Weights, angular_weight: float) -> ReconstructionLoss:
    """L_b(x, y) = (|x| - |y|)^2 + 2 b |x| |y| (1 - cos t), with t the angle between rows x and y.

    `angular_weight` is b >= 1. At b = 1 the loss equals |x - y|^2; above, it bounds it from above. This is how we read
    the description of the loss in LightToken (Wang et al., KDD 2023); the paper's own formula was not at hand.
    x and y are whole rows, not residuals: only their angle means something to the model. `weights` have mean 1.
    """
    x_norm, y_norm = x.norm(dim=1), y.norm(dim=1)
    norms = x_norm * y_norm
    dot = (x * y).sum(1)
    magnitude = (weights * (x_norm - y_norm).square()).mean()
    angular = 2 * (weights * (norms - dot)).mean()
    cosine = (weights * dot / norms.clamp_min(1e-12)).mean()
    return ReconstructionLoss(magnitude + angular_weight * angular, magnitude, angular, cosine)


def weighted_error(table: Table, reconstruction: Table, weights: Weights) -> float:
    """Mean squared error over all entries, rows weighted by weights of mean 1."""
    return float((weights * (table - reconstruction).square().mean(1)).mean())


def table_variance(table: Tensor) -> float:
    """Variance of all entries, true at any scale; at least that of float32's rounding."""
    if table.dtype != torch.float64 and find_units(table).ordinary:
        return max(float(table.var()), torch.finfo(torch.float32).tiny)
    rounding = torch.finfo(torch.float32).eps * float(table.abs().max())
    return max(float(table.double().var()), rounding**2)


def table_errors(table: Table, rows: Table, weights: Weights) -> dict[str, float]:
    """The errors of decoded rows that an artifact's summary holds.

    nmse is the mean squared error over the variance of the table's entries; `rarest_nmse` is the nmse of the tenth of
    the rows with the smallest weights. Rows of zeros, such as those that pad a vocabulary, have no cosine.
    """
    if not find_units(table).ordinary:  # squares in float32 would overflow, vanish or cancel
        scale = 2.0 ** -math.frexp(float(table.abs().max()))[1]
        table, rows = table.double() * scale, rows.double() * scale
    variance = table_variance(table)
    chunks = list(zip(table.split(ROWS_PER_CHUNK), rows.split(ROWS_PER_CHUNK), strict=True))
    errors = torch.cat([(x - y).square().mean(1) for x, y in chunks]) / variance
    cosines = torch.cat([torch.cosine_similarity(x, y, dim=1)[x.any(1)] for x, y in chunks])
    rarest = weights.argsort(stable=True)[: max(1, len(table) // 10)]
    return {
        "nmse": _short(errors.mean()),
        "weighted_nmse": _short((weights * errors).mean()),
        "rarest_nmse": _short(errors[rarest].mean()),
        "cosine": round(float(cosines.mean()), 6) if len(cosines) else 1.0,
    }


def _short(error: Tensor) -> float:
    """An error to six decimals, or to four digits where it is small, as at a ratio of 4."""
    return round(float(error), 6) if float(error) > 1e-3 else float(f"{float(error):.4g}")
