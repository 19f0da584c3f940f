"""Saturation detection: stops a stage just before its units stop learning."""

import lightning as L
import torch
from torch import Tensor

from lighttoken.codec.autoencoder import BinaryAutoencoder


class SaturationStop(L.Callback):
    """Stops a stage at the last check at which its saturation was still below `threshold`.

    Saturation is the share of (row, unit) pairs whose sigmoid output lies within `tolerance` of 0 or 1. Such a unit has
    next to no gradient, so a stage that is driven on learns nothing more (LightToken, KDD 2023: "just short of
    saturation"). It is measured every `every_n_steps` steps on `rows` rows spread evenly over the residual. The
    weights of the last check below the threshold are kept and put back when a later check reaches it; the first
    check, before training, always passes.
    """

    def __init__(
        self,
        residual: Tensor,
        *,
        threshold: float,
        tolerance: float,
        every_n_steps: int,
        rows: int,
    ):
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
        if trainer.global_step % self.every_n_steps == 0:
            saturation = self._check(trainer, pl_module)
            pl_module.log(f"stage{pl_module.stage}/saturation", saturation)

    def _check(self, trainer: L.Trainer, pl_module: L.LightningModule) -> float:
        assert isinstance(pl_module, BinaryAutoencoder)
        saturation = self.measure(pl_module, pl_module.temperature)
        if saturation >= self.threshold and self._weights:
            pl_module.load_state_dict(self._weights)
            trainer.should_stop = True
        else:
            self.saturation, self.steps = saturation, trainer.global_step
            self._weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
        return saturation
