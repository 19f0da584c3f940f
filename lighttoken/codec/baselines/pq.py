"""Product quantization."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lighttoken.codec.baselines.quantizer import Quantizer, float16_array, read_codes


@dataclass(frozen=True)
class PQ(Quantizer):
    """Product quantization for nearest neighbor search (Jégou et al. 2011), by faiss.

    The same: k-means on every slice of the rows, of equal widths. Differs: the mean is taken off first; codebooks are
    rounded to float16.
    """

    name: str = "pq"

    def counts(self, dim: int, bits: int) -> list[int]:
        """Slices have equal widths."""
        return [m for m in range(1, dim + 1) if dim % m == 0]

    def codebook_bytes(self, m: int, bits: int, dim: int) -> int:
        """All slices together have one codebook of the width of a row."""
        return 2 * 2**bits * dim

    def train(self, rows: np.ndarray, m: int, bits: int) -> tuple[Tensor, dict[str, Tensor]]:
        """k-means of each slice."""
        import faiss

        quantizer = faiss.ProductQuantizer(rows.shape[1], m, bits)
        quantizer.cp.min_points_per_centroid = 1  # else it warns for every slice
        quantizer.train(rows)
        codebooks = float16_array(quantizer.centroids, m, 2**bits, rows.shape[1] // m)
        return read_codes(quantizer.compute_codes(rows), m, bits), {"codebooks": codebooks}
