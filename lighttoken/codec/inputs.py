"""What a codec is given, checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lighttoken.errors import LighttokenError

if TYPE_CHECKING:
    pass


@contextmanager
def _plain_arithmetic() -> Iterator[None]:
    """Float32 on the CPU with gradients, unless told otherwise, whatever the code around has switched on or off."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.device("cpu"),
        ):
            yield
    finally:
        torch.set_default_dtype(default)


def _tensor(values: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LighttokenError(f"{name} of type {type(values).__name__} is no tensor; pass a torch.Tensor") from error


def _checked_table(table: Any) -> Tensor:
    table = _tensor(table, "a table")
    if table.ndim != 2 or 0 in table.shape or not table.is_floating_point():
        raise LighttokenError(
            f"a table is a float matrix (V, d), got {table.dtype} of shape {tuple(table.shape)}; "
            "pass model.get_input_embeddings().weight"
        )
    table = table.detach().float().cpu()
    table = table.clone() if table.is_inference() else table  # else nothing that is trained could see it
    bad_rows = (~table.isfinite()).any(1).nonzero().flatten()
    if len(bad_rows):
        raise LighttokenError(
            f"the table has NaN or infinite values in {len(bad_rows)} of {len(table)} rows, the first in row "
            f"{int(bad_rows[0])}; repair the checkpoint before compressing it"
        )
    return table


def _checked_metric(metric: Any, dim: int) -> Tensor | None:
    if metric is None:
        return None
    metric = _tensor(metric, "a metric")
    if metric.shape != (dim, dim):
        raise LighttokenError(
            f"the metric has shape {tuple(metric.shape)}, a table of width {dim} needs ({dim}, {dim})"
        )
    metric = metric.double().cpu()
    if not bool(metric.isfinite().all()):
        raise LighttokenError("the metric has NaN or infinite values; pass None for the Euclidean distance")
    if not torch.allclose(metric, metric.T, rtol=1e-4, atol=1e-6 * float(metric.abs().max())):
        raise LighttokenError("the metric is not symmetric; pass (metric + metric.T) / 2")
    if not float(torch.linalg.eigvalsh(metric)[-1]) > 0:
        raise LighttokenError("the metric has no positive eigenvalue; pass None for the Euclidean distance")
    return metric


def _checked_weights(weights: Any, rows: int) -> Tensor:
    if weights is None:
        return torch.ones(rows)
    weights = _tensor(weights, "weights")
    if weights.shape != (rows,):
        raise LighttokenError(f"weights have shape {tuple(weights.shape)} and the table {rows} rows; pass one per row")
    if not bool((weights.isfinite() & (weights > 0)).all()):
        raise LighttokenError(f"weights must be positive numbers, got a minimum of {float(weights.min()):g}")
    return weights.float().cpu() / weights.float().mean().cpu()
