"""The optimizer of every LightningModule that trains a backbone."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from transformers import get_linear_schedule_with_warmup


def adamw(
    module: L.LightningModule, groups: list[dict[str, Any]], learning_rate: float, warmup_ratio: float
) -> OptimizerLRScheduler:
    """AdamW with linear warm-up, for a share of all steps, and linear decay (Devlin et al. 2019, appendix A.3).

    `groups` are parameter groups of `torch.optim`.
    """
    # One kernel: on a CPU a step of a backbone of BERT's size takes a quarter of the time.
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    # Lightning does not clip gradients for an optimizer that can unscale them itself, as a fused one can.
    optimizer._step_supports_amp_scaling = False
    steps = int(module.trainer.estimated_stepping_batches)
    schedule = get_linear_schedule_with_warmup(optimizer, int(warmup_ratio * steps), steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
