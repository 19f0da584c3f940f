"""CompressedEmbedding: looks rows up in a compressed table; CompressedHead: logits over its rows."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lighttoken.artifact.compiled import FEW_VECTORS
from lighttoken.artifact.table import ROWS_PER_CHUNK, CompressedTable
from lighttoken.backbone.cache import RowCache
from lighttoken.backbone.storage import Overlay, Storage, is_graph
from lighttoken.errors import LighttokenError

Trainable = Literal["frozen", "decoder", "decoder+factors"]
Mode = Literal["packed", "cached", "materialized", "int8"]
Tie = Literal["compressed", "untie"]
CACHE_MEGABYTES = 64.0
INT8_LEVELS = 127
ROWS_FOR_FEW_VECTORS = 2**14  # in a chunk: where products are compiled, threads are started for every chunk
UNTRAINED = (
    "call lighttoken.set_trainable(embedding, 'decoder') first, or leave it out, for example out of PEFT's "
    "modules_to_save"
)


class CompressedEmbedding(Storage):
    """Stands in for an `nn.Embedding` (V, d).

    `packed`: memory is that of the artifact; a call decodes the rows of its ids, repeated ids once. `cached`: decoded
    rows are kept, up to some memory. `materialized`: the whole table is decoded once, for the speed and the memory of a
    dense one; `int8`: likewise, with a byte for a number and a scale for a row. Rows are decoded in float32 and
    returned in the precision of the model.

    The codes never change. `set_trainable` chooses what fine-tuning changes: the matrices in `trained`.
    """

    table: Tensor | None  # (V, d): decoded, in the precision of the model or in int8
    table_scale: Tensor | None  # (V, 1): of int8
    cache: RowCache | None = None

    def __init__(
        self,
        compressed: CompressedTable,
        padding_idx: int | None = None,
        scale: float = 1.0,
        round_scale: bool = False,
        mode: Mode = "packed",
    ):
        """The row of `padding_idx` sends no gradient back.

        `scale` multiplies all rows; with `round_scale` it takes the precision of the model first, as Gemma's does.
        """
        super().__init__(compressed)
        self.num_embeddings, self.embedding_dim = compressed.shape
        if padding_idx is not None and padding_idx < 0:  # counted from the end, as in nn.Embedding
            padding_idx += self.num_embeddings
        self.padding_idx, self.scale, self.round_scale = padding_idx, scale, round_scale
        self.trained = Overlay()
        self.mode: Mode | str = mode
        self.megabytes = CACHE_MEGABYTES
        self._prepared = False
        self.prepare()
        self.register_load_state_dict_post_hook(_prepare)

    def prepare(self) -> None:
        """Make everything that follows from the stored tensors: to be called when they have been filled in."""
        if self.codes.is_meta:
            return
        self.make_index()
        self._prepared = True
        self.set_mode(self.mode, self.megabytes)

    def set_mode(self, mode: Mode | str, megabytes: float = CACHE_MEGABYTES) -> None:
        """Choose between memory and speed: `packed`, `cached` with so many megabytes of rows, `materialized` or `int8`.

        The cache serves look-ups, not a tied head. Raises LighttokenError for another mode, and for a table that is
        trained in another mode than `packed`.
        """
        if mode not in get_args(Mode):
            raise LighttokenError(f"unknown mode={mode!r}; choose one of {', '.join(get_args(Mode))}")
        if mode != "packed" and self.trained:
            raise LighttokenError(f"mode={mode} has nothing to train; choose trainable=frozen or mode=packed")
        size = self.num_embeddings, self.embedding_dim
        self.cache = RowCache(*size, megabytes, self.like) if mode == "cached" else None
        self.mode, self.megabytes = mode, megabytes
        self.register_buffer("table", None, persistent=False)
        self.register_buffer("table_scale", None, persistent=False)
        if mode == "materialized":
            self.table = self.weight.detach()
        if mode == "int8":
            self._materialize_int8()

    def set_trainable(self, names: tuple[str, ...]) -> None:
        """Train these stored matrices and no others; matrices that were trained before are stored first."""
        current = self.compressed_table()
        if self.trained:
            self.store({name: current.tensors[name] for name in self.trained})
            self.description = self.description.without_errors()
            self.make_index()
        present = [name for name in names if name in current.tensors and current.tensors[name].numel()]
        matrices = {name: current.matrix(name).clone() for name in present}
        if "bias" in matrices:
            matrices["bias"] = matrices["bias"].flatten()  # optimizers decay matrices and spare vectors
        self.trained = Overlay({name: nn.Parameter(matrix) for name, matrix in matrices.items()})
        if self.trained:
            self.set_mode("packed")

    def forward(self, ids: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids d"]:
        """Rows of ids of any shape. Raises IndexError for ids that the table does not have."""
        if self.table is not None:
            rows = nn.functional.embedding(ids, self.table)
            if self.table_scale is not None:
                rows = rows.to(self.like.dtype) * nn.functional.embedding(ids, self.table_scale)
            return self._scaled(rows)
        if is_graph():  # the number of unique ids is not known then
            unique, positions = ids.flatten(), torch.arange(ids.numel(), device=ids.device).view(ids.shape)
        else:
            self._check(ids)
            if self.cache is not None:
                return self._scaled(self.cache.read(ids.flatten(), self._rows).view(*ids.shape, self.embedding_dim))
            unique, positions = ids.unique(return_inverse=True)
        rows = self._rows(unique)
        if self.padding_idx is not None:
            rows = torch.where((unique == self.padding_idx).unsqueeze(1), rows.detach(), rows)
        return nn.functional.embedding(positions, self._scaled(rows))

    def _scaled(self, rows: Tensor) -> Tensor:
        if self.scale == 1:
            return rows
        return rows * (self.like.new_tensor(self.scale) if self.round_scale else self.scale)

    def project(self, vectors: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch V"]:
        """Products of vectors with all rows, unscaled, as a head tied to the table makes them.

        Packed, the products are made chunk by chunk of rows, by the form's projection. A backward pass reads the rows
        again instead of keeping them in memory. The head may be on another device than the table.
        """
        device, vectors = vectors.device, vectors.to(self.codes.device)
        if self.table is not None and self.table_scale is None:
            return nn.functional.linear(vectors, self.table).to(device)
        with torch.autocast(vectors.device.type, enabled=False):
            flat = vectors.float().reshape(-1, self.embedding_dim)
            product = self._product(flat)
            few = not is_graph() and len(flat) <= FEW_VECTORS  # a graph is for any number
            rows = ROWS_FOR_FEW_VECTORS if few else ROWS_PER_CHUNK
            chunks = torch.arange(self.num_embeddings, device=vectors.device).split(rows)

            def logits(ids: Tensor) -> Tensor:
                return product(ids).to(self.like.dtype)

            if is_graph():  # for any number of vectors
                products = torch.cat([logits(ids) for ids in chunks], 1)
            elif torch.is_grad_enabled():
                products = torch.cat([checkpoint(logits, ids, use_reentrant=False) for ids in chunks], 1)
            else:
                products = torch.empty(len(flat), self.num_embeddings, dtype=self.like.dtype, device=vectors.device)
                for part, ids in zip(products.split(rows, 1), chunks, strict=True):
                    part.copy_(logits(ids))
        return products.view(*vectors.shape[:-1], self.num_embeddings).to(device)

    def _product(self, vectors: Float[Tensor, "N d"]) -> Callable[[Int[Tensor, " n"]], Float[Tensor, "N n"]]:
        """A function of ids that returns the products of vectors with rows."""
        levels, scales = self.table, self.table_scale
        if levels is None or scales is None:
            return self.description.form.projection(vectors, self._tensors(), self.embedding_dim)
        return lambda ids: vectors @ levels[ids].float().T * scales[ids].float().T

    def requires_grad_(self, requires_grad: bool = True) -> "CompressedEmbedding":
        """As of any module, for the matrices in `trained`. Raises LighttokenError if there are none to train."""
        if requires_grad and not self.trained:
            raise LighttokenError(f"a compressed embedding trains nothing: {UNTRAINED}")
        return super().requires_grad_(requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CompressedEmbedding":
        if not memo and not self.trained:  # PEFT copies what modules_to_save names, and trains the copy's parameters
            warnings.warn(f"a copy of a compressed embedding alone trains nothing: {UNTRAINED}", stacklevel=3)
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return new

    def learning_rate_scales(self) -> dict[nn.Parameter, float]:
        """For each trained matrix, its root mean square over that of the table, at least a thousandth."""
        table_size = float(self.weight.detach().float().square().mean().sqrt()) or 1.0
        sizes = {matrix: float(matrix.detach().square().mean().sqrt()) for matrix in self.trained.values()}
        return {matrix: max(size / table_size, 1e-3) for matrix, size in sizes.items()}

    def compressed_table(self) -> CompressedTable:
        """The compressed table as it is now: about as many bytes on disk as before. Fine-tuned, it names no errors."""
        compressed = replace(self.description, tensors=self.trained.into(self.views()))
        return compressed.without_errors() if self.trained else compressed

    @property
    def weight(self) -> Float[Tensor, "V d"]:
        """The whole table, unscaled, decoded on each access; for code that asks an embedding for its weight.

        It has a gradient if the embedding is trained.
        """
        if not self._prepared:  # while a model is loaded
            return torch.empty(self.num_embeddings, self.embedding_dim, dtype=self.like.dtype, device="meta")
        ids = torch.arange(self.num_embeddings, device=self.codes.device).split(ROWS_PER_CHUNK)
        if self.trained and torch.is_grad_enabled():
            return torch.cat([self._rows(part) for part in ids])
        rows = torch.empty(self.num_embeddings, self.embedding_dim, dtype=self.like.dtype, device=self.codes.device)
        with torch.no_grad():
            for part, part_ids in zip(rows.split(ROWS_PER_CHUNK), ids, strict=True):
                part.copy_(self._rows(part_ids))
        return rows

    @property
    def ratio(self) -> float:
        """V x d x 4 bytes over the bytes of the artifact."""
        return self.compressed_table().ratio

    def __repr__(self) -> str:
        bits = 8 * self.codes.numel() * self.codes.element_size() / self.num_embeddings
        codes = f", bits_per_row={bits:.1f}" if bits else ""  # svd has no codes
        ratio = "" if self.codes.is_meta else f", ratio={self.ratio:.1f}"
        predicted = self.description.summary.get("predicted_rows")
        related = f", predicted_rows={predicted}" if predicted else ""
        return f"CompressedEmbedding({self.num_embeddings}, {self.embedding_dim}{codes}{ratio}{related})"

    def _materialize_int8(self) -> None:
        size, device = (self.num_embeddings, self.embedding_dim), self.codes.device
        self.table, scales = torch.empty(size, dtype=torch.int8, device=device), []
        for ids in torch.arange(self.num_embeddings, device=device).split(ROWS_PER_CHUNK):
            rows = self._rows(ids).detach().float()
            scales.append((rows.abs().amax(1, keepdim=True) / INT8_LEVELS).clamp_min(torch.finfo(self.like.dtype).tiny))
            self.table[ids] = (rows / scales[-1]).round().to(torch.int8)
        self.table_scale = torch.cat(scales).to(self.like.dtype)

    def _check(self, ids: Tensor) -> None:
        """Bytes beyond the last row would decode to numbers of no row."""
        if ids.numel():
            first, last = map(int, ids.aminmax())
            if not 0 <= first <= last < self.num_embeddings:
                raise IndexError(
                    f"ids from {first} to {last} are not in this table, whose ids are 0 to {self.num_embeddings - 1}; "
                    "new tokens are added before the table is compressed"
                )

    def _rows(self, ids: Tensor) -> Tensor:
        # Autocast does not round the rows of a dense embedding either.
        with torch.autocast(ids.device.type, enabled=False):
            return self.description.form.read(ids.long(), self._tensors(), self.embedding_dim).to(self.like.dtype)

    def _tensors(self) -> dict[str, Tensor]:
        return self.trained.over(self.stored_tensors())

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"cache": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.mode == "cached":
            self.set_mode("cached", self.megabytes)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CompressedEmbedding":
        before = self.like.device, self.like.dtype
        super()._apply(fn, recurse)
        if self.cache is not None and (self.like.device, self.like.dtype) != before:
            self.set_mode("cached", self.megabytes)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Reads the state dict of a checkpoint too: codes under the name of the dense weight, no trained copies."""
        if f"{prefix}weight" in state_dict:
            state_dict[f"{prefix}codes"] = state_dict.pop(f"{prefix}weight")
        super()._load_from_state_dict(state_dict, prefix, *args)
        stored = replace(self.description, tensors=self.views())
        for name, matrix in self.trained.items():
            state_dict.setdefault(f"{prefix}trained.{name}", stored.matrix(name).view_as(matrix))


