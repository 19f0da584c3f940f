"""Local-search quantization: additive codebooks of whole rows, words improved by iterated local search."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lighttoken.codec.baselines.rq import RQ


@dataclass(frozen=True)
class LSQ(RQ):
    """Revisiting additive quantization, and LSQ++ (Martinez et al. 2016, 2018), by faiss.

    The same: codebooks by least squares and words by iterated local search, in turn. Differs: as for residual
    quantization; at most `max_words` words, as the time of the search grows with their square.
    """

    name: str = "lsq"
    max_words: int = 16

    def counts(self, dim: int, bits: int) -> list[int]:
        """At most so many that the search ends in minutes."""
        return [m for m in super().counts(dim, bits) if m <= self.max_words]

    def quantizer(self, rows: np.ndarray, m: int, bits: int) -> Any:
        """The quantizer of faiss for rows that it is to learn from."""
        import faiss

        return faiss.LocalSearchQuantizer(rows.shape[1], m, bits)
