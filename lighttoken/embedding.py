"""CompressedEmbedding: looks rows up straight from codes and factors."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lighttoken.artifact import CompressedTable, decode_rows
from lighttoken.errors import LighttokenError

Trainable = Literal["frozen", "decoder", "decoder+factors"]


class CompressedEmbedding(nn.Module):
    """Stands in for an `nn.Embedding` (V, d); memory is that of the codes plus float32 factors and decoder.

    The codes never change. Gradients reach `decoder` and `bias`, and `left` and `right`, as `set_trainable` says.
    Repeated ids of a batch are decoded once.
    """

    codes: Tensor
    left: Tensor
    right: Tensor
    decoder: Tensor
    bias: Tensor

    def __init__(self, compressed: CompressedTable, padding_idx: int | None = None, scale: float = 1.0):
        """`padding_idx` is the id whose row sends no gradient back; `scale` multiplies all rows."""
        super().__init__()
        parts = compressed.parts()
        self.num_embeddings, self.embedding_dim = compressed.shape
        self.padding_idx, self.scale, self.ratio = padding_idx, scale, compressed.ratio
        self.register_buffer("codes", parts["codes"])
        for name in ("left", "right", "decoder", "bias"):
            self.register_parameter(name, nn.Parameter(parts[name]))
        set_trainable(self, "frozen")

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (*ids.shape, d) of ids of any shape."""
        unique, positions = ids.unique(return_inverse=True)
        rows = self._rows(unique)
        if self.padding_idx is not None:
            rows = torch.where((unique == self.padding_idx).unsqueeze(1), rows.detach(), rows)
        return nn.functional.embedding(positions, rows * self.scale)

    def _rows(self, ids: Tensor) -> Tensor:
        # Autocast does not round the rows of a dense embedding either.
        with torch.autocast(ids.device.type, enabled=False):
            return decode_rows(ids, self.codes, self.left, self.right, self.decoder, self.bias)

    @property
    def weight(self) -> Tensor:
        """The whole table (V, d), unscaled, decoded on each access; for code that asks an embedding for its weight."""
        return self._rows(torch.arange(self.num_embeddings, device=self.codes.device))

    def extra_repr(self) -> str:
        rank, bits = self.left.shape[1], self.decoder.shape[0]
        return f"{self.num_embeddings}, {self.embedding_dim}, rank={rank}, bits={bits}, ratio={self.ratio:.1f}"


def set_trainable(embedding: nn.Module, trainable: Trainable) -> None:
    """Choose what fine-tuning may change of an embedding, compressed or not.

    `frozen`: nothing; `decoder`: the decoder and its bias; `decoder+factors`: the rank-k factors too. A dense
    embedding has a single weight: frozen under `frozen`, trained under the other two. Raises LighttokenError otherwise.
    """
    if trainable not in get_args(Trainable):
        raise LighttokenError(f"unknown trainable={trainable!r}; choose one of {', '.join(get_args(Trainable))}")
    for name, parameter in embedding.named_parameters():
        is_factor = name in ("left", "right")
        parameter.requires_grad = trainable == "decoder+factors" or (trainable == "decoder" and not is_factor)
