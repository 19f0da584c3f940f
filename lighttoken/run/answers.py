"""The answers of a run to the rows that it is scored on, kept so that two runs can be compared row by row."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import load, save
from torch import Tensor

from lighttoken.artifact.files import write_atomically

ANSWERS_FILE = "answers.safetensors"
MAX_BYTES = 1_000_000  # of a file that is read; the 40,430 rows of QQP take 0.3 MB
MAX_CLASSES = 1000
# Prefix of the scores -> answers (n,), labels (n,), in the order of the rows.
Answers = dict[str, tuple[Tensor, Tensor]]


class AnswerKeeper(L.Callback):
    """Collects what `validation_step` returns: a dictionary with `answers` (batch,) and `labels` (batch,)."""

    def __init__(self) -> None:
        self.batches: dict[int, list[dict[str, Tensor]]] = defaultdict(list)  # number of the data loader -> batches

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Of several processes, none has the rows in their order.
        if isinstance(outputs, dict) and {"answers", "labels"} <= outputs.keys() and trainer.world_size == 1:
            self.batches[dataloader_idx].append({name: values.cpu() for name, values in outputs.items()})

    def write(self, splits: Sequence[str], folder: Path) -> None:
        """Write answers.safetensors, with `SPLIT/answers` and `SPLIT/labels`, unless there are none."""
        tensors = {
            f"{splits[number]}/{name}": torch.cat([batch[name] for batch in batches])
            for number, batches in self.batches.items()
            for name in ("answers", "labels")
        }
        if tensors:
            # Classes, too, fit into 32 bits.
            small = {
                name: values.float() if values.is_floating_point() else values.int() for name, values in tensors.items()
            }
            write_atomically(folder / ANSWERS_FILE, save(small))


def read_answers(path: Path) -> Answers:
    """The content of answers.safetensors; empty if it is missing or odd, as anybody can have written it."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return {}
        tensors = load(path.read_bytes())
        pairs = {
            name.removesuffix("/answers"): (values, tensors[name.removesuffix("answers") + "labels"])
            for name, values in tensors.items()
            if name.endswith("/answers")
        }
    except Exception:  # whatever is wrong with a file of others, the reader goes on
        return {}
    return {split: pair for split, pair in pairs.items() if _is_sound(*pair)}


def _is_sound(answers: Tensor, labels: Tensor) -> bool:
    """Whether both are finite numbers, or both are classes, for the same rows."""
    if answers.ndim != 1 or len(answers) == 0 or answers.shape != labels.shape or answers.dtype != labels.dtype:
        return False
    both = torch.cat([answers, labels])
    if both.dtype == torch.float32:
        return bool(both.isfinite().all())
    return both.dtype == torch.int32 and bool((both >= 0).all() and (both < MAX_CLASSES).all())
