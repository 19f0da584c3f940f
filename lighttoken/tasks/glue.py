"""GLUE tasks, from files on disk, as parquet, JSON lines or the site's own TSV, or from the hub."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset
from torch import Tensor
from torchmetrics.classification import BinaryMatthewsCorrCoef

from lighttoken.errors import LighttokenError
from lighttoken.tasks.data import missing_split
from lighttoken.tasks.sentences import SentenceData

log = logging.getLogger(__name__)

BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}
DIAGNOSTIC = "ax"  # the hub's name of the diagnostic set; the site's file is diagnostic.tsv


class Glue(SentenceData):
    """A GLUE task (Wang et al., ICLR 2019)."""

    def __init__(
        self,
        *args: Any,
        data_dir: str | None = None,
        hub_id: str = "nyu-mll/glue",
        tsv_columns: Mapping[str, str | int] = MappingProxyType({}),
        **kwargs: Any,
    ):
        """Rows come from the folder `data_dir` if it is set, else from `hub_id`, a data set on the hub or on disk.

        A file in the folder has the name of its split: train.parquet, .json, .jsonl or .tsv. `dev` is another name of
        `validation`, and `diagnostic` of `ax`, the set without training rows that models of MNLI answer.
        `tsv_columns` maps our columns to other names in the TSV files of gluebenchmark.com, or to positions in files
        without a header. The data set `hub_id` has a config for every task.
        """
        super().__init__(*args, **kwargs)
        self.data_dir, self.hub_id, self.tsv_columns = data_dir, hub_id, dict(tsv_columns)

    def read_splits(self) -> DatasetDict:
        if self.data_dir is None:
            return self._read_hub()
        cure = "it must be parquet, JSON lines or TSV, with rows in it"
        files = self._files(Path(self.data_dir))
        return DatasetDict({split: self.fetch(partial(self._read, file), file, cure) for split, file in files.items()})

    def _read_hub(self) -> DatasetDict:
        cure = (
            "with no network, set task.data_dir=DIR to a folder with train.parquet and validation.parquet, "
            "or try +experiment=quickstart, which needs none"
        )
        splits = self.fetch(partial(load_dataset, self.hub_id, self.name), self.hub_id, cure)
        if DIAGNOSTIC in self.submission:
            read = partial(load_dataset, self.hub_id, DIAGNOSTIC, split="test")
            with suppress(LighttokenError):  # only predict=true uses it, and has an error of its own
                splits[DIAGNOSTIC] = self.fetch(read, self.hub_id, cure)
        return splits

    def _files(self, folder: Path) -> dict[str, Path]:
        """The file of every split. Raises LighttokenError if one is missing that is not a test split."""
        files = {}
        for split in ("train", *self.validation_splits.values(), *self.submission):
            names = [split, "diagnostic" if split == DIAGNOSTIC else split.replace("validation", "dev")]
            candidates = [folder / f"{name}{suffix}" for suffix in (*BUILDERS, ".tsv") for name in names]
            file = next((file for file in candidates if file.is_file()), None)
            if file:
                files[split] = file
            elif split not in self.submission:
                raise missing_split(folder, split)
        return files

    def _read(self, file: Path) -> Dataset:
        if file.suffix == ".tsv":
            return self._read_tsv(file)
        return load_dataset(BUILDERS[file.suffix], data_files=str(file), split="train")

    def _read_tsv(self, file: Path) -> Dataset:
        """Read fields between tabs, without quoting.

        The published train.tsv of QQP has broken lines. A training row whose number of fields differs from the header's
        is left out, and such rows are counted. Raises ValueError for a broken row in another split, and for a column or
        a label that is missing.
        """
        with file.open(encoding="utf-8-sig", newline="\n") as lines:
            rows = [line.rstrip("\r\n").split("\t") for line in lines]
        if not rows:
            raise ValueError("it is empty")
        # Our columns: a name in the header, or a position where there is no header.
        columns = {name: self.tsv_columns.get(name, name) for name in (*self.text_columns, "label")}
        is_test = file.stem.startswith(("test", DIAGNOSTIC, "diagnostic"))
        if is_test:  # there is a header in every task, and no label
            columns = {ours: ours if isinstance(theirs, int) else theirs for ours, theirs in columns.items()}
            del columns["label"]
        header: list[Any] = list(range(len(rows[0])))
        if not any(isinstance(theirs, int) for theirs in columns.values()):
            header, *rows = rows
        if missing := [str(theirs) for theirs in columns.values() if theirs not in header]:
            raise ValueError(f"no column {', '.join(missing)} among {', '.join(map(str, header))}")
        # Leave out broken rows.
        whole = {i: row for i, row in enumerate(rows) if len(row) == len(header)}
        if len(whole) < len(rows):
            first = next(i for i in range(len(rows)) if i not in whole)
            message = f"row {first} has {len(rows[first])} fields instead of {len(header)}"
            if file.stem != "train":
                raise ValueError(message)
            broken = len(rows) - len(whole)
            log.warning("%s: %d of %d rows are broken and left out; %s", file, broken, len(rows), message)
        # Take our columns.
        fields: dict[str, list] = {
            ours: [row[header.index(theirs)] for row in whole.values()] for ours, theirs in columns.items()
        }
        if "label" in fields:
            fields["label"] = [self._label(i, text) for i, text in zip(whole, fields["label"], strict=True)]
        return Dataset.from_dict(fields)

    def _label(self, row: int, text: str) -> int | float:
        """The label in a field: the name of a class, or a number. Raises ValueError if it is neither."""
        if self.label_names and text in self.label_names:
            return self.label_names.index(text)
        try:
            return float(text) if self.num_labels == 1 else int(text)
        except ValueError:
            raise ValueError(f"row {row} has the label {text!r}") from None


class MatthewsCorrCoef(BinaryMatthewsCorrCoef):
    """Matthews correlation as in GLUE's scorer (scikit-learn): 0 if all answers, or all labels, are the same.

    torchmetrics 1.9 returns up to 0.03 or -0.03 in that case for the 1,043 rows of CoLA, and more for fewer rows.
    """

    def compute(self) -> Tensor:
        (tn, fp), (fn, tp) = self.confmat.float()
        square = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        return (tp * tn - fp * fn) / square.clamp_min(1).sqrt()