class SharedEmbedding(nn.Module):
    """A second module of a model, as in T5, that looks up the same rows."""

    embedding: CompressedEmbedding

    def __init__(self, embedding: CompressedEmbedding):
        super().__init__()
        self.__dict__["embedding"] = embedding  # not a child: its tensors are moved and saved once

    def forward(self, ids: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids d"]:
        """Rows of ids of any shape. This module may be on another device than the table."""
        return self.embedding(ids.to(self.embedding.codes.device)).to(ids.device)


class CompressedHead(nn.Module):
    """Stands in for the `nn.Linear` of an output head that is tied to the table."""

    embedding: CompressedEmbedding

    def __init__(self, embedding: CompressedEmbedding, bias: nn.Parameter | None):
        super().__init__()
        self.__dict__["embedding"] = embedding  # not a child: its tensors are moved and saved once
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        """The whole table, decoded on each access; for heads that compute with the weight itself, as MobileBERT's."""
        return self.embedding.weight

    def forward(self, hidden: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch V"]:
        """Logits over the vocabulary."""
        logits = self.embedding.project(hidden)
        return logits if self.bias is None else logits + self.bias


def set_trainable(embedding: nn.Module, trainable: Trainable | str) -> None:
    """Choose what fine-tuning may change of an embedding, compressed or not.

    `frozen`: nothing; `decoder`: what rows share, the decoder or the codebooks, and the bias; `decoder+factors`: the
    rank-k factors, the trellis code's gains or the rows' scales, too. A dense embedding has a single weight: frozen
    under `frozen`, trained under the other two. Raises LighttokenError for anything else.
    """
    if trainable not in get_args(Trainable):
        raise LighttokenError(f"unknown trainable={trainable!r}; choose one of {', '.join(get_args(Trainable))}")
    if not isinstance(embedding, CompressedEmbedding):
        embedding.requires_grad_(trainable != "frozen")
        return
    form = embedding.description.form
    names = {"frozen": (), "decoder": form.shared, "decoder+factors": form.shared + form.factors}
    embedding.set_trainable(names[trainable])


def _prepare(module: CompressedEmbedding, _: object) -> None:  # not a lambda: a model can then be pickled
    module.prepare()
