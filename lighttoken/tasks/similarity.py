"""Semantic textual similarity, zero-shot: the cosine of two sentences' vectors against a judged similarity."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from datasets import Dataset, DatasetDict
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.utils.data import DataLoader
from torchmetrics import Metric
from transformers import PreTrainedModel

from lighttoken.backbone.source import Backbone
from lighttoken.errors import LighttokenError
from lighttoken.tasks.zero_shot import Scorer, ZeroShotData

Pooling = Literal["mean", "cls"]


class SentenceSimilarity(ZeroShotData):
    """Pairs of sentences and a number that says how alike they are, as STS-B (Cer et al., SemEval 2017)."""

    def __init__(
        self, *args: Any, label_column: str = "label", prefix: str = "", pooling: Pooling | None = None, **kwargs: Any
    ):
        """`prefix` stands before every sentence, as models like E5 expect it.

        `pooling`: `mean` of the last hidden states, or `cls`, the first of them. Without it, what the checkpoint's
        folder says for sentence-transformers, else the mean.
        """
        super().__init__(*args, **kwargs)
        if len(self.text_columns) != 2:
            raise LighttokenError(
                f"task.text_columns has {len(self.text_columns)} columns, {', '.join(self.text_columns)}; give the two "
                "whose similarity is scored"
            )
        self.label_columns, self.prefix, self.pooling = [label_column], prefix, pooling

    def make_model(self, backbone: Backbone) -> PreTrainedModel:
        pooling: Any = self.pooling or backbone.pooling() or "mean"
        if pooling not in get_args(Pooling):
            raise LighttokenError(
                f"model={backbone.label} has the pooling {pooling!r}; set task.pooling=mean or task.pooling=cls"
            )
        self.pooling = pooling
        return backbone.encoder()

    def scorer(self, model: PreTrainedModel, original: PreTrainedModel) -> Scorer:
        return SimilarityScorer(model, self.metrics, self.pooling or "mean")

    def _check(self, raw: DatasetDict) -> None:
        """Also raises LighttokenError for the first row whose similarity is no number."""
        super()._check(raw)
        for i, label in enumerate(raw["validation"][self.label_columns[0]]):
            if not (isinstance(label, (int, float)) and math.isfinite(label)):
                raise LighttokenError(
                    f"row {i} of task={self.name} has {label!r} in {self.label_columns[0]}; it must be a number"
                )

    def encode(self, raw: DatasetDict) -> dict[str, Dataset]:
        """The tokens of both sentences, and the length of the longer one, by which the rows are sorted."""
        rows = raw["validation"]
        columns = {}
        for side, column in zip(("first", "second"), self.text_columns, strict=True):
            texts = [self.prefix + text for text in rows[column]]
            columns[side] = self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        lengths = [max(map(len, pair)) for pair in zip(*columns.values(), strict=True)]
        labels = [float(label) for label in rows[self.label_columns[0]]]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        encoded = Dataset.from_dict(columns | {"labels": labels, "length": lengths})
        return {"validation": encoded.select(order)}

    def val_dataloader(self) -> list[DataLoader]:
        rows: Any = self.splits["validation"]
        return [DataLoader(rows, batch_size=self.eval_batch_size, collate_fn=self._batch)]

    def _batch(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The inputs (n, 2, length), of the first and the second sentence; and `labels` (n,)."""
        ids = [row[side] for row in rows for side in ("first", "second")]
        inputs = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        pairs = {name: tensor.unflatten(0, (-1, 2)) for name, tensor in inputs.items()}
        return {**pairs, "labels": torch.tensor([row["labels"] for row in rows])}


class SimilarityScorer(Scorer):
    """Correlations of the cosines of pooled last hidden states with the judged similarities."""

    def __init__(self, model: PreTrainedModel, metrics: Mapping[str, Metric], pooling: Pooling):
        super().__init__(model, metrics)
        self.pooling = pooling

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """The `answers` and the `labels` (rows,) of a batch."""
        labels = batch.pop("labels")[: self.rows]
        # All first sentences, then all second ones.
        inputs = {name: tensor.transpose(0, 1).flatten(0, 1) for name, tensor in batch.items()}
        mask = inputs["attention_mask"].unsqueeze(2)
        states = self.model(**inputs).last_hidden_state.float()
        pooled = states[:, 0] if self.pooling == "cls" else (states * mask).sum(1) / mask.sum(1)
        similarity = cosine_similarity(*pooled.chunk(2))[: self.rows]
        for name in self.scores:
            self.update(name, similarity, labels)
        return {"answers": similarity, "labels": labels}
