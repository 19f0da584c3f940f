"""The reconstruction loss: an upper bound of the squared Euclidean distance that favours direction."""

from typing import NamedTuple

from torch import Tensor


class ReconstructionLoss(NamedTuple):
    """Weighted means over a batch of rows; `total` is the loss, the rest is what it is made of."""

    total: Tensor
    magnitude: Tensor  # (|x| - |y|)^2
    angular: Tensor  # 2 |x| |y| (1 - cos t), before it is multiplied by b
    cosine: Tensor


def reconstruction_loss(x: Tensor, y: Tensor, weights: Tensor, angular_weight: float) -> ReconstructionLoss:
    """L_b(x, y) = (|x| - |y|)^2 + 2 b |x| |y| (1 - cos t), with t the angle between rows x and y, both (n, d).

    `angular_weight` is b >= 1. At b = 1 the loss equals |x - y|^2; above, it bounds it from above. This is how we read
    the description of the loss in LightToken (Wang et al., KDD 2023); the paper's own formula was not at hand.
    x and y are whole rows, not residuals: only their angle means something to the model. `weights` (n,) have mean 1.
    """
    x_norm, y_norm = x.norm(dim=1), y.norm(dim=1)
    norms = x_norm * y_norm
    dot = (x * y).sum(1)
    magnitude = (weights * (x_norm - y_norm).square()).mean()
    angular = 2 * (weights * (norms - dot)).mean()
    cosine = (weights * dot / norms.clamp_min(1e-12)).mean()
    return ReconstructionLoss(magnitude + angular_weight * angular, magnitude, angular, cosine)
