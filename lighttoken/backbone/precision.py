"""The precision of the model weights around the token embedding."""

import importlib.util
from typing import Literal, get_args

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lighttoken.backbone.storage import Storage
from lighttoken.errors import LighttokenError

BackbonePrecision = Literal["float32", "float16", "bfloat16", "int8"]


def check_precision(precision: str) -> None:
    """Raise LighttokenError for a precision that `reduce_precision` does not know or cannot make here."""
    if precision not in get_args(BackbonePrecision):
        choices = ", ".join(get_args(BackbonePrecision))
        raise LighttokenError(f"unknown backbone_precision={precision!r}; choose one of {choices}")
    if precision == "int8" and importlib.util.find_spec("torchao") is None:
        raise LighttokenError("backbone_precision=int8 needs torchao; run pip install 'lighttoken[int8]'")


def reduce_precision(model: nn.Module, precision: BackbonePrecision) -> None:
    """Store the weights around the token embedding in a smaller precision, in place.

    `float16` and `bfloat16` cast them, as `from_pretrained(dtype=...)` does, and the rows that a compressed table
    decodes to. `int8` quantizes the linear layers, weights by output channel and activations by token as they come
    (torchao), not the rest. Raises LighttokenError as `check_precision` does.
    """
    check_precision(precision)
    if precision == "int8":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig())
    else:
        _cast(model, getattr(torch, precision))


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast a model, but for what a checkpoint does not hold, such as rotary frequencies, whose rounding would grow with
    the position, and for the modules that its class keeps in float32.
    """
    names = {*(getattr(model, "_keep_in_fp32_modules_strict", None) or ())}
    if dtype == torch.float16:
        names |= {*(getattr(model, "_keep_in_fp32_modules", None) or ())}
    modules = [module for name, module in model.named_modules() if name.rpartition(".")[2] in names]
    parameters = [(parameter, parameter.data) for module in modules for parameter in module.parameters()]
    buffers = [
        (module, name, buffer)
        for module in model.modules()
        if not isinstance(module, Storage)  # of a compressed table, which gives rows in the new precision
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set
    ]
    model.to(dtype)
    for parameter, data in parameters:
        parameter.data = data
    for module, name, buffer in buffers:
        module._buffers[name] = buffer


def model_bytes(model: nn.Module) -> int:
    """Bytes of all tensors in a checkpoint of the model; a quantized weight counts with all its parts."""
    state = model.state_dict(keep_vars=True).items()
    tensors = {id(tensor): tensor for name, tensor in state if ".trained." not in name}  # a tied tensor counts once
    total = 0
    for tensor in tensors.values():
        parts = [tensor]
        if is_traceable_wrapper_subclass(tensor):
            parts = [getattr(tensor, part) for part in tensor.__tensor_flatten__()[0]]
        total += sum(part.numel() * part.element_size() for part in parts)
    return total
