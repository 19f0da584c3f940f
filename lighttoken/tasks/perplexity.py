"""Perplexity of a language model on a text, and how far its predictions are from the original model's."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from torch import Tensor
from torch.nn.functional import kl_div, nll_loss
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lighttoken.backbone.embedding import CompressedEmbedding
from lighttoken.backbone.language_model import body_output, head_logits, is_masked
from lighttoken.backbone.source import Backbone
from lighttoken.codec.prior import special_tokens
from lighttoken.errors import LighttokenError
from lighttoken.tasks.zero_shot import Scorer, ZeroShotData

NOT_SCORED = -100
LOGITS = 2**24  # numbers in memory at once: 64 positions of a vocabulary of 262,144


class PerplexityData(ZeroShotData):
    """Strided windows over the tokens of a text.

    A window begins and ends with the tokenizer's special tokens, if it has any. The next one begins `stride` tokens
    later, and scores the tokens that no window before it has scored: a small stride gives them more context.

    A decoder's token is predicted from the tokens before it in its window. The perplexity is the exponential of the
    mean negative log-likelihood, in nats; a token without any before it is not scored. A masked model's token is
    predicted from all others in its window while a mask stands in its place: the pseudo-perplexity of Salazar et al.
    (ACL 2020, equation 3). That takes a pass over the window for every token. With `mask_every` k, a pass masks
    every k-th token, and k passes score all of them: k / window of the cost, and a higher value, as the other masked
    tokens are missing in the context. Values of different k are not comparable.
    """

    label_columns = ()
    pads = False  # with the tokenizer's token: many decoders have none
    length_key = "window"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        metrics: Mapping[str, Metric],
        column: str = "text",
        window: int = 512,
        stride: int | None = None,
        max_tokens: int | None = None,
        mask_every: int | None = None,
        **kwargs: Any,
    ):
        """`window`, `stride` and `max_tokens`, the first tokens of the text that are read, are in tokens.

        The window counts special tokens; without a stride, windows do not overlap. The rows of a column are joined by
        empty lines. Raises LighttokenError for a number that is out of range.
        """
        super().__init__(tokenizer, name, [column], metrics, max_length=window, **kwargs)
        for key, count in {"stride": stride, "max_tokens": max_tokens, "mask_every": mask_every}.items():
            if count is not None and count < 1:
                raise LighttokenError(f"task.{key} is {count}; it must be 1 or above, or null")
        self.stride, self.max_tokens, self.mask_every = stride, max_tokens, mask_every
        self.masked = False

    def make_model(self, backbone: Backbone) -> PreTrainedModel:
        model = backbone.language_model()
        self.masked = is_masked(model.config)
        if self.masked and self.tokenizer.mask_token_id is None:
            raise LighttokenError(
                f"the tokenizer of model={backbone.label} has no mask token; set it and save it again"
            )
        return model

    def scorer(self, model: PreTrainedModel, original: PreTrainedModel) -> Scorer:
        return PerplexityScorer(model, self.metrics, original)

    def encode(self, raw: DatasetDict) -> dict[str, Dataset]:
        """The windows: their tokens `input_ids`, of which those from `first` to before `last` are scored."""
        text = "\n\n".join(raw["validation"][self.text_columns[0]])
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][: self.max_tokens]
        before, after = special_tokens(self.tokenizer)
        size = self.max_length - len(before) - len(after)
        stride = size if self.stride is None else self.stride
        if len(ids) < 2 or not 1 <= stride <= size:
            raise LighttokenError(
                f"task={self.name} has a text of {len(ids)} tokens, windows of {size} without special tokens and "
                f"task.stride={stride}; give a text of 2 tokens or more, and a stride of 1 to {size}"
            )
        rows, done = [], 0
        for start in range(0, len(ids), stride):
            inner = ids[start : start + size]
            first, last = len(before) + done - start, len(before) + len(inner)
            tokens = [*before, *inner, *after]
            rows.append({"input_ids": tokens, "first": first, "last": last, "length": len(tokens)})
            done = start + len(inner)
            if done == len(ids):
                break
        return {"validation": Dataset.from_list(rows)}

    def val_dataloader(self) -> list[DataLoader]:
        """Batches of windows; of a masked model, of copies of windows with other tokens masked."""
        windows = self.splits["validation"]
        counts = [last - first for first, last in zip(windows["first"], windows["last"], strict=True)]
        copies = [min(self.mask_every or count, count) if self.masked else 1 for count in counts]
        places = [(window, turn) for window, number in enumerate(copies) for turn in range(number)]
        return [DataLoader(places, batch_size=self.eval_batch_size, collate_fn=self._batch)]  # type: ignore[arg-type]

    def _batch(self, places: list[tuple[int, int]]) -> dict[str, Tensor]:
        """Inputs, and `labels`: at every position the token that its logits predict, or -100."""
        inputs, targets = [], []
        for window, turn in places:
            row = self.splits["validation"][window]
            ids = torch.tensor(row["input_ids"])
            labels = torch.full_like(ids, NOT_SCORED)
            scored = torch.arange(row["first"], row["last"])
            if self.masked:
                scored = scored[turn :: self.mask_every or len(scored)]
                labels[scored] = ids[scored]
                ids[scored] = self.tokenizer.mask_token_id
            else:
                scored = scored[scored > 0]
                labels[scored - 1] = ids[scored]
            inputs.append(ids)
            targets.append(labels)
        return {
            "input_ids": pad_sequence(inputs, batch_first=True, padding_value=self.tokenizer.pad_token_id or 0),
            "attention_mask": pad_sequence([torch.ones_like(ids) for ids in inputs], batch_first=True),
            "labels": pad_sequence(targets, batch_first=True, padding_value=NOT_SCORED),
        }


class Mean(MeanMetric):
    """A mean that is NaN as soon as one value is: torchmetrics would leave that value out."""

    def __init__(self) -> None:
        super().__init__(nan_strategy=math.nan)


class Perplexity(Mean):
    """The exponential of the mean negative log-likelihood.

    That of torchmetrics takes the logarithm of a softmax, which is infinite for a token of a probability below 1e-45.
    """

    def compute(self) -> Tensor:
        return super().compute().exp()


class PerplexityScorer(Scorer):
    """Perplexity, and at the scored positions the KL divergence in nats from the original model's distribution to this
    model's, and the share where both find the same token the most likely.

    No logits are kept: those of both models are made for a few positions at a time. Of the two tables in memory one is
    the original, and the compressed one is decoded once: packed, a tied head would decode it for every few positions.
    """

    def __init__(self, model: PreTrainedModel, metrics: Mapping[str, Metric], original: PreTrainedModel):
        super().__init__(model, metrics)
        self.original = original.eval()

    def on_validation_start(self) -> None:
        embedding = self.model.get_input_embeddings()
        if isinstance(embedding, CompressedEmbedding):
            embedding.set_mode("materialized")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        labels = batch.pop("labels")
        scored = labels != NOT_SCORED
        scored[len(labels[: self.rows]) :] = False
        models = [self.model] if self.original is self.model else [self.model, self.original]
        outputs: list[Any] = [body_output(model, batch) for model in models]
        states = [output.last_hidden_state[scored] for output in outputs]
        for part in torch.arange(int(scored.sum())).split(
            max(1, LOGITS // self.model.config.get_text_config().vocab_size)
        ):
            logits = [head_logits(*group) for group in zip(models, outputs, (s[part] for s in states), strict=True)]
            self._score([entry.float().log_softmax(-1) for entry in logits], labels[scored][part])

    def _score(self, predictions: list[Tensor], targets: Tensor) -> None:
        """Log-probabilities (n, V) of the model and of the original, one tensor if they are the same; tokens (n,)."""
        ours, theirs = predictions[0], predictions[-1]
        scores: dict[str, Callable[[], Tensor]] = {
            "perplexity": lambda: nll_loss(ours, targets, reduction="none"),
            "kl_divergence": lambda: kl_div(ours, theirs, reduction="none", log_target=True).sum(-1),
            "top1_agreement": lambda: (ours.argmax(-1) == theirs.argmax(-1)).float(),
        }
        for name in filter(self.scores.__contains__, scores):  # a divergence takes as long as the head
            self.update(name, scores[name]())
