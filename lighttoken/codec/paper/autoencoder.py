"""Stage 2 of the method: a binary autoencoder of the residual, trained through a tempered sigmoid."""

import math
from collections.abc import Iterator

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lighttoken.codec.loss import reconstruction_loss
from lighttoken.codec.paper.schedule import TemperatureSchedule


class BinaryAutoencoder(L.LightningModule):
    """One stage: residual (n, d) -> m logits -> sigmoid(logits / temperature) -> linear decoder -> residual (n, d).

    In training the code is soft; the schedule lowers the temperature from the first step of the trainer to
    the last, and the soft code approaches the hard one, logits > 0. The encoder is used once and never stored.
    Follows LightToken (Wang et al., KDD 2023); the linear encoder and the sizes are our choice.
    """

    def __init__(
        self,
        dim: int,
        m: int,
        scale: float,
        stage: int,
        *,
        schedule: TemperatureSchedule,
        angular_weight: float,
        learning_rate: float,
        decoder_learning_rate: float,
    ):
        """`scale` is the standard deviation of the residual; inputs are divided and outputs multiplied by it.

        `stage`, counted from 1, prefixes the logged metrics. `angular_weight` is b of the loss (1: plain Euclidean);
        `learning_rate`, of the encoder, and `decoder_learning_rate` are the peaks of a one-cycle schedule. The decoder
        bears the higher rate: given the codes it is a linear regression.
        """
        super().__init__()
        self.encoder = nn.Linear(dim, m)
        self.decoder = nn.Linear(m, dim)
        nn.init.normal_(self.decoder.weight, std=2 / math.sqrt(m))  # codes of +-1/2 then give outputs of variance 1
        nn.init.zeros_(self.decoder.bias)
        self.scale, self.stage = scale, stage
        self.schedule = schedule
        self.angular_weight = angular_weight
        self.learning_rate, self.decoder_learning_rate = learning_rate, decoder_learning_rate

    def encode(self, residual: Tensor) -> Tensor:
        """Hard bits (n, m), bool."""
        return self.encoder(residual / self.scale) > 0

    def soft_code(self, residual: Tensor, temperature: float) -> Tensor:
        """Outputs (n, m) of the tempered sigmoid, between 0 and 1."""
        return torch.sigmoid(self.encoder(residual / self.scale) / temperature)

    def decode(self, code: Tensor) -> Tensor:
        """Residual (n, d) of soft or hard codes (n, m)."""
        return self.decoder(code.to(self.decoder.weight.dtype) - 0.5) * self.scale

    def forward(self, residual: Tensor, temperature: float) -> Tensor:
        return self.decode(self.soft_code(residual, temperature))

    @property
    def temperature(self) -> float:
        """The schedule's temperature at the trainer's current step."""
        return self.schedule(min(1.0, self.trainer.global_step / self.trainer.max_steps))

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        rows, reconstruction, weights = batch
        output = reconstruction + self(rows - reconstruction, self.temperature)
        loss = reconstruction_loss(rows, output, weights, self.angular_weight)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            values: dict[str, Tensor | float] = {
                "loss": loss.total,
                "magnitude_loss": loss.magnitude,
                "angular_loss": loss.angular,
                "cosine": loss.cosine,
                "temperature": self.temperature,
            }
            self.log_dict({f"stage{self.stage}/{name}": value for name, value in values.items()})
        return loss.total / (
            rows.shape[1] * self.scale**2
        )  # relative to the residual's variance, whatever the table's units

    def configure_optimizers(self) -> OptimizerLRScheduler:
        rates = [self.learning_rate, self.decoder_learning_rate]
        optimizer = torch.optim.Adam([{"params": part.parameters()} for part in (self.encoder, self.decoder)])
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rates, total_steps=self.trainer.max_steps + 1, pct_start=0.1
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class RowBatches:
    """Endless batches (rows, reconstruction, weights): slices of a permutation, new each pass, of tensors in memory."""

    def __init__(self, table: Tensor, reconstruction: Tensor, weights: Tensor, batch_size: int):
        self.table, self.reconstruction, self.weights, self.batch_size = table, reconstruction, weights, batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while True:
            order = torch.randperm(len(self.table), device="cpu").to(self.table.device)
            for ids in order.split(self.batch_size):
                yield self.table[ids], self.reconstruction[ids], self.weights[ids]
