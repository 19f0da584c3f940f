"""Truncated SVD: the rank-k part alone."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lighttoken.artifact.forms import Bits
from lighttoken.artifact.packing import Precision, quantize, stored_bytes
from lighttoken.codec.baselines import squared_error
from lighttoken.codec.interface import Budget, ErrorMetric, Importance, MetricCodec, Reporter
from lighttoken.codec.lowrank import truncated_svd
from lighttoken.codec.shapes import Fitted, Table
from lighttoken.errors import LighttokenError

PRECISIONS: tuple[Precision, ...] = ("int4", "int8", "float16")  # of the left factor, that are tried


@dataclass(frozen=True)
class SVD(MetricCodec):
    """The best rank-k approximation of the centred table (Eckart and Young 1936), as Chen et al. 2018 (GroupReduce) and
    Lan et al. 2020 (ALBERT) use it for embeddings.

    The same: the factors. Differs: the rows' mean is kept apart; row weights and the error metric, if any, enter the
    approximation; the factors are stored in integers where more of them make up for the rounding.
    """

    name: str = "svd"
    error_metric: ErrorMetric = "euclidean"
    rank: int | None = None
    coefficient_precision: Precision | None = None
    matrix_precision: Precision = "int8"
    form = Bits()

    def fit(self, table: Table, importance: Importance, budget: Budget, reporter: Reporter) -> Fitted:
        """The factors of the largest rank that fits, of the precision of the least error."""
        vocab_size, dim = table.shape
        if self.rank is not None and not 1 <= self.rank <= dim:
            raise LighttokenError(f"rank is {self.rank}; a table of width {dim} has ranks from 1 to {dim}")
        ranks = range(1, dim + 1) if self.rank is None else [self.rank]
        precisions = PRECISIONS if self.coefficient_precision is None else (self.coefficient_precision,)
        options = [((p, k), self._nbytes(vocab_size, dim, p, k)) for p in precisions for k in ranks]
        budget.largest(options)  # which raises if nothing fits
        fitting = {precision: rank for (precision, rank), nbytes in options if nbytes <= budget.tensor_bytes}
        left, right, mean = truncated_svd(table, max(fitting.values()), importance.weights, importance.error_metric)
        tried: list[tuple[float, dict[str, Tensor], dict[str, Any]]] = []
        for precision, rank in fitting.items():
            tensors = factor_tensors(left[:, :rank], right[:rank], mean, precision, self.matrix_precision)
            error = squared_error(self.form, table, tensors, importance)
            tried.append((error, tensors, {"rank": rank, "coefficient_precision": precision}))
        _, tensors, summary = min(tried, key=lambda entry: entry[0])
        return tensors, summary

    def _nbytes(self, vocab_size: int, dim: int, precision: Precision, rank: int) -> int:
        left = stored_bytes(vocab_size, rank, precision, scale_dim=1)
        return left + stored_bytes(rank, dim, self.matrix_precision, scale_dim=0) + 4 * dim


def factor_tensors(
    left: Tensor, right: Tensor, bias: Tensor, left_precision: Precision, right_precision: Precision
) -> dict[str, Tensor]:
    """Tensors of the form `Bits` without bits, for factors (V, k) and (k, d) and a bias (d,)."""
    tensors: dict[str, Tensor | None] = {
        "codes": torch.zeros(len(left), 0, dtype=torch.uint8),
        "decoder": torch.zeros(0, right.shape[1]),
        "bias": bias.float(),
    }
    tensors["left"], tensors["left.scale"] = quantize(left, left_precision, scale_dim=1)
    tensors["right"], tensors["right.scale"] = quantize(right, right_precision, scale_dim=0)
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}
