"""What other methods do with the same bytes: one per file, all behind `codec=NAME`, all writing the same artifact.

A baseline fills its share of the bytes with the largest size of itself that fits, and is stored as sparingly as its
form allows: float16 codebooks and factors, packed words. It minimises the error its paper does, over all rows alike,
unless its docstring says otherwise.
"""

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from lighttoken.artifact.table import CompressedTable
from lighttoken.codec.loss import table_errors
from lighttoken.codec.prior import Prior
from lighttoken.errors import LighttokenError

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

DESCRIPTION = 1200  # bytes that summary and header of the tensors may take; checked on what is written
Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Baseline(Prior):
    """What baselines share: a name, settings as plain JSON values, and the frame of `compress`."""

    name: str = ""

    def settings(self) -> dict[str, Any]:
        """All settings of the compression itself as plain JSON values."""
        elsewhere = {"name", *(entry.name for entry in fields(Prior))}
        return {name: value for name, value in asdict(self).items() if name not in elsewhere}

    def compress(
        self,
        table: Tensor,
        weights: Tensor,
        metric: Tensor | None,
        ratio: float,
        empty: CompressedTable,
        progress: bool,
        loggers: "Sequence[Logger]",
    ) -> CompressedTable:
        """Compress a table (V, d) under row weights (V,); `empty` is the result but for its tensors and summary.

        No baseline knows a metric but the Euclidean one. Raises LighttokenError if the ratio is out of reach.
        """
        budget = int(table.numel() * 4 / ratio) - empty.nbytes - DESCRIPTION
        tensors, told = self.fit(table, weights, Budget(self.name, budget, ratio, table.shape), progress)
        compressed = replace(empty, tensors={name: tensor.contiguous() for name, tensor in tensors.items()})
        return replace(compressed, summary=told | table_errors(table, compressed.decode(), weights))

    def fit(
        self, table: Tensor, weights: Tensor, budget: "Budget", progress: bool
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors, of at most the bytes of the budget, and what the summary tells of their making."""
        raise NotImplementedError


@dataclass(frozen=True)
class Budget:
    """The bytes that tensors may take, and what to say where that is too little."""

    codec: str
    nbytes: int
    ratio: float
    shape: Sequence[int]  # (V, d)

    def largest(self, options: Iterable[tuple[Choice, int]]) -> Choice:
        """The option of the most bytes that fits. Raises LighttokenError, with the ratio in reach, if none does."""
        sizes = list(options)
        fitting = [(nbytes, i) for i, (_, nbytes) in enumerate(sizes) if nbytes <= self.nbytes]
        if fitting:
            return sizes[max(fitting)[1]][0]
        table = self.shape[0] * self.shape[1] * 4
        least = min((nbytes for _, nbytes in sizes), default=table) + int(table / self.ratio) - self.nbytes
        raise LighttokenError(
            f"ratio {self.ratio:g} cannot be met: {self.codec} reaches up to {int(10 * table / least) / 10:g} on a "
            f"table of shape {tuple(self.shape)}; choose a smaller one"
        )


def mean_row(table: Tensor, weights: Tensor) -> Tensor:
    """The mean (d,) float16 of the rows of a table (V, d) under weights (V,), which is a baseline's bias.

    Raises LighttokenError if float16 cannot hold it.
    """
    mean = weights @ table / weights.sum()
    if not bool(mean.half().isfinite().all()):
        raise LighttokenError(
            f"the mean row, up to {float(mean.abs().max()):g}, overflows float16; scale the table down"
        )
    return mean.half()


def need(package: str, extra: str = "baselines") -> None:
    """Raise LighttokenError, with what installs it, if a package is not there."""
    if importlib.util.find_spec(package) is None:
        raise LighttokenError(f"{package} is not installed; run pip install 'lighttoken[{extra}]'")
