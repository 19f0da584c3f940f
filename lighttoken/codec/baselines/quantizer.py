"""What the quantizers of faiss share: the shapes that fit a budget, and how what they learn is stored."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lighttoken.artifact.forms import Codebooks
from lighttoken.artifact.packing import pack_words, read_words
from lighttoken.codec.baselines import mean_row, need, squared_error
from lighttoken.codec.interface import Budget, ErrorMetric, Importance, MetricCodec, Reporter
from lighttoken.codec.metric_roots import metric_roots
from lighttoken.codec.shapes import Fitted, Table
from lighttoken.errors import LighttokenError

BITS = (4, 6, 8)  # of a word, that are tried


@dataclass(frozen=True)
class Quantizer(MetricCodec):
    """A quantizer of faiss (Douze et al. 2024), trained on the centred table. `bits` is that of a word.

    None tries 4, 6 and 8, with as many words to a row as fit, and keeps the one of the least squared error, under the
    row weights and the error metric if there are any. The rows are multiplied by the square root of the error metric,
    and the codebooks, or the rotation, by its inverse.
    """

    error_metric: ErrorMetric = "euclidean"
    bits: int | None = None
    form = Codebooks()

    def __post_init__(self) -> None:
        super().__post_init__()
        need("faiss")
        if self.bits is not None and not 1 <= self.bits <= 12:
            raise LighttokenError(f"bits is {self.bits}; a word of {self.name} has from 1 to 12, or null")

    def fit(self, table: Table, importance: Importance, budget: Budget, reporter: Reporter) -> Fitted:
        """The codebooks and words of the shape of the least error."""
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        alike = bool((importance.weights == 1).all())
        bias = mean_row(table) if alike else mean_row(table, importance.weights)
        rows = table - bias.float()
        options = list(self._options(*table.shape))
        budget.largest(options)  # which raises if no shape fits
        # The most words of each number of bits that fit: counts rise, and the last one stays in the dict.
        fitting = {bits: m for (bits, m), nbytes in options if nbytes <= budget.tensor_bytes}
        best: tuple[float, dict[str, Tensor], dict[str, Any]] | None = None
        for bits, m in reporter.bar(fitting.items(), description=self.name, unit="shape"):
            root, inverse_root = (matrix.float() for matrix in self.roots(importance.error_metric, table.shape[1], m))
            seen = np.ascontiguousarray((rows @ root).numpy())
            words, tensors = self.train(seen, None if alike else importance.weights.numpy(), m, bits)
            tensors = self.absorb(tensors, inverse_root) | {"codes": pack_words(words, bits), "bias": bias}
            error = squared_error(self.form, table, tensors, importance)
            if best is None or error < best[0]:
                best = error, tensors, {"words": m, "word_bits": bits}
        assert best is not None
        return best[1], best[2]

    def roots(self, error_metric: Tensor | None, dim: int, m: int) -> tuple[Tensor, Tensor]:
        """What rows are multiplied by before they are quantized, (d, d), and its inverse."""
        return metric_roots(error_metric, dim)

    def absorb(self, tensors: dict[str, Tensor], inverse_root: Tensor) -> dict[str, Tensor]:
        """Codebooks of whole rows, multiplied by the inverse root and stored in float16."""
        return {"codebooks": (tensors["codebooks"] @ inverse_root).half()}

    def _options(self, vocab_size: int, dim: int) -> Iterator[tuple[tuple[int, int], int]]:
        for bits in BITS if self.bits is None else (self.bits,):
            if vocab_size >= 2**bits:  # else there are more entries than rows to learn them from
                for m in self.counts(dim, bits):
                    code = vocab_size * -(-m * bits // 8)
                    yield (bits, m), code + self.codebook_bytes(m, bits, dim) + 2 * dim

    def counts(self, dim: int, bits: int) -> list[int]:
        """The numbers of words to a row, rising, that this quantizer can have."""
        raise NotImplementedError

    def codebook_bytes(self, m: int, bits: int, dim: int) -> int:
        """Bytes of what all rows share, in float16."""
        raise NotImplementedError

    def train(
        self, rows: np.ndarray, weights: np.ndarray | None, m: int, bits: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Words (V, m) int64 of rows (V, d) float32 of weights (V,), and the codebooks that they choose from."""
        raise NotImplementedError


def drawn(rows: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Rows in proportion to their weights, twice as many: for training that takes no weights. Nothing is random."""
    if weights is None:
        return rows
    ends = np.cumsum(weights, dtype=np.float64)
    return rows[np.searchsorted(ends, (np.arange(2 * len(rows)) + 0.5) * (ends[-1] / (2 * len(rows))))]


def train_on_all(settings: Any, rows: np.ndarray) -> None:
    """Let the k-means of faiss, which takes 256 rows to a centroid, take all rows, few or many."""
    settings.min_points_per_centroid, settings.max_points_per_centroid = 1, len(rows)


def read_array(vector: Any, *shape: int) -> Tensor:
    """A vector of faiss as a tensor of a shape."""
    import faiss

    return torch.from_numpy(faiss.vector_to_array(vector).copy()).view(*shape)


def read_codes(codes: np.ndarray, count: int, bits: int) -> Tensor:
    """Words (V, count) int64 of the codes of faiss, which packs them as we do."""
    return read_words(torch.from_numpy(codes), count, bits)
