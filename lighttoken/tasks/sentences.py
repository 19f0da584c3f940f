"""Tasks of one or two sentences and a label."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lighttoken.artifact.files import write_atomically
from lighttoken.backbone.source import Backbone
from lighttoken.errors import LighttokenError
from lighttoken.tasks.data import TaskData
from lighttoken.version import __version__


class SentenceData(TaskData):
    """A task of one or two sentences and a label.

    A subclass reads the rows in `read_splits`: the training, validation and perhaps test splits with the text columns
    and `label`, which a test split need not have.
    """

    answer_range: tuple[float, float] | None = (0, 5)  # of numbers that are predicted: the scale of STS-B

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        text_columns: Sequence[str],
        num_labels: int,
        *args: Any,
        submission: Mapping[str, str] = MappingProxyType({}),
        submit_names: bool = False,
        label_names: Sequence[str] | None = None,
        **kwargs: Any,
    ):
        """With `num_labels` 1 the label is a number to predict (regression), else a class.

        `submission` maps a test split to the name of its file of answers, which holds numbers of classes or, with
        `submit_names`, their names. `label_names` are the names of the classes, in order: rows may hold them instead of
        numbers, and the classes of a fine-tuned checkpoint are matched by them. Without them, those of the rows count.
        """
        super().__init__(tokenizer, name, text_columns, *args, **kwargs)
        if len(self.text_columns) not in (1, 2):
            raise LighttokenError(
                f"task.text_columns has {len(self.text_columns)} columns, {', '.join(self.text_columns)}; a tokenizer "
                "takes one text or a pair of them"
            )
        self.num_labels, self.submission, self.label_names = num_labels, dict(submission), label_names
        self.submit_names = submit_names

    def make_model(self, backbone: Backbone) -> PreTrainedModel:
        return backbone.classifier(self.num_labels, self.label_names)

    def _check(self, raw: DatasetDict) -> None:
        """Also raises LighttokenError for the first row that lacks a text or has no valid label."""
        super()._check(raw)
        if self.label_names and len(self.label_names) != self.num_labels:
            raise LighttokenError(
                f"task.num_labels is {self.num_labels} and the labels are {', '.join(self.label_names)}; set "
                f"task.num_labels={len(self.label_names)}"
            )
        for split in ("train", *self.validation_splits.values()):
            source = f"the split {split!r} of task={self.name}"
            names = getattr(raw[split].features["label"], "names", None)
            if names and self.label_names and list(names) != list(self.label_names):
                raise LighttokenError(
                    f"the labels of {source} are {', '.join(names)} in this order and "
                    f"the task has {', '.join(self.label_names)}; store them in that order, or as names"
                )
            for i, label in enumerate(raw[split]["label"]):
                if not self._is_label(label):
                    valid = "a number" if self.num_labels == 1 else f"0 to {self.num_labels - 1}"
                    valid += f" or {', '.join(self.label_names)}" if self.label_names else ""
                    raise LighttokenError(f"row {i} of {source} has the label {label!r}; it must be {valid}")

        for split in raw.keys() & {"train", *self.validation_splits.values(), *self.submission}:
            self._check_texts(split, raw[split])

    def _check_texts(self, split: str, rows: Dataset) -> None:
        """Raise LighttokenError for the first row that lacks a text."""
        for i, row in enumerate(zip(*(rows[column] for column in self.text_columns), strict=True)):
            if not all(isinstance(text, str) for text in row):
                raise LighttokenError(f"row {i} of the split {split!r} of task={self.name} lacks a text: {row}")

    def _is_label(self, label: Any) -> bool:
        if isinstance(label, str):
            return label in (self.label_names or ())
        if not isinstance(label, (int, float)):
            return False
        return math.isfinite(label) if self.num_labels == 1 else label in range(self.num_labels)

    def encode(self, raw: DatasetDict) -> dict[str, Dataset]:
        names = getattr(raw["train"].features["label"], "names", None)
        if self.num_labels > 1 and self.label_names is None and names and len(names) == self.num_labels:
            self.label_names = names
        settings = {
            "tokenizer": self.tokenizer,
            "columns": self.text_columns,
            "max_length": self.max_length,
            "label_type": float if self.num_labels == 1 else int,
            "label_names": list(self.label_names or ()),
            "version": __version__,
        }
        # Tokenise the splits that are trained on or scored, and those that are answered, whatever labels these have.
        labelled = ("train", *self.validation_splits.values())
        used = {name: raw[name].select_columns(list(self.text_columns)) for name in raw.keys() & self.submission.keys()}
        used |= {name: raw[name] for name in raw if name in labelled}
        splits = {
            name: rows.map(
                _tokenize,
                batched=True,
                remove_columns=rows.column_names,
                fn_kwargs=settings,
                desc=f"tokenise {self.name} {name}",
            )
            for name, rows in used.items()
        }
        # Hold out training rows by their text.
        firsts = raw["train"][self.text_columns[0]]
        return splits | self.hold_out(splits["train"], self._texts(raw["train"]), firsts)

    def predict_dataloader(self) -> list[DataLoader]:
        """The test splits that have a file of answers. Raises LighttokenError if there are none, or one is missing."""
        if not self.submission:
            raise LighttokenError(f"task={self.name} has no test split to answer; leave out predict=true")
        for split in self.submission:
            if split not in self.splits:
                several = len(self.submission) > 1
                cure = f"leave out its answers with '~task.submission.{split}'" if several else "leave out predict=true"
                raise LighttokenError(
                    f"predict=true needs the split {split!r} of task={self.name}; found {', '.join(self.splits)}; "
                    f"add it, or {cure}"
                )
        return [self.loader(self.splits[name], self.eval_batch_size) for name in self.submission]

    def write_answers(self, outputs: list[list[Any]], folder: Path) -> None:
        """Write NAME.tsv for every test split in the format of gluebenchmark.com: index, prediction."""
        for name, batches in zip(self.submission.values(), outputs, strict=True):
            answers = torch.cat(batches).tolist()
            if self.submit_names and self.label_names:
                answers = [self.label_names[answer] for answer in answers]
            elif self.num_labels == 1:
                low, high = self.answer_range or (-math.inf, math.inf)
                answers = [f"{min(max(answer, low), high):.3f}" for answer in answers]
            lines = ["index\tprediction", *(f"{index}\t{answer}" for index, answer in enumerate(answers))]
            write_atomically(folder / f"{name}.tsv", ("\n".join(lines) + "\n").encode())


def _tokenize(
    rows: dict[str, list],
    tokenizer: PreTrainedTokenizerBase,
    columns: list[str],
    max_length: int,
    label_type: type,
    label_names: list[str],
    version: str,
) -> dict[str, list]:
    """Token ids, labels and lengths of a batch of rows.

    `version` is an argument for the cache of `datasets`, which knows a function by its name and arguments alone.
    """
    encoded = dict(tokenizer(*(rows[column] for column in columns), truncation=True, max_length=max_length))
    labels = rows.get("label", [None] * len(encoded["input_ids"]))  # the labels of test splits are not public
    labels = [label_names.index(label) if label in label_names else label for label in labels]
    labels = [label_type(-1 if label is None else label) for label in labels]
    return encoded | {"labels": labels, "length": [len(ids) for ids in encoded["input_ids"]]}
