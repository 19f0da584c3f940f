"""Finished parts of a long computation, in a folder: the same computation, started again, goes on behind them."""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
from safetensors.torch import load_file, save
from torch import Tensor

from lighttoken.artifact.files import make_directory, write_atomically


@dataclass(frozen=True)
class Parts:
    """Parts by name. The folder belongs to one computation: its name must follow from all that the parts depend on.

    Without a folder nothing is kept. A part that took less than `least_seconds` is not worth its file.
    """

    directory: Path | None = None
    least_seconds: float = 1.0

    def get(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """The tensors of a part: read if they were kept, else made and kept. A damaged file is made again."""
        if self.directory is None:
            return make()
        path = self.directory / f"{name}.safetensors"
        if path.is_file():
            try:
                return load_file(path)
            except (safetensors.SafetensorError, OSError):
                path.unlink()
        start = time.monotonic()
        tensors = make()
        if time.monotonic() - start >= self.least_seconds:
            make_directory(self.directory)
            write_atomically(path, save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))
        return tensors

    @property
    def kept(self) -> bool:
        """Whether the folder holds a part."""
        return self.directory is not None and any(self.directory.glob("*.safetensors"))

    def remove(self) -> None:
        """Remove the folder, once the whole is written."""
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)


NOT_KEPT = Parts()
