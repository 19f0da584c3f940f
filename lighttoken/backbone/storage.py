"""The tensors of a compressed table inside a module: stored without rounding, and trained on top of that."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lighttoken.artifact.packing import Stored, precision_of, quantize, rounded
from lighttoken.artifact.table import CompressedTable

# Floats are stored as integers of the same bits: a model's .half(), or a loader's dtype, must not round them.
# Halves as bytes: torch.distributed cannot send int16.
_SAME_BITS = {torch.float32: torch.int32, torch.float16: torch.uint8}


class Storage(nn.Module):
    """A module that holds the tensors of a compressed table as buffers.

    Every stored tensor is a persistent buffer under its own name, with dots as underscores; the form's index follows
    from them and is not saved. `like` (0,) has the device and the precision of the model.
    """

    codes: Tensor
    like: Tensor

    def __init__(self, compressed: CompressedTable):
        super().__init__()
        self.description = replace(compressed, tensors={})
        self._stored_as = {name: (tensor.dtype, tensor.shape) for name, tensor in compressed.tensors.items()}
        for name, tensor in compressed.tensors.items():
            self.register_buffer(buffer_name(name), as_integers(name, tensor).clone())
        self.register_buffer("like", torch.empty(0), persistent=False)
        self._index: tuple[str, ...] = ()
        self._stored = self.views()

    def store(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace stored tensors; deflated ones may have another length than before."""
        for name, tensor in tensors.items():
            self._stored_as[name] = (tensor.dtype, tensor.shape)
            setattr(self, buffer_name(name), as_integers(name, tensor).to(self.codes.device).clone())
        self._stored = self.views()

    def views(self) -> dict[str, Tensor]:
        """The stored tensors in their own types and shapes, without a copy."""
        buffers = {name: getattr(self, buffer_name(name)) for name in self._stored_as}
        return {name: buffers[name].view(dtype).view(shape) for name, (dtype, shape) in self._stored_as.items()}

    def make_index(self) -> None:
        """Make the form's index again: to be called when the stored tensors have been filled in."""
        self._stored = self.views()
        index = replace(self.description, tensors=self._stored).index
        for name, tensor in index.items():
            self.register_buffer(buffer_name(name), tensor.to(self.codes.device), persistent=False)
        self._index = tuple(index)

    def stored_tensors(self) -> dict[str, Tensor]:
        """What the form reads rows from: the stored tensors and the index."""
        # While a graph is exported, views that were made before: ONNX has no operator for a view of another type.
        tensors = dict(self._stored) if is_graph() else self.views()
        return tensors | {name: getattr(self, buffer_name(name)) for name in self._index}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Storage":
        index = {name: getattr(self, name) for name in map(buffer_name, self._index)}
        super()._apply(fn, recurse)
        for name, tensor in index.items():
            if tensor.is_floating_point():  # the codebook, which no cast may round either
                setattr(self, name, tensor.to(self.codes.device))
        self._stored = self.views()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_stored": {}}  # torch.save refuses two views of the same bytes

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._stored = self.views()


class Overlay(nn.ParameterDict):
    """Float32 copies of stored matrices, by name, that fine-tuning trains.

    The forward pass rounds them to the stored precision (straight-through), so that storing them loses nothing. No
    cast of the model rounds the copies.
    """

    def over(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The stored tensors with the trained matrices in place, as floats with gradients."""
        tensors = dict(stored)
        for name, matrix in self.items():
            values = matrix.detach().float()
            as_stored = rounded(*self._like(values, name, stored)).view_as(values)
            tensors[name] = matrix.float() + (as_stored - values)
            tensors.pop(f"{name}.scale", None)
        return tensors

    def into(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The stored tensors with the trained matrices in place, in the stored types; deflated, of other bytes."""
        tensors = dict(stored)
        for name, matrix in self.items():
            values, precision, scale = self._like(matrix.detach().float(), name, stored)
            levels, _ = quantize(values, precision, scale=scale)
            tensors[name] = levels if precision == "deflated" else levels.view_as(stored[name])
        return tensors

    def _like(self, matrix: Tensor, name: str, stored: Mapping[str, Tensor]) -> tuple[Tensor, Stored, Tensor | None]:
        """A trained matrix, and the precision and the scale of the stored one."""
        return matrix.view(-1, matrix.shape[-1]), precision_of(stored[name]), stored.get(f"{name}.scale")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Overlay":
        copies = {name: matrix.data for name, matrix in self.items()}
        super()._apply(fn, recurse)
        for name, matrix in self.items():
            matrix.data = copies[name].to(matrix.device)
        return self


def is_graph() -> bool:
    """Whether a graph is being made, in which no size may depend on numbers: torch.compile, export and jit.trace."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def buffer_name(name: str) -> str:
    """The name of a buffer, which may have no dots."""
    return name.replace(".", "_")


def as_integers(name: str, tensor: Tensor) -> Tensor:
    """A stored tensor as a buffer of integers; codes flat, so that they never have the shape of the dense weight."""
    integers = tensor.contiguous().view(_SAME_BITS.get(tensor.dtype, tensor.dtype))
    return integers.flatten() if name == "codes" else integers
