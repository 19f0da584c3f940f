"""Square roots of the error metric: codecs that minimise a squared error find codes where it is Euclidean."""

import torch
from jaxtyping import Float
from torch import Tensor


def metric_roots(error_metric: Tensor | None, dim: int) -> tuple[Float[Tensor, "d d"], Float[Tensor, "d d"]]:
    """Square root of an error metric (d, d) and its inverse, float64 on the CPU.

    Directions that the error metric ignores get a hundredth of its mean, so that they are decoded too.
    """
    if error_metric is None:
        return torch.eye(dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64)
    values, directions = torch.linalg.eigh(error_metric.cpu().double())
    values = (values / values.mean()).clamp_min(0.01).sqrt()
    return directions * values @ directions.T, directions / values @ directions.T
