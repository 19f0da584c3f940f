"""Fine-tuning: the second LightningModule, around a backbone with a compressed embedding."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import kl_div, mse_loss
from torchmetrics import MeanMetric, Metric, MetricCollection
from transformers import PreTrainedModel

from lighttoken.backbone.embedding import CompressedEmbedding, Trainable, set_trainable
from lighttoken.tasks.optimizer import adamw
from lighttoken.tasks.shares import SharingModule, in_order

LABELS = ("labels", "start_positions", "end_positions")  # the entries of a batch that are no inputs


class FineTuner(SharingModule):
    """Trains a classifier or a regression with AdamW, linear warm-up and decay (Devlin et al. 2019, appendix A.3).

    The backbone is trained. `trainable` says which parts of its token embedding are trained too, the same for every
    codec. Adam moves a number by about the learning rate, whatever its size. So a trained matrix of a compressed
    embedding has a learning rate in proportion to its size over the size of the rows, like the relative steps of
    Adafactor (Shazeer and Stern 2018). Scores are logged as `val/NAME` and, for held-out training rows, as `dev/NAME`.
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
        """`warmup_ratio` is a share of all optimizer steps. Biases and normalisation parameters have no weight decay.

        `splits` are the prefixes of the logged scores, one for every validation loader, in order. With a `teacher` the
        loss is (1 - distill_weight) times the task's loss plus `distill_weight` times the distance from the teacher's
        logits: for classes and spans at a temperature (Hinton et al. 2015), for numbers squared.
        """
        super().__init__()
        # from_pretrained returns a model in eval mode. Lightning would keep that mode, and there would be no dropout.
        self.model = model.train()
        self.learning_rate, self.weight_decay, self.warmup_ratio = learning_rate, weight_decay, warmup_ratio
        self.distill_weight, self.temperature = distill_weight, distill_temperature
        # Not a submodule: the teacher is neither trained nor saved.
        self.__dict__["teacher"] = teacher.eval().requires_grad_(False) if teacher else None
        set_trainable(model.get_input_embeddings(), trainable)
        scores = MetricCollection(dict(metrics))
        self.splits = list(splits)
        self.scores = nn.ModuleDict({split: scores.clone(prefix=f"{split}/") for split in splits})
        # A loss that is no number stays one; with nan_strategy="disable" torchmetrics 1.9 would ignore the weights.
        self.losses = nn.ModuleDict({split: MeanMetric(nan_strategy=math.nan) for split in splits})

    def forward(self, **batch: Tensor) -> Any:
        return self.model(**batch)

    def on_fit_start(self) -> None:
        self.seed = torch.initial_seed()
        if any(callback.stopped_epoch for callback in self.trainer.early_stopping_callbacks):
            self.trainer.should_stop = True  # a resumed run that had stopped early before it was killed
        if self.teacher is not None:
            nn.Module.to(self.teacher, self.device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout depends on the seed, the number of the batch and the process alone. So a resumed run draws what a run
        # without a break draws.
        number = (self.trainer.fit_loop.total_batch_idx + 1) * self.trainer.world_size + self.trainer.global_rank
        torch.manual_seed((self.seed + 1_000_003 * number) % 2**63)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        output = self(**batch)
        loss = output.loss
        if self.teacher is not None:
            with torch.no_grad():
                target = self.teacher(**model_inputs(batch))
            distance = self.distance(output, target)
            self.log_mean("train/distance", distance)
            loss = (1 - self.distill_weight) * loss + self.distill_weight * distance
        self.log_mean("train/loss", loss, prog_bar=True)
        return self.weight * loss

    def distance(self, output: Any, target: Any) -> Tensor:
        """The distance between a model's logits and the teacher's, averaged over the batch.

        For numbers the squared difference; for classes and spans the Kullback-Leibler divergence at a temperature,
        times the temperature squared, averaged over starts and ends.
        """
        names = [name for name in ("logits", "start_logits", "end_logits") if name in output]
        pairs = [(output[name].float(), target[name].float()) for name in names]
        if _is_regression(pairs[0][0]):
            return mse_loss(*pairs[0])
        soft = [[(logits / self.temperature).log_softmax(-1) for logits in pair] for pair in pairs]
        parts = [kl_div(ours, theirs, reduction="batchmean", log_target=True) for ours, theirs in soft]
        return self.temperature**2 * torch.stack(parts).mean()

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Any:
        """The `answers` and the `labels` (rows,) of a batch."""
        split, labels = self.splits[dataloader_idx], batch["labels"][: self.rows]
        output = self(**batch)
        answers = _answers(output.logits)[: self.rows]
        scores: Any = self.scores[split]
        if len(labels):
            scores.update(answers, labels)
        self.log_loss(split, output.loss, len(labels))
        self.log_dict(scores, prog_bar=True, batch_size=len(labels), add_dataloader_idx=False)
        return {"answers": answers, "labels": labels}

    def log_loss(self, split: str, loss: Tensor, rows: int) -> None:
        """Log the mean loss of a split, given that of the `rows` of a batch."""
        losses: Any = self.losses[split]
        losses.update(loss, rows)  # Lightning's own mean is wrong for processes with unequal numbers of rows
        self.log(f"{split}/loss", losses, batch_size=rows, add_dataloader_idx=False)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Any:
        """The answers (batch,): classes or numbers."""
        return _answers(self(**model_inputs(batch)).logits)[: self.rows].cpu()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        model: Any = self.model
        embedding = model.get_input_embeddings()
        scales = embedding.learning_rate_scales() if isinstance(embedding, CompressedEmbedding) else {}
        trained = [p for p in self.parameters() if p.requires_grad and p not in set(scales)]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},  # biases, normalisation
        ]
        for parameter, scale in scales.items():
            groups.append({"params": [parameter], "weight_decay": 0.0, "lr": self.learning_rate * scale})
        return adamw(self, groups, self.learning_rate, self.warmup_ratio)


