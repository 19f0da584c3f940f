"""GLUE tasks, from parquet files on disk or from the hub."""

from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError

from lighttoken.errors import LighttokenError
from lighttoken.tasks.sentences import SentenceData


class Glue(SentenceData):
    """A GLUE task (Wang et al., ICLR 2019): `DIR/train.parquet` and `DIR/validation.parquet`, else the hub data set."""

    def __init__(self, *args: Any, data_dir: str | None = None, hub_id: str = "nyu-mll/glue", **kwargs: Any):
        """`data_dir` is read where given; `hub_id` is a data set, on the hub or on disk, with the task as config."""
        super().__init__(*args, **kwargs)
        self.data_dir, self.hub_id = data_dir, hub_id

    def read_splits(self) -> DatasetDict:
        source: dict[str, Any]
        if self.data_dir is not None:
            files = {split: Path(self.data_dir) / f"{split}.parquet" for split in ("train", "validation")}
            for split, file in files.items():
                if not file.is_file():
                    present = sorted(path.name for path in Path(self.data_dir).glob("*"))[:10]
                    raise LighttokenError(
                        f"task.data_dir={self.data_dir} has no split {split!r}: {file.name} is missing; "
                        f"found {', '.join(present) or 'nothing there'}"
                    )
            what, source = self.data_dir, {"path": "parquet", "data_files": {k: str(f) for k, f in files.items()}}
            cure = "each file must be parquet with rows in it"
        else:
            what, source = self.hub_id, {"path": self.hub_id, "name": self.name}
            cure = (
                "with no network, set task.data_dir=DIR to a folder with train.parquet and validation.parquet, "
                "or try +experiment=quickstart, which needs none"
            )
        try:
            return load_dataset(**source)
        except (OSError, ValueError, DatasetGenerationError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise LighttokenError(f"cannot get task={self.name} from {what}: {reason}; {cure}") from error
