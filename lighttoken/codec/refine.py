"""Codes and decoder of a linear binary code, fitted to each other after training."""

import torch
from jaxtyping import Shaped
from torch import Tensor

from lighttoken.codec.shapes import Bias, Bits, Decoder, Left, Right, Table, Weights

ROWS_PER_FIT = 2048  # rows that are widened to float32 at a time
ROWS_PER_CHUNK = 2048  # rows whose correlations with all decoder rows fit into a cache


def refit_decoder(
    features: Shaped[Tensor, "V m"], target: Table, weights: Weights, ridge: float = 1e-6
) -> tuple[Decoder, Bias]:
    """Weighted least squares: the matrix and the bias that bring features @ matrix + bias nearest to the target.

    `features` are bits, perhaps beside the left factor of the low-rank part, or coefficients. The
    normal equations get a `ridge`, a share of their mean diagonal: a unit that fires for every row, or two that always
    agree, leave them singular, and the ridge then picks a small solution.
    """
    size = features.shape[1] + 1
    gram, moment = torch.zeros(size, size).double(), torch.zeros(size, target.shape[1]).double()
    chunks = (tensor.split(ROWS_PER_FIT) for tensor in (features, target, weights))
    for part, rows, part_weights in zip(*chunks, strict=True):
        design = torch.cat([part.to(target.dtype), target.new_ones(len(part), 1)], dim=1)
        weighted = (design * part_weights.unsqueeze(1)).T
        gram += (weighted @ design).cpu()
        moment += (weighted @ rows).cpu()
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    solution = torch.linalg.solve(gram, moment).to(target)
    return solution[:-1], solution[-1]


def flip_bits(bits: Bits, residual: Table, decoder: Decoder, sweeps: int = 1) -> Bits:
    """Coordinate descent on the bits: flip one after another where that brings a row nearer to its target.

    `residual` is target - bits @ decoder. A flip by s = +-1 changes a row's squared error by
    |d_j|^2 - 2 s (residual . d_j), so that it is enough to keep the correlations (V, m) up to date. No row's error
    rises.
    """
    gram = decoder @ decoder.T
    flipped = []
    for part, rest in zip(bits.split(ROWS_PER_CHUNK), residual.split(ROWS_PER_CHUNK), strict=True):
        sign = 1.0 - 2.0 * part.to(rest.dtype).T  # (m, n): what a flip adds
        correlation = decoder @ rest.T
        for _ in range(sweeps):
            for j in range(len(decoder)):
                # Flip bit j of the rows that gain, then correct the correlations and the sign of the next flip.
                step = torch.where(2 * sign[j] * correlation[j] > gram[j, j] * (1 + 1e-6), sign[j], 0.0)
                correlation -= torch.outer(gram[j], step)
                sign[j] -= 2 * step
        flipped.append((sign < 0).T)
    return torch.cat(flipped) if flipped else bits


def refine_codes(
    bits: Bits, left: Left, table: Table, weights: Weights, rounds: int, tolerance: float
) -> tuple[Bits, Right, Decoder, Bias, list[float]]:
    """Alternate `flip_bits` and a weighted least-squares refit until a round gains less than a share `tolerance`.

    Returns bits, right factor, decoder, bias, and the weighted squared error before and after each round, which never
    rises.
    """
    rank = left.shape[1]

    def fit(bits: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        matrix, bias = refit_decoder(torch.cat([left, bits.to(left.dtype)], 1), table, weights)
        residual = table - left @ matrix[:rank] - bits.to(left.dtype) @ matrix[rank:] - bias
        return matrix, bias, residual, float((weights * residual.square().mean(1)).mean())

    matrix, bias, residual, error = fit(bits)
    errors = [error]
    for _ in range(rounds):
        new_bits = flip_bits(bits, residual, matrix[rank:])
        new_matrix, new_bias, new_residual, error = fit(new_bits)
        if error > errors[-1]:  # least squares have a ridge and float32 rounds: the last rounds may lose
            break
        bits, matrix, bias, residual = new_bits, new_matrix, new_bias, new_residual
        errors.append(error)
        if errors[-2] - error < tolerance * errors[-2]:
            break
    return bits, matrix[:rank], matrix[rank:], bias, errors
