"""What all tasks share: splits, their checks, and batches of rows of similar length."""

import errno
import hashlib
import math
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, compress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import datasets
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

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class TaskData(L.LightningDataModule):
    """A task: its rows, the model that answers it, and the files that its answers are written to.

    `val_dataloader` returns the official validation splits, which are only scored. If `dev_fraction` is above 0, that
    share of the training rows is held out and becomes the last loader, `dev`, for early stopping. The share is chosen
    by a hash of the text. A training batch has rows of similar length and is padded to its longest row.
    """

    label_columns: Sequence[str] = ("label",)
    trains = True  # else a run scores the model as it is
    pads = True  # whether batches need the tokenizer's padding token
    length_key = "max_length"  # the key of the config that limits the tokens of a row

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
        """Lengths are in tokens. `metrics` maps the name of a score to a torchmetrics Metric.

        `train_rows` is the number of training rows to keep, for shorter runs; they are chosen by a hash of their text.
        `limit_rows` keeps so many rows of every split, for a quick look. `validation_splits` maps the prefix of the
        logged scores to the name of a split. Raises LighttokenError for a number that is out of range.
        """
        super().__init__()
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, self.length_key: max_length}
        counts = {f"task.{key}": size for key, size in sizes.items()}
        for key, count in (counts | {"task.train_rows": train_rows, "limit_rows": limit_rows}).items():
            if count is not None and count < 1:
                null = ", or null for all rows" if key.endswith("rows") else ""
                raise LighttokenError(f"{key} is {count}; it must be 1 or above{null}")
        if not 0 <= dev_fraction < 1:
            raise LighttokenError(f"task.dev_fraction is {dev_fraction:g}; it must be at least 0 and below 1")
        self.tokenizer, self.name, self.text_columns, self.metrics = tokenizer, name, list(text_columns), dict(metrics)
        self.batch_size, self.eval_batch_size, self.max_length = batch_size, eval_batch_size, max_length
        self.dev_fraction, self.train_rows, self.limit_rows = dev_fraction, train_rows, limit_rows
        self.validation_splits = dict(validation_splits)
        self.splits: dict[str, Dataset] = {}
        self.train_texts: list[str] = []  # the first text, or the context, of every row of splits["train"]

    def make_model(self, backbone: Backbone) -> PreTrainedModel:
        """The backbone with the head of this task."""
        raise NotImplementedError

    def scorer(self, model: PreTrainedModel, original: PreTrainedModel) -> L.LightningModule:
        """The module of a task without training: it scores a model, beside the original one if the two are compared."""
        raise NotImplementedError

    def read_splits(self) -> DatasetDict:
        """The splits as their source has them. Raises LighttokenError if the source cannot be read."""
        raise NotImplementedError

    def encode(self, raw: DatasetDict) -> dict[str, Dataset]:
        """Tokenise the splits `train`, `dev` (if rows are held out) and the ones to score or answer.

        The columns are the inputs of the model and `length`, the number of tokens of a row.
        """
        raise NotImplementedError

    def write_answers(self, outputs: list[list[Any]], folder: Path) -> None:
        """Write the outputs of `predict_step`, one list of batches for every loader of `predict_dataloader`."""
        raise NotImplementedError

    def constant_scores(self) -> dict[str, float]:
        """The scores of one answer for all rows: the most frequent label, or 0 where labels are numbers.

        A run that has learned nothing scores like it. Empty for a task whose labels are neither.
        """
        scores = {}
        for name in self.eval_names:
            rows = self.splits[self.validation_splits.get(name, name)]
            if "labels" not in rows.column_names:
                continue
            labels = torch.tensor(list(rows["labels"]))
            answer = 0.0 if labels.is_floating_point() else int(labels.mode().values)
            for key, metric in self.metrics.items():
                metric = metric.clone()
                metric.sync_on_compute = False  # every process has all labels
                with warnings.catch_warnings(action="ignore"):  # a constant has no correlation
                    metric.update(torch.full_like(labels, answer), labels)
                    score = float(metric.compute())
                scores[f"{name}/{key}"] = 0.0 if math.isnan(score) else score
        return scores

    @property
    def eval_names(self) -> list[str]:
        """The prefixes of the logged scores, one for every validation loader, in order."""
        return [*self.validation_splits, *(["dev"] if self.dev_fraction else [])]

    def prepare_data(self) -> None:
        self.setup()  # Lightning calls it once per machine; the other processes read the cache that it fills

    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            with _naming_the_cache():
                raw = self.read_splits()
                self._check(raw)
                self.splits = self.encode(self._shorten(raw))

    def train_dataloader(self) -> DataLoader:
        rows = self.splits["train"]
        sampler = EpochSampler(self.batch_size, list(rows["length"]), seed=torch.initial_seed() % 2**62)
        return self.loader(rows, self.batch_size, sampler=sampler)

    def text_loaders(self, batch_size: int, held_out: int, seed: int) -> tuple[DataLoader, DataLoader]:
        """Batches of training rows, for a use that reads no labels, and of about `held_out` other rows.

        Rows with the same first text, or context, are on one side. Raises LighttokenError if all have the same.
        """
        held, rest = held_out_texts(self.train_texts, held_out, seed)
        if not held:
            raise LighttokenError(f"all training rows of task={self.name} have one text; set heal=corpus heal.file=F")
        rows = self.splits["train"].select(rest)
        sampler = EpochSampler(batch_size, list(rows["length"]), seed=seed)
        others = self.splits["train"].select(held)
        return self.loader(rows, batch_size, sampler=sampler), self.loader(others, batch_size)

    def val_dataloader(self) -> list[DataLoader]:
        """The validation splits, then the dev rows if rows are held out."""
        names = [self.validation_splits.get(name, name) for name in self.eval_names]
        return [self.loader(self.splits[name], self.eval_batch_size) for name in names]

    def loader(self, rows: Dataset, batch_size: int, sampler: Any = None) -> DataLoader:
        """Batches of rows, padded to the longest row of the batch."""
        rows = rows.remove_columns("length")
        collate = DataCollatorWithPadding(self.tokenizer)
        return DataLoader(rows, batch_size=batch_size, sampler=sampler, collate_fn=collate)

    def fetch(self, read: Callable[[], Any], source: str | Path, cure: str) -> Any:
        """Call `read`. Raises LighttokenError, with the source and the cure, if a file or the hub cannot be read."""
        try:
            return read()
        except (OSError, ValueError, KeyError, TypeError, StopIteration, DatasetGenerationError) as error:
            causes = [error, *_causes(error)]
            # The outermost error of `datasets` only says that one occurred.
            reason = next((line for line in map(first_line, reversed(causes)) if line), type(error).__name__)
            raise LighttokenError(
                f"cannot read the rows of task={self.name} from {source}: {reason}; {cure}"
            ) from error

    def hold_out(self, rows: Dataset, keys: Sequence[str], texts: Sequence[str]) -> dict[str, Dataset]:
        """Divide training rows into `train` and, with `dev_fraction`, `dev`.

        `keys` has a text for every row: rows of the same text stay together. `texts` has what becomes `train_texts`.
        Raises LighttokenError for an empty part.
        """
        if not self.dev_fraction:
            self.train_texts = list(texts)
            return {"train": rows}
        # The prefix makes this draw independent of the one that makes the validation split of Rotten Tomatoes.
        is_dev = [in_share(f"dev {key}", self.dev_fraction) for key in keys]
        is_train = [not chosen for chosen in is_dev]
        self.train_texts = list(compress(texts, is_train))
        parts = {
            "train": rows.select(list(compress(range(len(rows)), is_train))),
            "dev": rows.select(list(compress(range(len(rows)), is_dev))),
        }
        for name, part in parts.items():
            if len(part) == 0:
                raise LighttokenError(
                    f"task.dev_fraction={self.dev_fraction:g} of {len(rows)} training rows leaves no rows for "
                    f"{name}; choose a fraction nearer to 0.5"
                )
        return parts

    def _check(self, raw: DatasetDict) -> None:
        """Raises LighttokenError if a split or a column is missing, or a split is empty."""
        for split in (*(["train"] if self.trains else []), *self.validation_splits.values()):
            if split not in raw or len(raw[split]) == 0:
                sizes = ", ".join(f"{name} ({len(rows)} rows)" for name, rows in raw.items()) or "no split at all"
                raise LighttokenError(f"task={self.name} has no rows in the split {split!r}; found {sizes}")
            missing = {*self.text_columns, *self.label_columns} - set(raw[split].column_names)
            if missing:
                raise LighttokenError(
                    f"the split {split!r} of task={self.name} lacks the column {', '.join(sorted(missing))}; "
                    f"found {', '.join(raw[split].column_names)}"
                )

    def _shorten(self, raw: DatasetDict) -> DatasetDict:
        """Keep `train_rows` of the training rows, and `limit_rows` of every split that is trained on or scored.

        They are drawn by a hash of their text, as the first rows of a file may be all of one class, and keep their
        order. Splits that are only answered keep their first rows: their answers are numbered.
        """
        for name, rows in raw.items():
            drawn = name == "train" or name in self.validation_splits.values()
            limits = [self.limit_rows, self.train_rows if name == "train" else None]
            count = min([len(rows), *(limit for limit in limits if limit is not None)])
            if count < len(rows):
                raw[name] = rows.select(self._draw(rows, count) if drawn else range(count))
        return raw

    def _draw(self, rows: Dataset, count: int) -> list[int]:
        """The numbers of `count` rows, chosen by a hash of their text, in their order."""
        positions = [position(f"rows {text}") for text in self._texts(rows)]
        return sorted(sorted(range(len(positions)), key=positions.__getitem__)[:count])

    def _texts(self, rows: Dataset) -> list[str]:
        """The text columns of every row, joined with a space."""
        return [" ".join(texts) for texts in zip(*(rows[column] for column in self.text_columns), strict=True)]


