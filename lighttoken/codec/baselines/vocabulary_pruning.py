"""Vocabulary pruning: frequent tokens keep their rows, all others share one."""

from dataclasses import dataclass, field

import torch

from lighttoken.artifact.forms import Levels
from lighttoken.artifact.packing import pack_bits
from lighttoken.codec.baselines.scalar import quantize_rows, row_bytes
from lighttoken.codec.interface import Budget, Importance, Reporter, WeightedCodec
from lighttoken.codec.prior import Prior, WordFrequency
from lighttoken.codec.shapes import Fitted, Table


@dataclass(frozen=True)
class VocabularyPruning(WeightedCodec):
    """Rows of rare tokens dropped, as Abdaoui et al. 2020 do with those of other languages.

    The same: the rows kept are those of the most frequent tokens. Differs: frequency comes from the prior and not from
    a corpus of the task; dropped tokens share their mean instead of being cut to smaller ones; rows are stored in int8
    by default.
    """

    name: str = "vocabulary_pruning"
    prior: Prior = field(default_factory=WordFrequency)
    bits: int = 8
    form = Levels()

    def fit(self, table: Table, importance: Importance, budget: Budget, reporter: Reporter) -> Fitted:
        """As many rows as fit."""
        vocab_size, dim = table.shape
        marks = -(-vocab_size // 8)
        rows = budget.largest(
            (count, row_bytes(count + 1, dim, self.bits) + marks) for count in range(1, vocab_size - 1)
        )
        kept = torch.zeros(vocab_size, dtype=torch.bool)
        kept[importance.weights.argsort(descending=True, stable=True)[:rows]] = True
        bias = table[~kept].mean(0).half()
        rows_kept = torch.cat([torch.zeros(1, dim), table[kept] - bias.float()])  # the first row is shared
        tensors = quantize_rows(rows_kept, self.bits) | {"kept": pack_bits(kept.unsqueeze(0)).flatten(), "bias": bias}
        return tensors, {"rows": rows}
