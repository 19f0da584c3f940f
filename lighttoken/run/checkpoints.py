"""Checkpoints of a training: files of torch.save, followed by their SHA-256, that are checked before they are used."""

import hashlib
import io
import logging
import mmap
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lighttoken.artifact.files import make_directory, write_atomically
from lighttoken.errors import LighttokenError

log = logging.getLogger(__name__)

CHECKPOINT_FILE = "last.ckpt"
DIGEST_BYTES = 32


class CheckedCheckpoints(TorchCheckpointIO):
    """How Lightning writes, reads and removes checkpoints. With `resume`, what the last one names is kept until the
    next one is there, so that a run can go on from it after a kill at any moment.
    """

    def __init__(self, resume: bool) -> None:
        self.resume = resume
        self.obsolete: list[Any] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint whole or not at all. Raises LighttokenError if the disk is full or read-only."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        digest = hashlib.sha256(buffer.getbuffer()).digest()
        buffer.write(digest)
        make_directory(Path(path).parent)
        write_atomically(Path(path), buffer.getbuffer())
        if Path(path).name == CHECKPOINT_FILE:
            for obsolete in self.obsolete:
                super().remove_checkpoint(obsolete)
            self.obsolete.clear()

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint. Raises LighttokenError if it is damaged."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint, now or once the next one to continue from is there."""
        if self.resume:
            self.obsolete.append(path)
        else:
            super().remove_checkpoint(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint. Raises LighttokenError if it is damaged."""
    if not is_whole(path):
        raise LighttokenError(
            f"the checkpoint {path} is damaged: it has not the hash at its end; run the command again"
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def is_whole(path: Path) -> bool:
    """Whether a file has, at its end, the SHA-256 of what is before it."""
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,  # it may be larger than free memory
            memoryview(content) as view,
            view[:-DIGEST_BYTES] as body,
        ):
            return hashlib.sha256(body).digest() == content[-DIGEST_BYTES:]
    except (OSError, ValueError):  # not there, or empty
        return False


def find_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that a run can continue from; None without one.

    If it, or the best epoch that it names, is damaged, the folder is renamed to *.damaged, and training starts again.
    """
    checkpoint = folder / CHECKPOINT_FILE
    if not checkpoint.exists():
        return None
    damaged = checkpoint
    if is_whole(checkpoint):
        states = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["callbacks"].values()
        paths = [Path(state["best_model_path"]) for state in states if state.get("best_model_path")]
        if all(is_whole(path) for path in paths):
            return checkpoint
        damaged = next(path for path in paths if not is_whole(path))
    aside = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    log.warning("%s is damaged: it is kept in %s, and fine-tuning starts from its beginning", damaged, aside)
    return None