@contextmanager
def _naming_the_cache() -> Iterator[None]:
    """Inside, LighttokenError is raised if the cache of the data sets cannot be written."""
    try:
        yield
    except Exception as error:
        cache = Path(datasets.config.HF_DATASETS_CACHE)
        for cause in [error, *_causes(error)]:
            if not isinstance(cause, OSError):
                continue
            if Path(cause.filename).is_relative_to(cache) if cause.filename else cause.errno in NO_SPACE:
                raise LighttokenError(
                    f"cannot write {cause.filename or cache}, the cache of data sets: {cause.strerror}; set "
                    "HF_DATASETS_CACHE=DIR in the environment to a folder that you may write, with space in it"
                ) from error
        raise


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The errors that an error was raised from, the first one last."""
    while cause := error.__cause__:
        yield cause
        error = cause


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without a full stop."""
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")


class EpochSampler(LengthGroupedSampler):
    """Rows of similar length stand next to each other. The order depends on the seed and on the epoch alone."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator().manual_seed(seed))
        self.seed = seed

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls it before every epoch."""
        self.generator.manual_seed(self.seed + epoch)


def in_share(text: str, share: float) -> bool:
    """Whether a text belongs to a share (0 to 1) of all texts. The answer is the same on every machine."""
    return position(text) < share


def held_out_texts(texts: Sequence[Hashable], count: int, seed: int) -> tuple[list[int], list[int]]:
    """The numbers of about `count` rows, at most about half of them, and of the other rows; none has a text of both.

    `texts` has the text of every row. The second list is shuffled by text.
    """
    rows: dict[Hashable, list[int]] = {}
    for i, text in enumerate(texts):
        rows.setdefault(text, []).append(i)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    groups = [list(rows.values())[i] for i in order]
    held: list[int] = []
    while len(groups) > 1 and len(held) < min(count, len(texts) // 2):
        held += groups.pop()
    return held, list(chain.from_iterable(groups))


def position(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: its hash, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def missing_split(folder: Path, split: str) -> LighttokenError:
    """The error for a data folder that does not exist or has no file of a split."""
    if not folder.is_dir():
        return LighttokenError(
            f"task.data_dir={folder} is not a folder; give the one with the rows, {split}.* among them"
        )
    present = ", ".join(sorted(path.name for path in folder.glob("*"))[:10]) or "nothing there"
    return LighttokenError(
        f"task.data_dir={folder} has no split {split!r}: {split}.parquet is missing; found {present}"
    )
