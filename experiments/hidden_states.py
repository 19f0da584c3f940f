"""The last hidden states of real texts, to compare a compressed table with the original one. Neither labels nor
validation rows are read.
"""

from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from torch import Tensor
from transformers import PreTrainedModel

from lighttoken.tasks.data import position

TEXT_COLUMNS = {"cola": "sentence", "sst2": "sentence", "stsb": "sentence1", "rte": "sentence1", "squad": "context"}
CHARACTERS = 25_000  # of the texts of a task
BATCH = 32  # texts
Batches = list[dict[str, Tensor]]
Hidden = list[Tensor]  # (n, width) for every batch: the states of its n tokens, without padding


def evaluated_texts(data: Path, task: str) -> list[str]:
    """The first training texts of a task in an order of hashes, up to so many characters; sorted by length."""
    texts, room = [], CHARACTERS
    split = load_dataset("parquet", data_files=str(data / task / "train.parquet"), split="train")
    for text in sorted(set(split[TEXT_COLUMNS[task]]), key=position):
        if room < 0:
            break
        texts.append(text)
        room -= len(text)
    return sorted(texts, key=len)


def read_batches(data: Path, task: str, tokenizer: Any) -> Batches:
    """Batches of the texts of a task."""
    texts = evaluated_texts(data, task)
    kwargs = {"padding": True, "truncation": True, "max_length": 128, "return_tensors": "pt"}
    return [tokenizer(texts[i : i + BATCH], **kwargs) for i in range(0, len(texts), BATCH)]


@torch.no_grad()
def hidden_states(model: PreTrainedModel, batches: Batches) -> Hidden:
    return [model(**batch).last_hidden_state[batch["attention_mask"].bool()] for batch in batches]


def cosine(first: Hidden, second: Hidden) -> float:
    pairs = zip(first, second, strict=True)
    return float(torch.cat([torch.cosine_similarity(one, other) for one, other in pairs]).mean())
