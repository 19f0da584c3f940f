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
DIAGNOSTIC = "ax"  # what the hub calls the diagnostic set; the site's file is diagnostic.tsv


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
        """`data_dir` is read where given; `hub_id` is a data set, on the hub or on disk, with the task as config.

        Files in the folder have the name of the split: train.parquet, .json, .jsonl or .tsv; `dev` is `validation`, and
        `diagnostic` is `ax`, the set without a training split that models of MNLI answer.
        `tsv_columns` map our columns to those of the TSV files of gluebenchmark.com where they differ, by name or, for
        files without a header, by place.
        """
        super().__init__(*args, **kwargs)
        self.data_dir, self.hub_id, self.tsv_columns = data_dir, hub_id, dict(tsv_columns)

    def read_splits(self) -> DatasetDict:
        if self.data_dir is None:
            cure = (
                "with no network, set task.data_dir=DIR to a folder with train.parquet and validation.parquet, "
                "or try +experiment=quickstart, which needs none"
            )
            splits = self.get(partial(load_dataset, self.hub_id, self.name), self.hub_id, cure)
            if DIAGNOSTIC in self.submission:
                with suppress(LighttokenError):  # only predict=true has a use for it, and says so if it is missing
                    splits[DIAGNOSTIC] = self.get(
                        partial(load_dataset, self.hub_id, DIAGNOSTIC, split="test"), self.hub_id, cure
                    )
            return splits
        cure = "it must be parquet, JSON lines or TSV, with rows in it"
        files = self._files(Path(self.data_dir))
        return DatasetDict({split: self.get(partial(self._read, file), file, cure) for split, file in files.items()})

    def _files(self, folder: Path) -> dict[str, Path]:
        """The file of each split. Raises LighttokenError for one that is missing and is not a test split."""
        files = {}
        for split in ("train", *self.validation_splits.values(), *self.submission):
            names = [split, "diagnostic" if split == DIAGNOSTIC else split.replace("validation", "dev")]
            found = [folder / f"{name}{end}" for end in (*BUILDERS, ".tsv") for name in names]
            found = [file for file in found if file.is_file()]
            if found:
                files[split] = found[0]
            elif split not in self.submission:
                raise missing_split(folder, split)
        return files

    def _read(self, file: Path) -> Dataset:
        if file.suffix == ".tsv":
            return self._read_tsv(file)
        return load_dataset(BUILDERS[file.suffix], data_files=str(file), split="train")

    def _read_tsv(self, file: Path) -> Dataset:
        """Fields between tabs, without quoting.

        The published train.tsv of QQP has broken lines: of a training split, those that do not have as many fields as
        the first one are left out, and counted. Raises ValueError for one in another split, and for a column or a label
        that is missing.
        """
        is_test = file.stem.startswith(("test", DIAGNOSTIC, "diagnostic"))  # a header in every task, and no labels
        columns = {name: self.tsv_columns.get(name, name) for name in (*self.text_columns, "label")}
        with file.open(encoding="utf-8-sig", newline="\n") as lines:
            rows = [line.rstrip("\r\n").split("\t") for line in lines]
        if not rows:
            raise ValueError("it is empty")
        if is_test or not any(isinstance(place, int) for place in columns.values()):
            header, *rows = rows
            names: list[Any] = header
        else:
            names = list(range(len(rows[0])))
        if is_test:
            columns.pop("label")
            columns = {name: name if isinstance(place, int) else place for name, place in columns.items()}
        if missing := [str(place) for place in columns.values() if place not in names]:
            raise ValueError(f"no column {', '.join(missing)} among {', '.join(map(str, names))}")
        broken = [i for i, row in enumerate(rows) if len(row) != len(names)]
        if broken:
            told = f"row {broken[0]} has {len(rows[broken[0]])} fields instead of {len(names)}"
            if file.stem != "train":
                raise ValueError(told)
            log.warning("%s: %d of %d rows are broken and left out; %s", file, len(broken), len(rows), told)
        whole = {i: row for i, row in enumerate(rows) if len(row) == len(names)}
        taken: dict[str, list] = {}
        for name, place in columns.items():
            fields = {i: row[names.index(place)] for i, row in whole.items()}
            taken[name] = [self._label(i, each) if name == "label" else each for i, each in fields.items()]
        return Dataset.from_dict(taken)

    def _label(self, row: int, text: str) -> int | float:
        """The label that a field tells by name or as a number."""
        if self.label_names and text in self.label_names:
            return self.label_names.index(text)
        try:
            return float(text) if self.num_labels == 1 else int(text)
        except ValueError:
            raise ValueError(f"row {row} has the label {text!r}") from None


class MatthewsCorrCoef(BinaryMatthewsCorrCoef):
    """Matthews correlation as GLUE's scorer counts it (scikit-learn): 0 where all answers, or all labels, are the same.

    torchmetrics 1.9 has up to 0.03 and -0.03 there, for the 1,043 rows of CoLA, and more for fewer rows.
    """

    def compute(self) -> Tensor:
        (tn, fp), (fn, tp) = self.confmat.float()
        square = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        return (tp * tn - fp * fn) / square.clamp_min(1).sqrt()
