"""What every form is: how rows are read from stored tensors, and how their layout is checked."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lighttoken.artifact.layout import Layout, Tensors
from lighttoken.artifact.packing import dequantize

INDEX = "index."  # prefix of what `index` adds to the stored tensors


@dataclass(frozen=True)
class Form:
    """One form. Fields are what a reader must know besides the tensors; the artifact's JSON holds them."""

    name: ClassVar[str]
    required: ClassVar[tuple[str, ...]]  # tensors that every table of the form has
    shared: ClassVar[tuple[str, ...]]  # matrices that all rows share: fine-tuning may train them as the decoder
    factors: ClassVar[tuple[str, ...]] = ()  # the other matrices that it may train
    scaled: ClassVar[tuple[str, ...]]  # matrices that, like the bias, are in the units of the table

    def describe(self) -> dict[str, Any]:
        """Name and fields, as plain JSON values: the input of `make_form`."""
        return {"name": self.name} | asdict(self)

    def layout(self, tensors: Tensors, vocab_size: int, dim: int) -> Layout:
        """The types and the shape that every tensor must have, from the types and shapes that they have.

        Raises ValueError if the tensors contradict each other.
        """
        raise NotImplementedError

    def check(self, tensors: Tensors, vocab_size: int, dim: int) -> None:
        """Raise ValueError if tensors of the right layout have a content that no table has."""

    def index(self, tensors: Tensors, vocab_size: int, dim: int) -> dict[str, Tensor]:
        """Tensors that `read` needs besides the stored ones and that follow from them; names start with `INDEX`."""
        return {}

    def read(self, ids: Int64[Tensor, " n"], tensors: Tensors, dim: int) -> Float[Tensor, "n d"]:
        """Rows of ids, from the stored tensors and those of `index`; differentiable in all float matrices."""
        raise NotImplementedError

    def projection(
        self, vectors: Float[Tensor, "N d"], tensors: Tensors, dim: int
    ) -> Callable[[Int64[Tensor, " n"]], Float[Tensor, "N n"]]:
        """A function of ids that returns the products of the vectors with the rows of the ids."""
        return lambda ids: vectors @ self.read(ids, tensors, dim).T


class LinearForm(Form):
    """A row is its coordinates times a basis that all rows share, plus the bias."""

    def basis(self, tensors: Tensors, dim: int) -> Float[Tensor, "m d"]:
        """What the coordinates are multiplied by."""
        return read_matrix(tensors, "decoder", dim)

    def coordinates(self, ids: Int64[Tensor, " n"], tensors: Tensors) -> Float[Tensor, "n m"]:
        """A number for each row of the basis."""
        raise NotImplementedError

    def read(self, ids: Int64[Tensor, " n"], tensors: Tensors, dim: int) -> Float[Tensor, "n d"]:
        return torch.addmm(read_bias(tensors, dim), self.coordinates(ids, tensors), self.basis(tensors, dim))

    def projection(
        self, vectors: Float[Tensor, "N d"], tensors: Tensors, dim: int
    ) -> Callable[[Int64[Tensor, " n"]], Float[Tensor, "N n"]]:
        """No row is decoded: the vectors are brought to the basis once and multiplied with the coordinates."""
        basis = torch.cat([self.basis(tensors, dim), read_bias(tensors, dim).unsqueeze(0)])
        projected = vectors @ basis.T
        return self.products(projected[:, :-1], projected[:, -1:], tensors)

    def products(
        self, vectors: Float[Tensor, "N m"], offsets: Float[Tensor, "N 1"], tensors: Tensors
    ) -> Callable[[Int64[Tensor, " n"]], Float[Tensor, "N n"]]:
        """A function of ids that returns offsets plus products of the vectors with the coordinates of the ids."""
        return lambda ids: torch.addmm(offsets, vectors, self.coordinates(ids, tensors).T)


def read_matrix(tensors: Tensors, name: str, columns: int) -> Float[Tensor, "*rows columns"]:
    """A stored matrix in float32."""
    return dequantize(tensors[name], tensors.get(f"{name}.scale"), columns)


def read_bias(tensors: Tensors, dim: int) -> Float[Tensor, " d"]:
    """The bias in float32."""
    return read_matrix(tensors, "bias", dim).view(-1)
