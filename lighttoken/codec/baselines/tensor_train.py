"""Tensor train: the table, folded to more axes, as a product of small cores."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from lighttoken.artifact.forms import Cores
from lighttoken.codec.baselines import mean_row, need
from lighttoken.codec.interface import Budget, Codec, Importance, Reporter
from lighttoken.codec.shapes import Fitted, Table

CORES = 3


@dataclass(frozen=True)
class TensorTrain(Codec):
    """Tensorized embedding layers (Hrinchuk et al. 2020; Khrulkov et al. 2019), by tensorly.

    The same: three cores, ids and columns both folded to three axes of about the same length, equal ranks. Differs:
    the cores come from the TT-SVD of the trained table (Oseledets 2011) instead of training from scratch; the mean is
    taken off first; cores are stored in float16.
    """

    name: str = "tensor_train"
    form = Cores()

    def __post_init__(self) -> None:
        need("tensorly")

    def fit(self, table: Table, importance: Importance, budget: Budget, reporter: Reporter) -> Fitted:
        """The cores of the largest ranks that fit."""
        from tensorly.decomposition import tensor_train_matrix

        vocab_size, dim = table.shape
        ids, columns = _axes(vocab_size), _factors(dim)
        highest = [ids[0] * columns[0], ids[2] * columns[2]]  # no more help
        sizes = [ids[i] * columns[i] for i in range(CORES)]

        def ranks(rank: int) -> list[int]:
            return [1, *(min(rank, most) for most in highest), 1]

        def nbytes(rank: int) -> int:
            r = ranks(rank)
            return 2 * sum(r[i] * sizes[i] * r[i + 1] for i in range(CORES)) + 2 * dim

        rank = budget.largest((r, nbytes(r)) for r in range(1, max(highest) + 1))
        bias = mean_row(table)
        padded = np.zeros((math.prod(ids), dim), dtype=np.float32)
        padded[:vocab_size] = (table - bias.float()).numpy()
        train = tensor_train_matrix(padded.reshape(*ids, *columns), ranks(rank))
        cores = [torch.from_numpy(np.ascontiguousarray(core)) for core in train]
        norm = math.prod(float(core.norm()) for core in cores) ** (1 / CORES)
        cores = [core * (norm / max(float(core.norm()), 1e-30)) for core in cores]  # far from what float16 cannot hold
        names = ["codes", *(f"core{i}" for i in range(1, CORES))]
        return {name: core.half() for name, core in zip(names, cores, strict=True)} | {"bias": bias}, {"rank": rank}


def _axes(length: int) -> list[int]:
    """Three axes of about the same length whose product is at least a length."""
    first = math.ceil(length ** (1 / CORES))
    second = math.ceil(math.sqrt(length / first))
    return [first, second, math.ceil(length / (first * second))]


def _factors(length: int) -> list[int]:
    """Three factors of a length, as equal as there are, in rising order."""
    divisors = [divisor for divisor in range(1, length + 1) if length % divisor == 0]
    triples = [(a, b, length // (a * b)) for a in divisors for b in divisors if length % (a * b) == 0]
    return sorted(min(triples, key=lambda triple: (max(triple) / min(triple), triple)))
