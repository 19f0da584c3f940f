"""Fitting the decoder to codes that no longer change."""

import torch
from torch import Tensor


def refit_decoder(bits: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted least squares: the decoder (m, d) and bias (d,) that bring bits @ decoder + bias next to target (V, d).

    The normal equations get a ridge of 1e-6 of their mean diagonal: a unit that fires for every row, or two that
    always agree, leave them singular, and the ridge then picks a small solution.
    """
    design = torch.cat([bits.to(target.dtype), target.new_ones(len(bits), 1)], dim=1)
    weighted = (design * weights.unsqueeze(1)).T
    gram, moment = (weighted @ design).cpu().double(), (weighted @ target).cpu().double()
    gram.diagonal().add_(1e-6 * gram.diagonal().mean())
    solution = torch.linalg.solve(gram, moment).to(target)
    return solution[:-1], solution[-1]
