"""Product quantization."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lighttoken.codec.baselines.quantizer import Quantizer, read_array, read_codes, train_on_all
from lighttoken.codec.metric_roots import metric_roots


@dataclass(frozen=True)
class PQ(Quantizer):
    """Product quantization for nearest neighbor search (Jégou et al. 2011), by faiss.

    The same: k-means on every slice of the rows, of equal widths. Differs: the mean is taken off first; codebooks are
    rounded to float16. Of an error metric it sees the blocks on the diagonal, one for every slice; row weights enter
    the k-means of every slice.
    """

    name: str = "pq"

    def counts(self, dim: int, bits: int) -> list[int]:
        """Slices have equal widths."""
        return [m for m in range(1, dim + 1) if dim % m == 0]

    def codebook_bytes(self, m: int, bits: int, dim: int) -> int:
        """All slices together have one codebook of the width of a row."""
        return 2 * 2**bits * dim

    def roots(self, error_metric: Tensor | None, dim: int, m: int) -> tuple[Tensor, Tensor]:
        """Block by block: a slice stays a slice."""
        if error_metric is None:
            return metric_roots(None, dim)
        parts = [slice(i, i + dim // m) for i in range(0, dim, dim // m)]
        pairs = [metric_roots(error_metric[part, part], dim // m) for part in parts]
        return torch.block_diag(*(root for root, _ in pairs)), torch.block_diag(*(inverse for _, inverse in pairs))

    def absorb(self, tensors: dict[str, Tensor], inverse_root: Tensor) -> dict[str, Tensor]:
        """Every codebook takes its block."""
        m, _, width = tensors["codebooks"].shape
        blocks = inverse_root.view(m, width, m, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        return {"codebooks": (tensors["codebooks"] @ blocks).half()}

    def train(
        self, rows: np.ndarray, weights: np.ndarray | None, m: int, bits: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """k-means of each slice."""
        import faiss

        quantizer = faiss.ProductQuantizer(rows.shape[1], m, bits)
        train_on_all(quantizer.cp, rows)
        if weights is None:
            quantizer.train(rows)
        else:
            slices = np.split(rows, m, 1)
            books = [_weighted_means(np.ascontiguousarray(part), weights, 2**bits) for part in slices]
            faiss.copy_array_to_vector(np.concatenate(books).ravel(), quantizer.centroids)
        codebooks = read_array(quantizer.centroids, m, 2**bits, rows.shape[1] // m)
        return read_codes(quantizer.compute_codes(rows), m, bits), {"codebooks": codebooks}


def _weighted_means(rows: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Centroids (count, w) of rows (V, w) under weights, by the k-means of faiss."""
    import faiss

    means = faiss.Kmeans(rows.shape[1], count, min_points_per_centroid=1, max_points_per_centroid=len(rows))
    means.train(rows, weights=weights)
    return np.asarray(means.centroids)
