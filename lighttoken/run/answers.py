"""The answers of a run to the rows that it is scored on, kept so that two runs can be compared row by row."""

from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from lighttoken.artifact.files import write_atomically

ANSWERS_FILE = "answers.safetensors"
MAX_BYTES = 1_000_000  # of a file that is read; the 40,430 rows of QQP take 0.3 MB
MAX_CLASSES = 1000
# Prefix of the scores -> answers (n,), labels (n,), in the order of the rows.
Answers = dict[str, tuple[Tensor, Tensor]]


def write_answers(answers: Answers, folder: Path) -> None:
    """Write answers.safetensors, with `SPLIT/answers` and `SPLIT/labels` in 32 bits, unless there are none."""
    tensors = {
        f"{split}/{name}": values.float() if values.is_floating_point() else values.int()
        for split, pair in answers.items()
        for name, values in zip(("answers", "labels"), pair, strict=True)
    }
    if tensors:
        write_atomically(folder / ANSWERS_FILE, save(tensors))


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
