"""What `compress_table` is given, checked; and the arithmetic that codecs run in."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from lighttoken.artifact.description import MAX_ROWS
from lighttoken.codec.interface import Importance
from lighttoken.errors import LighttokenError


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """Inside, tensors are float32, on the CPU and with gradients by default, whatever the caller has switched on."""
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


def check_ratio(ratio: Any) -> float:
    """The ratio as a float. Raises LighttokenError unless it is a number above 1."""
    if not (isinstance(ratio, Real) and math.isfinite(ratio) and float(ratio) > 1):
        raise LighttokenError(f"ratio {ratio!r} does not compress: it must be a number above 1, for example ratio=25")
    return float(ratio)


def check_seed(seed: int) -> int:
    """The seed. Raises LighttokenError unless every library can take it."""
    if not 0 <= seed < 2**32:
        raise LighttokenError(f"seed is {seed}; it must be 0 or above, and below 2^32")
    return seed


def check_table(table: Any) -> Float32[Tensor, "V d"]:
    """The table in float32 on the CPU, dense. Raises LighttokenError unless it is a matrix of finite numbers.

    It has at most `MAX_ROWS` rows and columns. Of a model it is the weight of the input embedding.
    """
    module = table.get_input_embeddings() if hasattr(table, "get_input_embeddings") else table
    table = _tensor(module.weight if isinstance(module, torch.nn.Embedding) else module, "a table")
    if table.ndim != 2 or 0 in table.shape or not table.is_floating_point():
        raise LighttokenError(
            f"a table is a float matrix (V, d), got {table.dtype} of shape {tuple(table.shape)}; "
            "pass model.get_input_embeddings().weight"
        )
    if max(table.shape) > MAX_ROWS:  # else an artifact is written that no reader takes
        raise LighttokenError(
            f"a table has at most {MAX_ROWS} rows and columns, got shape {tuple(table.shape)}; compress it in parts"
        )
    given = table.detach().cpu()
    given = given if given.dtype == torch.float64 else given.float()
    table = given.float().contiguous()
    table = table.clone() if table.is_inference() else table  # autograd cannot record inference tensors
    # By the bounds of the rows, as isfinite() and abs() would make a table more.
    bad_rows = (~torch.stack(table.aminmax(dim=1)).isfinite()).any(0).nonzero().flatten()
    if len(bad_rows) and bool(given.isfinite().all()):
        raise LighttokenError(
            f"the table has values up to {float(given.abs().max()):g}, beyond what float32 holds; scale the table down"
        )
    if len(bad_rows):
        raise LighttokenError(
            f"the table has NaN or infinite values in {len(bad_rows)} of {len(table)} rows, the first in row "
            f"{int(bad_rows[0])}; repair the checkpoint before compressing it"
        )
    peak = float(torch.stack(given.aminmax()).abs().max())
    if 0 < peak < torch.finfo(torch.float32).tiny:
        raise LighttokenError(
            f"the table has values up to {peak:g} only, too small for float32 to keep their digits; scale the table up"
        )
    return table


def check_importance(weights: Any, importance: Importance | None, table: Float32[Tensor, "V d"]) -> Importance:
    """Row weights of mean 1, the error metric in float64, and settings that say where the two are from.

    Raises LighttokenError for weights or an error metric that do not fit the table, and if both arguments have weights.
    """
    if importance is not None and weights is not None:
        raise LighttokenError("weights and importance both say how much rows matter; pass one of the two")
    if importance is None:
        importance = Importance(torch.ones(len(table)) if weights is None else weights)
    checked_weights = _check_weights(importance.weights, len(table))
    error_metric = _check_error_metric(importance.error_metric, table.shape[1])
    if importance.relations is not None and importance.relations.shape != (len(table),):
        raise LighttokenError(
            f"relations have shape {tuple(importance.relations.shape)} and the table {len(table)} rows; measure the "
            "importance with the tokenizer of this table"
        )
    settings = importance.settings or {
        "prior": "given" if bool((checked_weights != 1).any()) else "uniform",
        "error_metric": "euclidean" if error_metric is None else "given",
    }
    return Importance(checked_weights, error_metric, dict(settings), importance.relations)


def _check_weights(weights: Any, rows: int) -> Float32[Tensor, " V"]:
    weights = _tensor(weights, "weights")
    if weights.shape != (rows,):
        raise LighttokenError(f"weights have shape {tuple(weights.shape)} and the table {rows} rows; pass one per row")
    if weights.is_complex():
        raise LighttokenError(f"weights must be positive numbers, got {weights.dtype}; pass their absolute values")
    if not bool((weights.isfinite() & (weights > 0)).all()):
        raise LighttokenError(
            f"weights must be positive numbers, got a minimum of {float(weights.min()):g}; give other rows a small one"
        )
    # By a power of two first, which changes no digit: float32 may hold neither the weights nor their sum.
    weights = weights.cpu().double()
    weights = (weights * 2.0 ** -math.frexp(float(weights.max()))[1]).float().clamp_min(torch.finfo(torch.float32).tiny)
    return weights / weights.mean()


def _check_error_metric(error_metric: Any, dim: int) -> Tensor | None:
    if error_metric is None:
        return None
    error_metric = _tensor(error_metric, "an error metric")
    if error_metric.shape != (dim, dim):
        raise LighttokenError(
            f"the error metric has shape {tuple(error_metric.shape)}, a table of width {dim} needs ({dim}, {dim})"
        )
    error_metric = error_metric.double().cpu()
    if not bool(error_metric.isfinite().all()):
        raise LighttokenError("the error metric has NaN or infinite values; pass None for the Euclidean distance")
    if not torch.allclose(error_metric, error_metric.T, rtol=1e-4, atol=1e-6 * float(error_metric.abs().max())):
        raise LighttokenError("the error metric is not symmetric; pass (error_metric + error_metric.T) / 2")
    if not float(error_metric.trace()) > 0:
        raise LighttokenError(
            f"the error metric has a trace of {float(error_metric.trace()):g}, so no error is one; pass None for the "
            "Euclidean distance"
        )
    return error_metric


def _tensor(values: Any, name: str) -> Tensor:
    try:
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LighttokenError(f"{name} of type {type(values).__name__} is no tensor; pass a torch.Tensor") from error
    if tensor.is_meta:
        raise LighttokenError(f"{name} on the meta device has no numbers; load the checkpoint's weights first")
    if tensor.is_nested or tensor.is_quantized:
        kind = "nested" if tensor.is_nested else "quantized"
        raise LighttokenError(f"{name} is a {kind} tensor; pass a plain one of floats, as dequantize() makes it")
    return (tensor if tensor.layout == torch.strided else tensor.to_dense()).detach()
