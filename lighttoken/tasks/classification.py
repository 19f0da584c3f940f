"""Your own sentences and labels, in files on disk: classes, or a number to predict."""

import csv
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef
from transformers import PreTrainedTokenizerBase

from lighttoken.errors import LighttokenError
from lighttoken.tasks.data import in_share, missing_split
from lighttoken.tasks.sentences import SentenceData

log = logging.getLogger(__name__)

READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {}),
    # A quotation mark is text, as in GLUE's files. As quoting, one would swallow all rows up to the next.
    ".tsv": ("csv", {"delimiter": "\t", "quoting": csv.QUOTE_NONE}),
    ".parquet": ("parquet", {}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
}


class Classification(SentenceData):
    """Rows of one or two texts and a label, from the files `train`, `validation` (or `dev`) and perhaps `test`.

    The kind of label follows from the training rows unless it is given: names are classes in alphabetical order, whole
    numbers are classes from 0, other numbers are predicted as they are. Without metrics in the config, classes are
    scored by accuracy and macro F1, numbers by Pearson's and Spearman's correlation.
    """

    answer_range = None

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        text_columns: Sequence[str],
        metrics: Mapping[str, Metric],
        data_dir: str,
        label_column: str = "label",
        num_labels: int | None = None,
        validation_fraction: float = 0.1,
        **kwargs: Any,
    ):
        """`validation_fraction` of the training rows, by a hash of their text, are scored if there is no such file."""
        super().__init__(tokenizer, name, text_columns, num_labels or 0, metrics, **kwargs)
        if not 0 < validation_fraction < 1:
            raise LighttokenError(f"task.validation_fraction is {validation_fraction:g}; it must be between 0 and 1")
        self.data_dir, self.label_column = Path(data_dir), label_column
        self.validation_fraction = validation_fraction

    def read_splits(self) -> DatasetDict:
        splits = {name: self._read(file) for name in ("train", "validation", "test") if (file := self._file(name))}
        if "train" not in splits:
            raise missing_split(self.data_dir, "train")
        if "validation" not in splits:
            self._check_texts("train", splits["train"])
            log.info("%s has no validation file: %g of its rows are scored", self.data_dir, self.validation_fraction)
            is_scored = [in_share(text, self.validation_fraction) for text in self._texts(splits["train"])]
            for name, wanted in (("validation", True), ("train", False)):
                splits[name] = splits["train"].select([i for i, scored in enumerate(is_scored) if scored is wanted])
        raw = DatasetDict(splits)
        self._infer_labels(raw)
        return raw

    def _file(self, split: str) -> Path | None:
        names = (split, "dev") if split == "validation" else (split,)
        files = [self.data_dir / f"{name}{suffix}" for name in names for suffix in READERS]
        return next((file for file in files if file.is_file()), None)

    def _read(self, file: Path) -> Dataset:
        builder, settings = READERS[file.suffix]
        read = partial(load_dataset, builder, data_files=str(file), split="train", **settings)
        rows = self.fetch(read, file, "check the file")
        wanted = [*self.text_columns, *([] if file.stem == "test" else [self.label_column])]
        if missing := [name for name in wanted if name not in rows.column_names]:
            raise LighttokenError(
                f"{file} has no column {', '.join(missing)}; found {', '.join(rows.column_names)}; set "
                "task.text_columns=[NAME] and task.label_column=NAME"
            )
        renames = self.label_column != "label" and self.label_column in rows.column_names
        return rows.rename_column(self.label_column, "label") if renames else rows

    def _infer_labels(self, raw: DatasetDict) -> None:
        """Set what the config leaves out: the number of classes, their names, the metrics."""
        labels = raw["train"].unique("label")
        if any(isinstance(label, str) for label in labels):
            self.label_names = list(self.label_names or sorted(map(str, labels)))
        numbers = [label for label in labels if isinstance(label, (int, float))]
        if not self.num_labels:
            if self.label_names:
                self.num_labels = len(self.label_names)
            elif numbers and all(label % 1 == 0 for label in numbers):
                self.num_labels = int(max(numbers)) + 1
            else:
                self.num_labels = 1
            kind = "numbers" if self.num_labels == 1 else f"{self.num_labels} classes"
            log.info("the labels of task=%s are %s", self.name, kind)
        if not self.metrics:
            self.metrics = self._default_metrics()

    def _default_metrics(self) -> dict[str, Metric]:
        if self.num_labels == 1:
            return {"pearson": PearsonCorrCoef(), "spearman": SpearmanCorrCoef()}
        accuracy = MulticlassAccuracy(self.num_labels, average="micro")
        return {"accuracy": accuracy, "f1": MulticlassF1Score(self.num_labels, average="macro")}
