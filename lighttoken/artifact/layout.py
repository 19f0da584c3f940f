"""The layout of a form: which tensors there are, of which types and shapes. Checked before anything is computed."""

from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Shape = tuple[int, ...]
Types = tuple[torch.dtype, ...]
Layout = dict[str, tuple[Shape, Types]]

BYTES: Types = (torch.uint8,)
INT8: Types = (torch.int8,)
SCALES: Types = (torch.float32,)
HALVES: Types = (torch.float16,)
FLOATS: Types = (torch.float32, torch.float16)
MAX_FLOAT = 1e16  # of a stored number; products of two of them, summed, stay finite
MAX_VALUE = 1e12  # of a table that is compressed; what is stored of it stays well below `MAX_FLOAT`


def shape_of(tensors: Tensors, name: str, axes: int) -> Shape:
    """The shape of a tensor. Raises ValueError if it is not there or has another number of axes."""
    if name not in tensors:
        raise ValueError(f"no tensor {name!r}")
    shape = tuple(tensors[name].shape)
    if len(shape) != axes:
        raise ValueError(f"{name} has shape {shape} instead of {axes} axes")
    return shape


def matrix_layout(
    tensors: Tensors, name: str, rows: int, columns: int, scales: tuple[int, int] | None = None
) -> Layout:
    """Layout of a matrix as `packing.quantize` stores it: int4 two to a byte, integers with a scale per row."""
    shape_of(tensors, name, 2)
    dtype = tensors[name].dtype
    if dtype not in (torch.int8, torch.uint8):
        return {name: ((rows, columns), FLOATS)}
    width = -(-columns // 2) if dtype == torch.uint8 else columns
    return {name: ((rows, width), (dtype,)), f"{name}.scale": (scales or (rows, 1), SCALES)}


def bias_layout(tensors: Tensors, dim: int) -> Layout:
    """Layout of the bias: a vector of floats, or a matrix of one row of integers."""
    if "bias" in tensors and tensors["bias"].ndim == 1:
        return {"bias": ((dim,), FLOATS)}
    return matrix_layout(tensors, "bias", 1, dim)


def check_layout(tensors: Tensors, layout: Layout) -> None:
    """Raise ValueError, which names the first of them, if a tensor is missing, too many, or of another type or shape.

    Reads no numbers: tensors on the meta device can be checked.
    """
    for name in sorted(layout.keys() | tensors.keys()):
        if name not in tensors:
            raise ValueError(f"no tensor {name!r}")
        if name not in layout:
            raise ValueError(f"{name!r} is a tensor that this form does not have")
        (shape, types), tensor = layout[name], tensors[name]
        if tensor.dtype not in types:
            expected = " or ".join(_name(dtype) for dtype in types)
            raise ValueError(f"{name} has type {_name(tensor.dtype)} instead of {expected}")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} instead of {shape}")


def check_finite(tensors: Tensors) -> None:
    """Raise ValueError, which names the tensor, if a float is NaN, infinite or above `MAX_FLOAT`. Takes no memory."""
    for name, tensor in sorted(tensors.items()):
        if tensor.is_floating_point() and tensor.numel():
            smallest, largest = tensor.aminmax()  # NaN if there is one
            if not (smallest.isfinite() and largest.isfinite()):
                raise ValueError(f"{name} has NaN or infinite values")
            if (highest := max(-float(smallest), float(largest))) > MAX_FLOAT:
                raise ValueError(f"{name} has values up to {highest:g} instead of at most {MAX_FLOAT:g}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
