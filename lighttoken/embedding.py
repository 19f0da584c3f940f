"""CompressedEmbedding: looks rows up straight from codes and factors."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lighttoken.artifact import CompressedTable, decode_rows
from lighttoken.errors import LighttokenError

Trainable = Literal["frozen", "decoder", "decoder+factors"]


class CompressedEmbedding(nn.Module):
    """Stands in for an `nn.Embedding` (V, d); memory is that of the codes plus float32 factors and decoder.

    The codes never change. Gradients reach the decoder, the bias, the factors and gains, as `set_trainable` says.
    Repeated ids of a batch are decoded once.
    """

    decoder: Tensor
    bias: Tensor

    def __init__(self, compressed: CompressedTable, padding_idx: int | None = None, scale: float = 1.0):
        """`padding_idx` is the id whose row sends no gradient back; `scale` multiplies all rows."""
        super().__init__()
        parts = compressed.parts()
        self._parts = tuple(parts)
        self.num_embeddings, self.embedding_dim = compressed.shape
        self.padding_idx, self.scale, self.ratio = padding_idx, scale, compressed.ratio
        self.bits_per_row = 8 * compressed.tensors["codes"].numel() / compressed.shape[0]
        for name, tensor in parts.items():
            if tensor.is_floating_point() and name != "book":
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)
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
            return decode_rows(ids, {name: getattr(self, name) for name in self._parts})

    @property
    def weight(self) -> Tensor:
        """The whole table (V, d), unscaled, decoded on each access; for code that asks an embedding for its weight."""
        return self._rows(torch.arange(self.num_embeddings, device=self.decoder.device))

    def extra_repr(self) -> str:
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, ratio={self.ratio:.1f}, bits_per_row={self.bits_per_row:.1f}"
        )


def set_trainable(embedding: nn.Module, trainable: Trainable) -> None:
    """Choose what fine-tuning may change of an embedding, compressed or not.

    `frozen`: nothing; `decoder`: the decoder and its bias; `decoder+factors`: the rank-k factors, or the trellis
    code's gains, too. A dense
    embedding has a single weight: frozen under `frozen`, trained under the other two. Raises LighttokenError otherwise.
    """
    if trainable not in get_args(Trainable):
        raise LighttokenError(f"unknown trainable={trainable!r}; choose one of {', '.join(get_args(Trainable))}")
    for name, parameter in embedding.named_parameters():
        is_factor = name in ("left", "right", "gain")
        parameter.requires_grad = trainable == "decoder+factors" or (trainable == "decoder" and not is_factor)
