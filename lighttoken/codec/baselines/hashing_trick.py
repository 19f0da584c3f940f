"""The hashing trick: ids that have the same hash share a row. A floor for every other method."""

from dataclasses import dataclass

import torch

from lighttoken.artifact.forms import Levels, hashed_rows
from lighttoken.codec.baselines import mean_row
from lighttoken.codec.baselines.scalar import quantize_rows, row_bytes
from lighttoken.codec.interface import Budget, Importance, Reporter, WeightedCodec
from lighttoken.codec.shapes import Fitted, Table


@dataclass(frozen=True)
class HashingTrick(WeightedCodec):
    """Feature hashing for large scale multitask learning (Weinberger et al. 2009), as embeddings use it.

    The same: the row of an id is found by its hash alone. Differs: the shared row is the mean of the trained ones
    instead of being trained; it is stored in int8 by default.
    """

    name: str = "hashing_trick"
    bits: int = 8
    form = Levels()

    def fit(self, table: Table, importance: Importance, budget: Budget, reporter: Reporter) -> Fitted:
        """As many rows as fit."""
        vocab_size, dim = table.shape
        rows = budget.largest((count, row_bytes(count, dim, self.bits)) for count in range(1, vocab_size))
        shared, weights = hashed_rows(vocab_size, rows), importance.weights
        bias = mean_row(table, weights)
        sums = torch.zeros(rows, dim).index_add_(0, shared, table * weights.unsqueeze(1))
        total = torch.zeros(rows).index_add_(0, shared, weights).clamp_min(torch.finfo(torch.float32).tiny)
        return quantize_rows(sums / total.unsqueeze(1) - bias.float(), self.bits) | {"bias": bias}, {"rows": rows}
