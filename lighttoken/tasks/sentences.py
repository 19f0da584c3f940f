"""What all sentence tasks share: tokenising, splitting, length-grouped batches."""

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import lightning as L
import torch
from datasets import Dataset, DatasetDict
from torch.utils.data import DataLoader
from torchmetrics import Metric
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase
from transformers.trainer_pt_utils import LengthGroupedSampler

from lighttoken.errors import LighttokenError


class SentenceData(L.LightningDataModule):
    """A task of one or two sentences and a label. Subclasses say where the rows come from, in `read_splits`.

    `val_dataloader` has the official validation splits, which are only ever scored. With `dev_fraction` above 0 that
    share of the training rows, chosen by a hash of their text, is held out and becomes the last loader, `dev`, for
    early stopping. Training batches hold rows of similar length and are padded to their longest row.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        text_columns: Sequence[str],
        num_labels: int,
        metrics: Mapping[str, Metric],
        batch_size: int = 32,
        eval_batch_size: int = 64,
        max_length: int = 128,
        dev_fraction: float = 0.0,
        train_rows: int | None = None,
        limit_rows: int | None = None,
        validation_splits: Mapping[str, str] = MappingProxyType({"val": "validation"}),
        submission: Mapping[str, str] = MappingProxyType({}),
        label_names: Sequence[str] | None = None,
    ):
        """Lengths are in tokens, `metrics` map the name of a score to a torchmetrics Metric of predictions.

        With `num_labels` 1 the label is a number to predict (regression), else a class. `train_rows` keeps so many
        training rows, those first in an order of hashes of their text, for shorter runs; `limit_rows` keeps the first
        rows of every split, for a quick look. `validation_splits` map the name that scores go under to a split,
        `submission` a split to the name of its file of predictions, in which classes are told by `label_names`.
        """
        super().__init__()
        if train_rows is not None and train_rows < 1:
            raise LighttokenError(f"task.train_rows is {train_rows}; it must be 1 or above, or null for all rows")
        if limit_rows is not None and limit_rows < 1:
            raise LighttokenError(f"limit_rows is {limit_rows}; it must be 1 or above, or null for all rows")
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "max_length": max_length}
        for key, value in sizes.items():
            if value < 1:
                raise LighttokenError(f"task.{key} is {value}; it must be 1 or above")
        self.tokenizer, self.name, self.text_columns = tokenizer, name, list(text_columns)
        self.num_labels, self.metrics = num_labels, dict(metrics)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.max_length, self.dev_fraction, self.train_rows = max_length, dev_fraction, train_rows
        self.limit_rows, self.label_names = limit_rows, label_names
        self.validation_splits, self.submission = dict(validation_splits), dict(submission)
        self.splits: dict[str, Dataset] = {}

    @property
    def eval_names(self) -> list[str]:
        """What scores of each validation loader go under, in order."""
        return [*self.validation_splits, *(["dev"] if self.dev_fraction else [])]

    def read_splits(self) -> DatasetDict:
        """The training, validation and perhaps test splits with the text columns and, but for test, `label`.

        Raises LighttokenError if that cannot be.
        """
        raise NotImplementedError

    def prepare_data(self) -> None:
        self.setup()  # once per machine; what it caches on disk, the other processes read

    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            self.splits = self._tokenized()

    def train_dataloader(self) -> DataLoader:
        rows = self.splits["train"]
        generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
        sampler = LengthGroupedSampler(self.batch_size, lengths=list(rows["length"]), generator=generator)
        return self._loader(rows, self.batch_size, sampler=sampler)

    def val_dataloader(self) -> list[DataLoader]:
        """The validation splits, then the dev rows if any are held out."""
        names = [self.validation_splits.get(name, name) for name in self.eval_names]
        return [self._loader(self.splits[name], self.eval_batch_size) for name in names]

    def predict_dataloader(self) -> list[DataLoader]:
        """The test splits that have a file of predictions. Raises LighttokenError if one is missing."""
        for split in self.submission:
            if split not in self.splits:
                raise LighttokenError(
                    f"predict=true needs the split {split!r} of task={self.name}; found {', '.join(self.splits)}"
                )
        return [self._loader(self.splits[name], self.eval_batch_size) for name in self.submission]

    def _loader(self, rows: Dataset, batch_size: int, sampler: Any = None) -> DataLoader:
        rows = rows.remove_columns("length")
        collate = DataCollatorWithPadding(self.tokenizer)
        return DataLoader(rows, batch_size=batch_size, sampler=sampler, collate_fn=collate)

    def _tokenized(self) -> dict[str, Dataset]:
        raw = self.read_splits()
        for split in ("train", *self.validation_splits.values()):
            if split not in raw or len(raw[split]) == 0:
                raise LighttokenError(f"task={self.name} has no rows in the split {split!r}; found {_sizes(raw)}")
            missing = {*self.text_columns, "label"} - set(raw[split].column_names)
            if missing:
                raise LighttokenError(
                    f"the split {split!r} of task={self.name} lacks the column {', '.join(sorted(missing))}; "
                    f"found {', '.join(raw[split].column_names)}"
                )
        if self.train_rows is not None and self.train_rows < len(raw["train"]):
            texts = zip(*(raw["train"][column] for column in self.text_columns), strict=True)
            places = [position("rows " + " ".join(each)) for each in texts]
            kept = sorted(range(len(places)), key=places.__getitem__)[: self.train_rows]
            raw["train"] = raw["train"].select(sorted(kept))
        if self.limit_rows is not None:
            raw = DatasetDict({name: rows.select(range(min(self.limit_rows, len(rows)))) for name, rows in raw.items()})
        used = ("train", *self.validation_splits.values(), *self.submission)
        splits = {
            name: rows.map(
                _tokenize,
                batched=True,
                remove_columns=rows.column_names,
                fn_kwargs={
                    "tokenizer": self.tokenizer,
                    "columns": self.text_columns,
                    "max_length": self.max_length,
                    "label_type": float if self.num_labels == 1 else int,
                },
                desc=f"tokenise {self.name} {name}",
            )
            for name, rows in raw.items()
            if name in used
        }
        if not 0 <= self.dev_fraction < 1:
            raise LighttokenError(f"task.dev_fraction is {self.dev_fraction:g}; it must be at least 0 and below 1")
        if self.dev_fraction > 0:
            held_out = [
                in_share("dev " + " ".join(texts), self.dev_fraction)  # another draw than that of a validation split
                for texts in zip(*(raw["train"][c] for c in self.text_columns), strict=True)
            ]
            everything = splits["train"]
            splits["train"] = everything.select([i for i, out in enumerate(held_out) if not out])
            splits["dev"] = everything.select([i for i, out in enumerate(held_out) if out])
            for name in ("train", "dev"):
                if len(splits[name]) == 0:
                    raise LighttokenError(
                        f"task.dev_fraction={self.dev_fraction:g} of {len(everything)} training rows leaves none for "
                        f"{name}; choose a fraction nearer to the middle"
                    )
        return splits


def in_share(text: str, share: float) -> bool:
    """Whether a text falls into a share (0 to 1) of all texts: the same answer on every machine and in every order."""
    return position(text) < share


def position(text: str) -> float:
    """A place of a text in [0, 1] that only depends on the text: the same in every data set and on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def _tokenize(
    rows: dict[str, list], tokenizer: PreTrainedTokenizerBase, columns: list[str], max_length: int, label_type: type
) -> dict[str, list]:
    encoded = dict(tokenizer(*(rows[column] for column in columns), truncation=True, max_length=max_length))
    labels = [label_type(label) for label in rows.get("label", [-1] * len(encoded["input_ids"]))]
    return encoded | {"labels": labels, "length": [len(ids) for ids in encoded["input_ids"]]}


def _sizes(splits: DatasetDict) -> str:
    return ", ".join(f"{name} ({len(rows)} rows)" for name, rows in splits.items()) or "no split at all"
