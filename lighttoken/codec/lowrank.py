"""Stage 1 of the method: the rank-k part of the table."""

import torch
from jaxtyping import Float64
from torch import Tensor

from lighttoken.codec.metric_roots import metric_roots
from lighttoken.codec.shapes import Bias, Left, Right, Table, Weights

ROWS_PER_CHUNK = 2048  # so that work space stays small next to the table


def weighted_moments(table: Table, weights: Weights) -> tuple[Bias, Float64[Tensor, "d d"]]:
    """Mean and covariance of the rows of a table under row weights of mean 1.

    The covariance is on the CPU: it is small, and what follows takes no time there.
    """
    mean = weights @ table / len(table)
    covariance = torch.zeros(table.shape[1], table.shape[1], dtype=torch.float64)
    for rows, part in zip(table.split(ROWS_PER_CHUNK), weights.split(ROWS_PER_CHUNK), strict=True):
        scaled = (rows - mean) * part.sqrt().unsqueeze(1)
        covariance += (scaled.T @ scaled).cpu()
    return mean, covariance / len(table)


def truncated_svd(
    table: Table, rank: int, weights: Weights, error_metric: Tensor | None = None
) -> tuple[Left, Right, Bias]:
    """Best rank-k approximation of the centred table under row weights and an error metric: left @ right + mean.

    By Eckart and Young (1936), where the error metric is Euclidean. Returns left, right, whose rows are orthonormal if
    there is no error metric, and mean. The right factor comes from the covariance (d, d), which is far smaller than the
    table; the left one is the table projected on it.
    """
    root, inverse_root = metric_roots(error_metric, table.shape[1])
    mean, covariance = weighted_moments(table, weights)
    directions = torch.linalg.eigh(root @ covariance @ root).eigenvectors.flip(1)[:, :rank].T  # eigh sorts upwards
    signs = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()  # else arbitrary
    directions = directions * signs
    return (table - mean) @ (directions @ root).to(table).T, (directions @ inverse_root).to(table), mean
