"""A task of your own: a folder per class, a file per text, as DIR/train/CLASS/*.txt and DIR/validation/CLASS/*.txt."""

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from lighttoken import LighttokenError
from lighttoken.tasks.sentences import SentenceData


class TextFolders(SentenceData):
    """Classes are the names in `label_names`, which are the names of the folders too."""

    def __init__(self, *args: Any, data_dir: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.data_dir = Path(data_dir)

    def read_splits(self) -> DatasetDict:
        """The splits `train` and `validation`, with the text columns and `label`."""
        return DatasetDict({split: self._read(self.data_dir / split) for split in ("train", "validation")})

    def _read(self, folder: Path) -> Dataset:
        files = sorted(folder.glob("*/*.txt"))
        if not files:
            raise LighttokenError(f"no texts in {folder}/CLASS/*.txt; check task.data_dir={self.data_dir}")
        texts, labels = [file.read_text() for file in files], [file.parent.name for file in files]
        return Dataset.from_dict({"text": texts, "label": labels})
