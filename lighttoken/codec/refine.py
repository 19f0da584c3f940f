"""Codes and decoder of a linear binary code, fitted to each other after training."""

import torch
from torch import Tensor

ROWS_PER_FIT = 2048  # rows that are widened to float32 at a time
ROWS_PER_CHUNK = 2048  # rows whose correlations with all decoder rows fit into a cache


def refit_decoder(features: Tensor, target: Tensor, weights: Tensor, ridge: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Weighted least squares: matrix (m, d) and bias (d,) that bring features @ matrix + bias next to target (V, d).

    `features` (V, m) are bits, with the left factor of the low-rank part next to them or not, or coefficients. The
    normal equations get a `ridge`, a share of their mean diagonal: a unit that fires for every row, or two that always
    agree, leave them singular, and the ridge then picks a small solution.
    """
    size = features.shape[1] + 1
    gram, moment = torch.zeros(size, size).double(), torch.zeros(size, target.shape[1]).double()
    chunks = (each.split(ROWS_PER_FIT) for each in (features, target, weights))
    for part, rows, importance in zip(*chunks, strict=True):
        design = torch.cat([part.to(target.dtype), target.new_ones(len(part), 1)], dim=1)
        weighted = (design * importance.unsqueeze(1)).T
        gram += (weighted @ design).cpu()
        moment += (weighted @ rows).cpu()
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    solution = torch.linalg.solve(gram, moment).to(target)
    return solution[:-1], solution[-1]


def flip_bits(bits: Tensor, residual: Tensor, decoder: Tensor, sweeps: int = 1) -> Tensor:
    """Coordinate descent on the bits (V, m): flip each, in turn, where that brings a row nearer to its target.

    `residual` (V, d) is target - bits @ decoder, decoder (m, d). A flip by s = +-1 changes a row's squared error by
    |d_j|^2 - 2 s (residual . d_j), so that it is enough to keep the correlations (V, m) up to date. No row's error
    rises. Returns the new bits.
    """
    gram = decoder @ decoder.T
    flipped = []
    for old, rest in zip(bits.split(ROWS_PER_CHUNK), residual.split(ROWS_PER_CHUNK), strict=True):
        sign = 1.0 - 2.0 * old.to(rest.dtype).T  # (m, n): what a flip adds
        correlation = decoder @ rest.T
        for _ in range(sweeps):
            for j in range(len(decoder)):
                step = torch.where(2 * sign[j] * correlation[j] > gram[j, j] * (1 + 1e-6), sign[j], 0.0)
                correlation -= torch.outer(gram[j], step)
                sign[j] -= 2 * step
        flipped.append((sign < 0).T)
    return torch.cat(flipped) if flipped else bits


def refine_codes(
    bits: Tensor, left: Tensor, table: Tensor, weights: Tensor, rounds: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[float]]:
    """Alternate `flip_bits` and a weighted least-squares refit until a round gains less than a share `tolerance`.

    Of bits (V, m), left factor (V, k) and table (V, d) under weights (V,). Returns bits, right factor (k, d), decoder
    (m, d), bias (d,), and the weighted squared error before and after each round, which never rises.
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
        if error > errors[-1]:  # least squares with a ridge, in float32: at the end, rounding has the last word
            break
        bits, matrix, bias, residual = new_bits, new_matrix, new_bias, new_residual
        errors.append(error)
        if errors[-2] - error < tolerance * errors[-2]:
            break
    return bits, matrix[:rank], matrix[rank:], bias, errors