class SpanFineTuner(FineTuner):
    """Fine-tunes a model that points at a span of a context (SQuAD), and scores the answers to whole questions."""

    def on_validation_epoch_start(self) -> None:
        # For every split and batch of windows, the logits (batch, length) of starts and of ends.
        self.spans: dict[str, list[tuple[Tensor, Tensor]]] = {split: [] for split in self.splits}

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        split, output = self.splits[dataloader_idx], self(**batch)
        self.spans[split].append(self.logits(output))
        self.log_loss(split, output.loss, len(output.start_logits[: self.rows]))

    def logits(self, output: Any) -> tuple[Tensor, Tensor]:
        """The logits (batch, length) of starts and of ends."""
        return output.start_logits[: self.rows].cpu(), output.end_logits[: self.rows].cpu()

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:  # a few batches do not hold whole questions
            return
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        for split, batches in self.spans.items():
            if batches:
                scores: Any = self.scores[split]
                spans = in_order(batches)  # the windows of a question may be of several processes
                if self.trainer.is_global_zero:
                    scores.update(*data.best_answers(split, spans))
                self.log_dict(scores.compute(), prog_bar=True)
                scores.reset()

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Any:
        """The logits (batch, length) of starts and of ends."""
        return self.logits(self(**model_inputs(batch)))


def model_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a batch that a model without a loss takes: all but the labels."""
    return {name: tensor for name, tensor in batch.items() if name not in LABELS}


def _is_regression(logits: Tensor) -> bool:
    """Whether logits are numbers: their shape is (n, 1) or, from DeBERTa, (n,)."""
    return logits.ndim == 1 or logits.shape[-1] == 1


def _answers(logits: Tensor) -> Tensor:
    """Logits (n, classes) to classes (n,), or numbers (n, 1) or (n,) to numbers (n,)."""
    return logits.float().flatten() if _is_regression(logits) else logits.argmax(-1)
