"""What all tasks share: splits, their sizes, length-grouped batches."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning as L
import torch
from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetGenerationError
from torch.utils.data import DataLoader
from torchmetrics import Metric
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_pt_utils import LengthGroupedSampler

from lighttoken.backbone.source import Backbone
from lighttoken.errors import LighttokenError


class TaskData(L.LightningDataModule):
    """A task: its rows, the model that answers it, the files its answers go to.

    `val_dataloader` has the official validation splits, which are only ever scored. With `dev_fraction` above 0 that
    share of the training rows, chosen by a hash of their text, is held out and becomes the last loader, `dev`, for
    early stopping. Training batches hold rows of similar length and are padded to their longest row.
    """

    label_columns: Sequence[str] = ("label",)

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        text_columns: Sequence[str],
        metrics: Mapping[str, Metric],
        batch_size: int = 32,
        eval_batch_size: int = 64,
        max_length: int = 128,
        dev_fraction: float = 0.0,
        train_rows: int | None = None,
        limit_rows: int | None = None,
        validation_splits: Mapping[str, str] = MappingProxyType({"val": "validation"}),
    ):
        """Lengths are in tokens, `metrics` map the name of a score to a torchmetrics Metric of answers.

        `train_rows` keeps so many training rows, those first in an order of hashes of their text, for shorter runs;
        `limit_rows` keeps the first rows of every split, for a quick look. `validation_splits` map the name that scores
        go under to a split.
        """
        super().__init__()
        counts = {"task.train_rows": train_rows, "limit_rows": limit_rows}
        for key, count in counts.items():
            if count is not None and count < 1:
                raise LighttokenError(f"{key} is {count}; it must be 1 or above, or null for all rows")
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "max_length": max_length}
        for key, value in sizes.items():
            if value < 1:
                raise LighttokenError(f"task.{key} is {value}; it must be 1 or above")
        if not 0 <= dev_fraction < 1:
            raise LighttokenError(f"task.dev_fraction is {dev_fraction:g}; it must be at least 0 and below 1")
        self.tokenizer, self.name, self.text_columns, self.metrics = tokenizer, name, list(text_columns), dict(metrics)
        self.batch_size, self.eval_batch_size, self.max_length = batch_size, eval_batch_size, max_length
        self.dev_fraction, self.train_rows, self.limit_rows = dev_fraction, train_rows, limit_rows
        self.validation_splits = dict(validation_splits)
        self.splits: dict[str, Dataset] = {}

    def make_model(self, backbone: Backbone) -> PreTrainedModel:
        """The backbone with the head of this task."""
        raise NotImplementedError

    def read_splits(self) -> DatasetDict:
        """The splits as they are told; raises LighttokenError if they cannot be had."""
        raise NotImplementedError

    def encode(self, raw: DatasetDict) -> dict[str, Dataset]:
        """Splits of token ids, labels and the `length` of every row; `train`, held-out `dev`, and those to score."""
        raise NotImplementedError

    def write_answers(self, answered: list[list[Any]], folder: Path) -> None:
        """Write what `predict_step` gave for each batch of each loader of `predict_dataloader`."""
        raise NotImplementedError

    @property
    def eval_names(self) -> list[str]:
        """What scores of each validation loader go under, in order."""
        return [*self.validation_splits, *(["dev"] if self.dev_fraction else [])]

    def prepare_data(self) -> None:
        self.setup()  # once per machine; what it caches on disk, the other processes read

    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            self.splits = self.encode(self._shortened(self._checked(self.read_splits())))

    def train_dataloader(self) -> DataLoader:
        rows = self.splits["train"]
        sampler = EpochSampler(self.batch_size, list(rows["length"]), seed=torch.initial_seed() % 2**62)
        return self.loader(rows, self.batch_size, sampler=sampler)

    def val_dataloader(self) -> list[DataLoader]:
        """The validation splits, then the dev rows if any are held out."""
        names = [self.validation_splits.get(name, name) for name in self.eval_names]
        return [self.loader(self.splits[name], self.eval_batch_size) for name in names]

    def loader(self, rows: Dataset, batch_size: int, sampler: Any = None) -> DataLoader:
        """Batches of rows, padded."""
        rows = rows.remove_columns("length")
        collate = DataCollatorWithPadding(self.tokenizer)
        return DataLoader(rows, batch_size=batch_size, sampler=sampler, collate_fn=collate)

    def get(self, read: Callable[[], Any], source: str | Path, cure: str) -> Any:
        """What `read` returns; raises LighttokenError, naming source and cure, if it fails as files and hubs do."""
        try:
            return read()
        except (OSError, ValueError, KeyError, TypeError, DatasetGenerationError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise LighttokenError(f"cannot get task={self.name} from {source}: {reason}; {cure}") from error

    def hold_out(self, rows: Dataset, keys: Sequence[str]) -> dict[str, Dataset]:
        """Training rows parted into `train` and, with `dev_fraction`, `dev`, by a key of each row."""
        if not self.dev_fraction:
            return {"train": rows}
        out = [in_share(f"dev {key}", self.dev_fraction) for key in keys]  # not the draw of a validation split
        parts = {
            name: rows.select([i for i, held in enumerate(out) if held == wanted])
            for name, wanted in (("train", False), ("dev", True))
        }
        for name, part in parts.items():
            if len(part) == 0:
                raise LighttokenError(
                    f"task.dev_fraction={self.dev_fraction:g} of {len(rows)} training rows leaves none for "
                    f"{name}; choose a fraction nearer to the middle"
                )
        return parts

    def _checked(self, raw: DatasetDict) -> DatasetDict:
        for split in ("train", *self.validation_splits.values()):
            if split not in raw or len(raw[split]) == 0:
                raise LighttokenError(f"task={self.name} has no rows in the split {split!r}; found {_sizes(raw)}")
            missing = {*self.text_columns, *self.label_columns} - set(raw[split].column_names)
            if missing:
                raise LighttokenError(
                    f"the split {split!r} of task={self.name} lacks the column {', '.join(sorted(missing))}; "
                    f"found {', '.join(raw[split].column_names)}"
                )
        return raw

    def _shortened(self, raw: DatasetDict) -> DatasetDict:
        if self.train_rows is not None and self.train_rows < len(raw["train"]):
            texts = zip(*(raw["train"][column] for column in self.text_columns), strict=True)
            places = [position("rows " + " ".join(each)) for each in texts]
            kept = sorted(range(len(places)), key=places.__getitem__)[: self.train_rows]
            raw["train"] = raw["train"].select(sorted(kept))
        if self.limit_rows is not None:
            raw = DatasetDict({name: rows.select(range(min(self.limit_rows, len(rows)))) for name, rows in raw.items()})
        return raw


class EpochSampler(LengthGroupedSampler):
    """Rows of similar length next to each other, in an order that the seed and the epoch decide, and nothing else."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator().manual_seed(seed))
        self.seed = seed

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.generator.manual_seed(self.seed + epoch)


def in_share(text: str, share: float) -> bool:
    """Whether a text falls into a share (0 to 1) of all texts: the same answer on every machine and in every order."""
    return position(text) < share


def position(text: str) -> float:
    """A place of a text in [0, 1] that only depends on the text: the same in every data set and on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def _sizes(splits: DatasetDict) -> str:
    return ", ".join(f"{name} ({len(rows)} rows)" for name, rows in splits.items()) or "no split at all"


def missing_split(folder: Path, split: str) -> LighttokenError:
    """What is wrong with a folder of data that has no file of a split."""
    if not folder.is_dir():
        return LighttokenError(f"task.data_dir={folder} is no folder; it needs {split}.parquet, among others")
    present = ", ".join(sorted(path.name for path in folder.glob("*"))[:10]) or "nothing there"
    return LighttokenError(
        f"task.data_dir={folder} has no split {split!r}: {split}.parquet is missing; found {present}"
    )
