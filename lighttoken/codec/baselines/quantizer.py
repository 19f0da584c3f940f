"""What the quantizers of faiss share: the shapes that fit a budget, and how what they learn is stored."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lighttoken.artifact.forms import FORMS
from lighttoken.artifact.packing import pack_words, read_words
from lighttoken.codec.baselines import Baseline, Budget, mean_row, need
from lighttoken.errors import LighttokenError

BITS = (4, 6, 8)  # of a word, that are tried
ROWS_PER_CHUNK = 4096


@dataclass(frozen=True)
class Quantizer(Baseline):
    """A quantizer of faiss (Douze et al. 2024), trained on the centred table. `bits` is that of a word.

    None tries 4, 6 and 8, with as many words to a row as fit, and keeps the one of the least squared error.
    """

    bits: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        need("faiss")
        if self.bits is not None and not 1 <= self.bits <= 12:
            raise LighttokenError(f"bits is {self.bits}; a word of {self.name} has from 1 to 12, or null")

    def fit(
        self, table: Tensor, weights: Tensor, budget: Budget, progress: bool
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The codebooks and words of the shape of the least error."""
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        bias = mean_row(table, torch.ones(len(table)))
        rows = table - bias.float()
        centred = np.ascontiguousarray(rows.numpy())
        best, told, least, options = None, {}, float("inf"), list(self._options(*table.shape))
        # The most words of each number of bits that fit: counts rise.
        fitting = {bits: m for (bits, m), nbytes in options if nbytes <= budget.nbytes}
        if not fitting:
            budget.largest(options)
        for bits, m in tqdm(fitting.items(), self.name, unit="shape", disable=not progress):
            words, tensors = self.train(centred, m, bits)
            tensors |= {"codes": pack_words(words, bits), "bias": bias}
            error = squared_error(rows, tensors)
            if best is None or error < least:
                least, best, told = error, tensors, {"words": m, "word_bits": bits}
        assert best is not None
        return best, told

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
        """Bytes of what is shared by all rows, in float16."""
        raise NotImplementedError

    def train(self, rows: np.ndarray, m: int, bits: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Words (V, m) int64 of rows (V, d), and the codebooks they choose from."""
        raise NotImplementedError


def float16_array(vector: Any, *shape: int) -> Tensor:
    """A vector of faiss, in a shape and in the precision that is stored."""
    import faiss

    return torch.from_numpy(faiss.vector_to_array(vector).copy()).view(*shape).half()


def read_codes(codes: np.ndarray, count: int, bits: int) -> Tensor:
    """Words (V, count) int64 of the codes of faiss, which packs them as we do."""
    return read_words(torch.from_numpy(codes), count, bits)


def squared_error(rows: Tensor, tensors: dict[str, Tensor]) -> float:
    """Of the rows (V, d) that tensors decode to without their bias."""
    total = 0.0
    for ids in torch.arange(len(rows)).split(ROWS_PER_CHUNK):
        total += float((FORMS["codebooks"].read(ids, tensors, rows.shape[1]) - rows[ids]).square().sum())
    return total
