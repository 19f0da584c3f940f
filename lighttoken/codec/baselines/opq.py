"""Optimized product quantization: product quantization of rotated rows."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lighttoken.codec.baselines.pq import PQ
from lighttoken.codec.baselines.quantizer import Quantizer, drawn, train_on_all


@dataclass(frozen=True)
class OPQ(PQ):
    """Optimized product quantization (Ge et al. 2013), by faiss.

    The same: rotation and codebooks trained in turn. Differs: as for product quantization; the rotation is stored in
    float16 and counts. It takes in the inverse root of an error metric, and is no rotation any more then; with row
    weights it is trained on rows drawn in proportion to them.
    """

    name: str = "opq"

    def codebook_bytes(self, m: int, bits: int, dim: int) -> int:
        """The codebooks and the rotation."""
        return super().codebook_bytes(m, bits, dim) + 2 * dim * dim

    def roots(self, error_metric: Tensor | None, dim: int, m: int) -> tuple[Tensor, Tensor]:
        """Those of the whole error metric."""
        return Quantizer.roots(self, error_metric, dim, m)

    def absorb(self, tensors: dict[str, Tensor], inverse_root: Tensor) -> dict[str, Tensor]:
        """The rotation is multiplied by the inverse root."""
        return {"codebooks": tensors["codebooks"].half(), "rotation": (tensors["rotation"] @ inverse_root).half()}

    def train(
        self, rows: np.ndarray, weights: np.ndarray | None, m: int, bits: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The rotation, then k-means of each slice of what it makes."""
        import faiss

        dim = rows.shape[1]
        seen = drawn(rows, weights)
        rotation = faiss.OPQMatrix(dim, m)
        faiss.copy_array_to_vector(eigenvalue_allocation(seen, m).ravel(), rotation.A)
        inner = faiss.ProductQuantizer(dim, m, bits)
        train_on_all(inner.cp, seen)
        rotation.pq = inner
        rotation.train(seen)
        matrix = torch.from_numpy(faiss.vector_to_array(rotation.A).copy()).view(dim, dim)  # y = A x
        words, tensors = super().train(rotation.apply(rows), weights, m, bits)
        return words, tensors | {"rotation": matrix}


def eigenvalue_allocation(rows: np.ndarray, m: int) -> np.ndarray:
    """The rotation (d, d) that training starts from: principal directions, in m slices of equal products of variances.

    Ge et al. 2013, section 4.2. faiss would start from a random rotation.
    """
    variances, directions = np.linalg.eigh(np.cov(rows.T, dtype=np.float64))
    logs = np.log(np.maximum(variances, np.finfo(np.float32).tiny))
    logs -= logs.min()  # so that a slice that has more directions never has a smaller product
    slices: list[list[int]] = [[] for _ in range(m)]
    for direction in np.argsort(-logs):
        open_slices = [part for part in slices if len(part) < len(logs) // m]
        min(open_slices, key=lambda part: logs[part].sum()).append(int(direction))
    return np.ascontiguousarray(directions[:, np.concatenate(slices)].T, dtype=np.float32)
