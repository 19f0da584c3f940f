"""Fine-tuning: the second LightningModule, around a backbone with a compressed embedding in."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from lighttoken.embedding import Trainable, set_trainable


class FineTuner(L.LightningModule):
    """Trains a model of classes or numbers with AdamW, linear warm-up and decay (Devlin et al. 2019, appendix A.3).

    The backbone is trained; of its token embedding, what `trainable` says, and the same for every codec. Scores
    are logged as `val/NAME` and, on rows held out of the training split, as `dev/NAME`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        metrics: Mapping[str, Metric],
        learning_rate: float,
        weight_decay: float,
        warmup_ratio: float,
        trainable: Trainable,
        splits: Sequence[str] = ("val", "dev"),
    ):
        """`warmup_ratio` is a share of all optimizer steps; `weight_decay` spares biases and normalisation weights.

        `splits` name the validation loaders, in order.
        """
        super().__init__()
        self.model = (
            model.train()
        )  # from_pretrained returns it in eval mode, and Lightning would keep it so: no dropout
        self.learning_rate, self.weight_decay, self.warmup_ratio = learning_rate, weight_decay, warmup_ratio
        set_trainable(model.get_input_embeddings(), trainable)
        scores = MetricCollection(dict(metrics))
        self.splits = list(splits)
        self.scores = nn.ModuleDict({split: scores.clone(prefix=f"{split}/") for split in splits})

    def forward(self, **batch: Tensor) -> Any:
        return self.model(**batch)

    def on_fit_start(self) -> None:
        self.seed = torch.initial_seed()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout depends on the seed and the step alone, so that a run that is resumed goes on as if never stopped.
        torch.manual_seed((self.seed + 1_000_003 * (self.global_step + 1)) % 2**63)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        loss = self(**batch).loss
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        split = self.splits[dataloader_idx]
        output = self(**batch)
        scores: Any = self.scores[split]
        scores.update(_answers(output.logits), batch["labels"])
        self.log(f"{split}/loss", output.loss, batch_size=len(batch["labels"]), add_dataloader_idx=False)
        self.log_dict(scores, prog_bar=True, batch_size=len(batch["labels"]), add_dataloader_idx=False)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """The answers (batch,) to a batch: classes, or numbers."""
        return _answers(self(**{name: each for name, each in batch.items() if name != "labels"}).logits)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},  # biases and normalisation weights
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_linear_schedule_with_warmup(optimizer, int(self.warmup_ratio * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class SpanFineTuner(FineTuner):
    """Fine-tunes a model that points at a span of a context (SQuAD); scores the answers to whole questions."""

    def on_validation_epoch_start(self) -> None:
        self.spans: dict[str, list[list[Tensor]]] = {split: [[], []] for split in self.splits}

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        split, output = self.splits[dataloader_idx], self(**batch)
        for found, logits in zip(self.spans[split], (output.start_logits, output.end_logits), strict=True):
            found += list(logits.cpu())
        self.log(f"{split}/loss", output.loss, batch_size=len(logits), add_dataloader_idx=False)

    def on_validation_epoch_end(self) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        for split, (starts, ends) in self.spans.items():
            if starts:
                scores: Any = self.scores[split]
                scores.update(*data.best_answers(split, starts, ends))
                self.log_dict({name: value for name, value in scores.compute().items()}, prog_bar=True)
                scores.reset()

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Logits (batch, length) of starts and of ends."""
        output = self(**{name: each for name, each in batch.items() if not name.endswith("_positions")})
        return output.start_logits.cpu(), output.end_logits.cpu()


def _answers(logits: Tensor) -> Tensor:
    """Logits (n, classes) to classes (n,); those of a regression, (n, 1), and of DeBERTa (n,), to numbers (n,)."""
    return logits.float().flatten() if logits.ndim == 1 or logits.shape[-1] == 1 else logits.argmax(-1)
