"""Fine-tuning: the second LightningModule, around a backbone with a compressed embedding in."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import kl_div, mse_loss
from torchmetrics import Metric, MetricCollection
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from lighttoken.backbone.embedding import CompressedEmbedding, Trainable, set_trainable

LABELS = ("labels", "start_positions", "end_positions")  # of a batch


class FineTuner(L.LightningModule):
    """Trains a model of classes or numbers with AdamW, linear warm-up and decay (Devlin et al. 2019, appendix A.3).

    The backbone is trained; of its token embedding, what `trainable` says, and the same for every codec. Adam moves
    each number by about the learning rate, whatever its size: what is trained of a compressed embedding has a rate in
    proportion to its size next to that of the rows, as Adafactor's relative steps (Shazeer and Stern 2018). Scores
    are logged as `val/NAME` and, on rows held out of the training split, as `dev/NAME`.
    """

    teacher: PreTrainedModel | None

    def __init__(
        self,
        model: PreTrainedModel,
        metrics: Mapping[str, Metric],
        learning_rate: float,
        weight_decay: float,
        warmup_ratio: float,
        trainable: Trainable,
        splits: Sequence[str] = ("val", "dev"),
        teacher: PreTrainedModel | None = None,
        distill_weight: float = 0.5,
        distill_temperature: float = 2.0,
    ):
        """`warmup_ratio` is a share of all optimizer steps; `weight_decay` spares biases and normalisation weights.

        `splits` name the validation loaders, in order. Of the loss, `distill_weight` is the distance from the logits of
        a `teacher`, if there is one: for classes and spans at a temperature (Hinton et al. 2015), for numbers squared.
        """
        super().__init__()
        self.model = (
            model.train()
        )  # from_pretrained returns it in eval mode, and Lightning would keep it so: no dropout
        self.learning_rate, self.weight_decay, self.warmup_ratio = learning_rate, weight_decay, warmup_ratio
        self.distill_weight, self.temperature = distill_weight, distill_temperature
        # Not a child: it is neither trained nor saved.
        self.__dict__["teacher"] = teacher.eval().requires_grad_(False) if teacher else None
        set_trainable(model.get_input_embeddings(), trainable)
        scores = MetricCollection(dict(metrics))
        self.splits = list(splits)
        self.scores = nn.ModuleDict({split: scores.clone(prefix=f"{split}/") for split in splits})

    def forward(self, **batch: Tensor) -> Any:
        return self.model(**batch)

    def on_fit_start(self) -> None:
        self.seed = torch.initial_seed()
        if any(each.stopped_epoch for each in self.trainer.early_stopping_callbacks):
            self.trainer.should_stop = True  # it had stopped before it was killed, and is resumed
        if self.teacher is not None:
            nn.Module.to(self.teacher, self.device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout depends on the seed and the batch's number alone, so that a run that is resumed goes on as if never
        # stopped.
        number = self.trainer.fit_loop.total_batch_idx + 1
        torch.manual_seed((self.seed + 1_000_003 * number) % 2**63)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        output = self(**batch)
        loss = output.loss
        if self.teacher is not None:
            with torch.no_grad():
                answers = self.teacher(**_inputs(batch))
            distance = self.distance(output, answers)
            self.log("train/distance", distance)
            loss = (1 - self.distill_weight) * loss + self.distill_weight * distance
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def distance(self, output: Any, answers: Any) -> Tensor:
        """How far the logits of a batch are from those of the teacher."""
        names = [name for name in ("logits", "start_logits", "end_logits") if name in output]
        pairs = [(output[name].float(), answers[name].float()) for name in names]
        if pairs[0][0].ndim == 1 or pairs[0][0].shape[-1] == 1:
            return mse_loss(*pairs[0])
        soft = [[(each / self.temperature).log_softmax(-1) for each in pair] for pair in pairs]
        parts = [kl_div(ours, its, reduction="batchmean", log_target=True) for ours, its in soft]
        return self.temperature**2 * torch.stack(parts).mean()

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        split = self.splits[dataloader_idx]
        output = self(**batch)
        scores: Any = self.scores[split]
        scores.update(_answers(output.logits), batch["labels"])
        self.log(f"{split}/loss", output.loss, batch_size=len(batch["labels"]), add_dataloader_idx=False)
        self.log_dict(scores, prog_bar=True, batch_size=len(batch["labels"]), add_dataloader_idx=False)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """The answers (batch,) to a batch: classes, or numbers."""
        return _answers(self(**_inputs(batch)).logits)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        model: Any = self.model
        embedding = model.get_input_embeddings()
        scales = embedding.learning_rate_scales() if isinstance(embedding, CompressedEmbedding) else {}
        trained = [p for p in self.parameters() if p.requires_grad and p not in set(scales)]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},  # biases and normalisation weights
        ]
        for parameter, scale in scales.items():
            groups.append({"params": [parameter], "weight_decay": 0.0, "lr": self.learning_rate * scale})
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
            if starts and not self.trainer.sanity_checking:  # a few batches are no whole questions
                scores: Any = self.scores[split]
                scores.update(*data.best_answers(split, starts, ends))
                self.log_dict({name: value for name, value in scores.compute().items()}, prog_bar=True)
                scores.reset()

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Logits (batch, length) of starts and of ends."""
        output = self(**_inputs(batch))
        return output.start_logits.cpu(), output.end_logits.cpu()


def _inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: each for name, each in batch.items() if name not in LABELS}


def _answers(logits: Tensor) -> Tensor:
    """Logits (n, classes) to classes (n,); those of a regression, (n, 1), and of DeBERTa (n,), to numbers (n,)."""
    return logits.float().flatten() if logits.ndim == 1 or logits.shape[-1] == 1 else logits.argmax(-1)
