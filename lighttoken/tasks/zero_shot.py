"""Tasks that train nothing: the rows of one file or of one split of a data set, and the module that scores a model."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric
from transformers import PreTrainedModel

from lighttoken.codec.corpus import FORMATS
from lighttoken.errors import LighttokenError
from lighttoken.tasks.data import TaskData
from lighttoken.tasks.shares import SharingModule

READERS = FORMATS | {".raw": "text", ".json": "json"}


class ZeroShotData(TaskData):
    """A task that scores a model as it is. All rows are scored."""

    trains = False

    def __init__(
        self,
        *args: Any,
        file: str | None = None,
        hub_id: str | None = None,
        hub_config: str | None = None,
        split: str = "validation",
        **kwargs: Any,
    ):
        """Rows come from `file` if it is set, else from a split of `hub_id`, a data set on the hub or on disk.

        A .txt or .raw file is one row with one text. A .parquet, .csv, .jsonl or .json file has columns.
        """
        super().__init__(*args, **kwargs)
        self.file, self.hub_id, self.hub_config, self.split = file, hub_id, hub_config, split

    def read_splits(self) -> DatasetDict:
        if self.file is None and self.hub_id is None:
            raise LighttokenError(f"task={self.name} has no rows; set task.file=FILE, or task.hub_id=ID")
        if self.file is None:
            cure = "with no network, set task.file=FILE"
            read = partial(load_dataset, self.hub_id, self.hub_config, split=self.split)
            return DatasetDict(validation=self.fetch(read, str(self.hub_id), cure))
        path = Path(self.file)
        reader = READERS.get(path.suffix)
        if reader is None:
            raise LighttokenError(f"task.file={path} has no known format; choose a file in {', '.join(READERS)}")
        if reader == "text":
            read = partial(self._read_text, path)
        else:
            read = partial(load_dataset, reader, data_files=str(path), split="train")
        return DatasetDict(validation=self.fetch(read, path, "check task.file"))

    def _read_text(self, path: Path) -> Dataset:
        return Dataset.from_dict({self.text_columns[0]: [path.read_text(encoding="utf-8")]})

    def _check(self, raw: DatasetDict) -> None:
        """Also raises LighttokenError for the first row that lacks a text."""
        super()._check(raw)
        for i, row in enumerate(zip(*(raw["validation"][column] for column in self.text_columns), strict=True)):
            if not all(isinstance(text, str) for text in row):
                raise LighttokenError(f"row {i} of task={self.name} lacks a text: {row}; leave it out")

    def predict_dataloader(self) -> list[DataLoader]:
        """Raises LighttokenError: there is nothing to answer."""
        raise LighttokenError(f"task={self.name} has no test split to answer; leave out predict=true")


class Scorer(SharingModule):
    """Scores a model as it is. Scores are logged as `val/NAME`."""

    def __init__(self, model: PreTrainedModel, metrics: Mapping[str, Metric]):
        super().__init__()
        self.model = model.eval()
        self.scores = nn.ModuleDict({name: metric.clone() for name, metric in metrics.items()})

    def update(self, name: str, *values: Tensor) -> None:
        """Update a metric, if the config has it, with the values of some rows."""
        if name in self.scores and len(values[0]):
            metric: Any = self.scores[name]
            metric.update(*values)

    def on_validation_batch_end(self, outputs: Any, batch: Any, *args: Any) -> None:
        # All processes log the same names, whatever rows they have.
        self.log_dict({f"val/{name}": metric for name, metric in self.scores.items()}, batch_size=1, prog_bar=True)  # type: ignore[misc]
