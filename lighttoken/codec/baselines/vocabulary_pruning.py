"""Vocabulary pruning: frequent tokens keep their rows, all others share one."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lighttoken.artifact.packing import pack_bits
from lighttoken.codec.baselines import Baseline, Budget
from lighttoken.codec.baselines.scalar import quantize_rows, row_bytes
from lighttoken.codec.prior import PriorName


@dataclass(frozen=True)
class VocabularyPruning(Baseline):
    """Rows of rare tokens dropped, as Abdaoui et al. 2020 do with those of other languages.

    The same: the rows kept are those of the most frequent tokens. Differs: frequency comes from the prior and not from
    a corpus of the task; dropped tokens share their mean instead of being cut to smaller ones; rows are stored in int8
    by default.
    """

    name: str = "vocabulary_pruning"
    prior: PriorName = "wordfreq"
    bits: int = 8

    def fit(
        self, table: Tensor, weights: Tensor, budget: Budget, progress: bool
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As many rows as fit."""
        vocab_size, dim = table.shape
        marks = -(-vocab_size // 8)
        rows = budget.largest((each, row_bytes(each + 1, dim, self.bits) + marks) for each in range(1, vocab_size - 1))
        kept = torch.zeros(vocab_size, dtype=torch.bool)
        kept[weights.argsort(descending=True, stable=True)[:rows]] = True
        bias = table[~kept].mean(0).half()
        own = torch.cat([torch.zeros(1, dim), table[kept] - bias.float()])
        tensors = quantize_rows(own, self.bits) | {"kept": pack_bits(kept.unsqueeze(0)).flatten(), "bias": bias}
        return tensors, {"rows": rows}
