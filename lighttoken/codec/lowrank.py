"""Stage 1 of the method: the rank-k part of the table."""

import torch
from jaxtyping import Float64
from torch import Tensor

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


def truncated_svd(table: Table, rank: int, weights: Weights) -> tuple[Left, Right, Bias]:
    """Best rank-k approximation of the centred table under row weights (Eckart and Young 1936): left @ right + mean.

    Returns left, right with orthonormal rows, and mean. The right factor comes from
    the covariance (d, d), which is far smaller than the table; the left one is the table projected on it.
    """
    mean, covariance = weighted_moments(table, weights)
    directions = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :rank].T  # eigh sorts upwards
    signs = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()  # else arbitrary
    right = (directions * signs).to(table)
    return (table - mean) @ right.T, right, mean
