"""Residual quantization: each codebook quantizes what the ones before have left."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lighttoken.codec.baselines.quantizer import Quantizer, drawn, read_array, read_codes, train_on_all
from lighttoken.errors import LighttokenError

MAX_ENTRIES = 4_096  # of all codebooks together: beyond that the search takes hours


@dataclass(frozen=True)
class RQ(Quantizer):
    """Approximate nearest neighbor search by residual vector quantization (Chen et al. 2010), by faiss.

    The same: codebooks of whole rows, trained one after another. Differs: the search keeps a beam of 5 (Liu et al.
    2015); the mean is taken off first; codebooks are rounded to float16; the codebooks have at most 4,096 entries in
    all, so that low ratios leave bytes unused (MiniLM-L6: under 6.6x). With row weights it is trained on rows drawn in
    proportion to them.
    """

    name: str = "rq"

    def counts(self, dim: int, bits: int) -> list[int]:
        """At most so many that the search ends in minutes."""
        return list(range(1, MAX_ENTRIES // 2**bits + 1))

    def codebook_bytes(self, m: int, bits: int, dim: int) -> int:
        """A codebook of whole rows for every word."""
        return 2 * 2**bits * m * dim

    def train(
        self, rows: np.ndarray, weights: np.ndarray | None, m: int, bits: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The codebooks, and the words of a beam search."""
        seen = drawn(rows, weights)
        quantizer = self.quantizer(seen, m, bits)
        try:
            quantizer.train(seen)
        except RuntimeError as error:  # a table with fewer rows than columns, among others
            reason = str(error).strip().splitlines()[-1]
            raise LighttokenError(
                f"faiss cannot train codec={self.name} on {len(rows)} rows of {rows.shape[1]}: {reason}; "
                "choose another codec"
            ) from error
        codebooks = read_array(quantizer.codebooks, m, 2**bits, rows.shape[1])
        return read_codes(quantizer.compute_codes(rows), m, bits), {"codebooks": codebooks}

    def quantizer(self, rows: np.ndarray, m: int, bits: int) -> Any:
        """The quantizer of faiss for rows that it is to learn from."""
        import faiss

        quantizer = faiss.ResidualQuantizer(rows.shape[1], m, bits)
        train_on_all(quantizer.cp, rows)
        return quantizer
