"""The hashing trick: ids that have the same hash share a row. A floor for every other method."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lighttoken.artifact.forms import hashed_rows
from lighttoken.codec.baselines import Baseline, Budget, mean_row
from lighttoken.codec.baselines.scalar import quantize_rows, row_bytes


@dataclass(frozen=True)
class HashingTrick(Baseline):
    """Feature hashing for large scale multitask learning (Weinberger et al. 2009), as embeddings use it.

    The same: the row of an id is found by its hash alone. Differs: the shared row is the mean of the trained ones
    instead of being trained; it is stored in int8 by default.
    """

    name: str = "hashing_trick"
    bits: int = 8

    def fit(
        self, table: Tensor, weights: Tensor, budget: Budget, progress: bool
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As many rows as fit."""
        vocab_size, dim = table.shape
        rows = budget.largest((each, row_bytes(each, dim, self.bits)) for each in range(1, vocab_size))
        places, bias = hashed_rows(vocab_size, rows), mean_row(table, weights)
        sums = torch.zeros(rows, dim).index_add_(0, places, table * weights.unsqueeze(1))
        shares = torch.zeros(rows).index_add_(0, places, weights).clamp_min(torch.finfo(torch.float32).tiny)
        return quantize_rows(sums / shares.unsqueeze(1) - bias.float(), self.bits) | {"bias": bias}, {"rows": rows}
