"""Saturation detection: stops a stage just before its units stop learning."""

import logging

import lightning as L
import torch
from torch import Tensor

from lighttoken.codec.paper.autoencoder import BinaryAutoencoder

log = logging.getLogger(__name__)


class SaturationStop(L.Callback):
    """Stops a stage at the last check at which its saturation was still below `threshold`.

    Saturation is the share of (row, unit) pairs whose sigmoid output lies within `tolerance` of 0 or 1. Such a unit has
    next to no gradient, so a stage that is driven on learns nothing more (LightToken, KDD 2023: "just short of
    saturation"). It is measured every `every_n_steps` steps, and at the last one, on `rows` rows spread evenly over the
    residual. The weights of the last check below the threshold are kept and put back when a later check reaches it;
    the first check, before training, always passes.
    """

    def __init__(self, residual: Tensor, *, threshold: float, tolerance: float, every_n_steps: int, rows: int):
        self.threshold, self.tolerance, self.every_n_steps = threshold, tolerance, every_n_steps
        self.rows = residual[torch.linspace(0, len(residual) - 1, min(rows, len(residual))).long().to(residual.device)]
        self.saturation = 0.0  # at the last check below the threshold
        self.steps = 0  # the optimizer step of that check
        self._weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def measure(self, autoencoder: BinaryAutoencoder, temperature: float) -> float:
        """Share, 0 to 1, of outputs within `tolerance` of 0 or 1."""
        output = autoencoder.soft_code(self.rows.to(autoencoder.device), temperature)
        return float(((output < self.tolerance) | (output > 1 - self.tolerance)).float().mean())

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        if trainer.global_step % self.every_n_steps == 0 or trainer.global_step == trainer.max_steps:
            self._check(trainer, pl_module)

    def _check(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, BinaryAutoencoder)
        saturation = self.measure(pl_module, pl_module.temperature)
        for logger in trainer.loggers:
            logger.log_metrics({f"stage{pl_module.stage}/saturation": saturation}, step=trainer.global_step)
        if saturation < self.threshold or not self._weights:
            self.saturation, self.steps = saturation, trainer.global_step
            self._weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
            return
        pl_module.load_state_dict(self._weights)
        trainer.should_stop = True
        if self.steps == 0:
            log.warning(
                "stage %d is saturated at %.2f before step %d and keeps untrained weights; "
                "raise the temperature's start or saturation.threshold, or lower saturation.every_n_steps",
                pl_module.stage,
                saturation,
                trainer.global_step,
            )
