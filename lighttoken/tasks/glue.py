"""GLUE tasks, from files on disk, as parquet, JSON lines or the site's own TSV, or from the hub."""

import csv
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas
from datasets import Dataset, DatasetDict, load_dataset

from lighttoken.tasks.data import missing_split
from lighttoken.tasks.sentences import SentenceData

BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}


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

        Files in the folder have the name of the split: train.parquet, .json, .jsonl or .tsv; `dev` is `validation`.
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
            return self.get(partial(load_dataset, self.hub_id, self.name), self.hub_id, cure)
        cure = "it must be parquet, JSON lines or TSV, with rows in it"
        files = self._files(Path(self.data_dir))
        return DatasetDict({split: self.get(partial(self._read, file), file, cure) for split, file in files.items()})

    def _files(self, folder: Path) -> dict[str, Path]:
        """The file of each split. Raises LighttokenError for one that is missing and is not a test split."""
        files = {}
        for split in ("train", *self.validation_splits.values(), *self.submission):
            names = [split, split.replace("validation", "dev")]
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
        is_test = file.stem.startswith("test")  # has a header in every task, and no labels
        columns = {name: self.tsv_columns.get(name, name) for name in (*self.text_columns, "label")}
        has_header = is_test or not any(isinstance(place, int) for place in columns.values())
        frame = pandas.read_csv(
            file, sep="\t", quoting=csv.QUOTE_NONE, header=0 if has_header else None, keep_default_na=False
        )
        if is_test:
            columns.pop("label")
            columns = {name: name if isinstance(place, int) else place for name, place in columns.items()}
        taken = {name: frame[place].tolist() for name, place in columns.items()}
        if "label" in taken and self.label_names and set(taken["label"]) <= set(self.label_names):
            taken["label"] = [self.label_names.index(label) for label in taken["label"]]
        return Dataset.from_dict(taken)
