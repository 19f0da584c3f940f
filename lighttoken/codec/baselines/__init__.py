"""What other methods do with the same bytes: one per file, all behind `codec=NAME`, all writing the same artifact.

A baseline fills its share of the bytes with the largest size of itself that fits, and is stored as sparingly as its
form allows: float16 codebooks, factors in integers, packed words. It minimises the error of its paper, over all rows
alike, unless its docstring says otherwise.
"""

import importlib.util

import torch
from jaxtyping import Float, Float16
from torch import Tensor

from lighttoken.artifact.form import Form
from lighttoken.codec.interface import Importance
from lighttoken.codec.metric_roots import metric_roots
from lighttoken.codec.shapes import Table
from lighttoken.errors import LighttokenError

ROWS_PER_CHUNK = 4096


def mean_row(table: Float[Tensor, "V d"], weights: Float[Tensor, " V"] | None = None) -> Float16[Tensor, " d"]:
    """The mean of the rows of a table, all alike or under weights, which is a baseline's bias."""
    mean = table.mean(0) if weights is None else weights @ table / weights.sum()
    return mean.half()


def squared_error(form: Form, table: Table, tensors: dict[str, Tensor], importance: Importance) -> float:
    """Of the rows that the tensors of a form decode to, under row weights and error metric."""
    total, root = 0.0, metric_roots(importance.error_metric, table.shape[1])[0].float()
    for ids in torch.arange(len(table)).split(ROWS_PER_CHUNK):
        errors = ((form.read(ids, tensors, table.shape[1]) - table[ids]) @ root).square()
        total += float((errors * importance.weights[ids].unsqueeze(1)).sum())
    return total


def need(package: str, extra: str = "baselines") -> None:
    """Raise LighttokenError, with the command that installs it, if a package is not there."""
    if importlib.util.find_spec(package) is None:
        raise LighttokenError(f"{package} is not installed; run pip install 'lighttoken[{extra}]'")
