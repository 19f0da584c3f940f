"""What other methods do with the same bytes: one per file, all behind `codec=NAME`, all writing the same artifact.

A baseline fills its share of the bytes with the largest size of itself that fits, and is stored as sparingly as its
form allows: float16 codebooks and factors, packed words. It minimises the error of its paper, over all rows alike,
unless its docstring says otherwise.
"""

import importlib.util

from jaxtyping import Float, Float16
from torch import Tensor

from lighttoken.errors import LighttokenError


def mean_row(table: Float[Tensor, "V d"], weights: Float[Tensor, " V"] | None = None) -> Float16[Tensor, " d"]:
    """The mean of the rows of a table, all alike or under weights, which is a baseline's bias."""
    mean = table.mean(0) if weights is None else weights @ table / weights.sum()
    return mean.half()


def need(package: str, extra: str = "baselines") -> None:
    """Raise LighttokenError, with the command that installs it, if a package is not there."""
    if importlib.util.find_spec(package) is None:
        raise LighttokenError(f"{package} is not installed; run pip install 'lighttoken[{extra}]'")
