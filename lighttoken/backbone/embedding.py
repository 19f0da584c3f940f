"""CompressedEmbedding: looks rows up straight from codes and factors; CompressedHead: logits over them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lighttoken.artifact.forms import find_form
from lighttoken.artifact.packing import dequantize, precision_of, quantize
from lighttoken.artifact.table import CompressedTable, decode_rows, read_basis, read_coordinates
from lighttoken.errors import LighttokenError

Trainable = Literal["frozen", "decoder", "decoder+factors"]
Mode = Literal["packed", "materialized"]
Tie = Literal["compressed", "untie"]
ROWS_PER_CHUNK = 1024  # read at a time where all of them are needed
DECODER = ("decoder", "bias", "codebooks", "rotation", "levels", "core1", "core2")
FACTORS = ("left", "right", "gain", "row_scale")
# Floats are kept as integers of the same bits: a model's .half(), or a loader's dtype, must not round what is stored.
# Halves as bytes: torch.distributed cannot send int16.
_SAME_BITS = {torch.float32: torch.int32, torch.float16: torch.uint8}


class CompressedEmbedding(nn.Module):
    """Stands in for an `nn.Embedding` (V, d).

    `packed`: memory is that of the artifact; each call decodes the rows it is asked for, repeated ids once.
    `materialized`: the whole table is decoded once, for the speed and the memory of a dense one. Rows come in the
    precision of the model, decoded in float32.

    The codes never change. `set_trainable` chooses what fine-tuning changes. What is trained is a float32 copy that the
    forward pass rounds to the stored precision (straight-through), so that `compressed_table` loses nothing.
    """

    codes: Tensor
    like: Tensor
    table: Tensor | None

    def __init__(
        self,
        compressed: CompressedTable,
        padding_idx: int | None = None,
        scale: float = 1.0,
        round_scale: bool = False,
        mode: Mode = "packed",
    ):
        """`padding_idx` is the id whose row sends no gradient back.

        `scale` multiplies all rows; with `round_scale` it takes the precision of the model first, as Gemma's does.
        """
        super().__init__()
        self.num_embeddings, self.embedding_dim = compressed.shape
        self.padding_idx, self.scale, self.round_scale = padding_idx, scale, round_scale
        self._description = replace(compressed, tensors={})
        self._stored_as = {name: (tensor.dtype, tensor.shape) for name, tensor in compressed.tensors.items()}
        for name, tensor in compressed.tensors.items():
            self.register_buffer(buffer_name(name), _as_kept(name, tensor).clone())
        self.register_buffer("like", torch.empty(0), persistent=False)  # has the precision of the model
        self.trained = nn.ParameterDict()
        self.mode: Mode = mode
        self._prepared = False
        self._index: tuple[str, ...] = ()
        self.prepare()
        self.register_load_state_dict_post_hook(_prepare)

    def prepare(self) -> None:
        """Make what follows from the stored tensors; to be called when they have been filled in."""
        self._stored = self._views()
        if self.codes.is_meta:
            return
        table = self.compressed_table()
        for name, tensor in table.index.items():
            self.register_buffer(buffer_name(name), tensor.to(self.codes.device), persistent=False)
        self._index = tuple(table.index)
        self._prepared = True
        self.set_mode(self.mode)

    def set_mode(self, mode: Mode) -> None:
        """Choose between memory and speed. Raises LighttokenError for anything but `packed` and `materialized`."""
        if mode not in get_args(Mode):
            raise LighttokenError(f"unknown mode={mode!r}; choose one of {', '.join(get_args(Mode))}")
        if mode == "materialized" and self.trained:
            raise LighttokenError("mode=materialized has nothing to train; choose trainable=frozen or mode=packed")
        self.mode = mode
        self.register_buffer("table", None, persistent=False)
        if mode == "materialized":
            self.table = self.weight

    def set_trainable(self, names: tuple[str, ...]) -> None:
        """Train these stored matrices and no others; what was trained before is stored."""
        current = self.compressed_table()
        for name in self.trained:
            getattr(self, name).copy_(_as_kept(name, current.tensors[name]))
        held = (name for name in names if name in self._stored_as and self._stored[name].numel())
        matrices = {name: current.matrix(name).clone() for name in held}
        if "bias" in matrices:
            matrices["bias"] = matrices["bias"].flatten()  # optimizers tell vectors, which do not decay, from matrices
        self.trained = nn.ParameterDict({name: nn.Parameter(matrix) for name, matrix in matrices.items()})
        if self.trained:
            self.set_mode("packed")

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (*ids.shape, d) of ids of any shape. Raises IndexError for ids that the table does not have."""
        scale = self.like.new_tensor(self.scale) if self.round_scale else self.scale
        if self.table is not None:
            return nn.functional.embedding(ids, self.table) * scale
        if torch.compiler.is_compiling():  # the number of unique ids is not known then
            unique, positions = ids.flatten(), torch.arange(ids.numel(), device=ids.device).view(ids.shape)
        else:
            unique, positions = ids.unique(return_inverse=True)
            # Sorted. Beyond the last row, codes would be read that are none, and look like a row.
            if unique.numel() and not 0 <= int(unique[0]) <= int(unique[-1]) < self.num_embeddings:
                raise IndexError(
                    f"ids from {int(unique[0])} to {int(unique[-1])} asked of a table with ids 0 to "
                    f"{self.num_embeddings - 1}; new tokens are added before the table is compressed"
                )
        rows = self._rows(unique)
        if self.padding_idx is not None:
            rows = torch.where((unique == self.padding_idx).unsqueeze(1), rows.detach(), rows)
        return nn.functional.embedding(positions, rows * scale)

    def project(self, vectors: Tensor) -> Tensor:
        """Products (..., V) of vectors (..., d) with all rows, unscaled, as a head tied to the table makes them.

        Packed, no row of a hash code is decoded: the vectors are brought to the basis and multiplied with the
        coefficients, chunk by chunk; rows of other forms are decoded in chunks. A backward pass reads them again
        instead of keeping them.
        """
        if self.table is not None:
            return nn.functional.linear(vectors, self.table)
        with torch.autocast(vectors.device.type, enabled=False):
            flat, tensors = vectors.float().reshape(-1, self.embedding_dim), self._tensors()
            chunks = torch.arange(self.num_embeddings, device=vectors.device).split(ROWS_PER_CHUNK)
            if find_form(tensors):

                def product(ids: Tensor) -> Tensor:
                    return (flat @ decode_rows(ids, tensors, self.embedding_dim).T).to(self.like.dtype)

            else:
                bias, basis = read_basis(tensors, self.embedding_dim)
                projected = flat @ torch.cat([basis, bias.unsqueeze(0)]).T
                projected, offset = projected[:, :-1], projected[:, -1:]

                def product(ids: Tensor) -> Tensor:
                    return torch.addmm(offset, projected, read_coordinates(ids, tensors).T).to(self.like.dtype)

            if torch.is_grad_enabled():
                parts = [checkpoint(product, ids, use_reentrant=False) for ids in chunks]
                products = torch.cat(parts, 1)
            else:
                products = torch.empty(len(flat), self.num_embeddings, dtype=self.like.dtype, device=vectors.device)
                for part, ids in zip(products.split(ROWS_PER_CHUNK, 1), chunks, strict=True):
                    part.copy_(product(ids))
        return products.view(*vectors.shape[:-1], self.num_embeddings)

    def learning_rate_scales(self) -> dict[nn.Parameter, float]:
        """For each trained matrix, its root mean square over that of the table, at least a thousandth."""
        size = float(self.weight.float().square().mean().sqrt()) or 1.0
        return {each: max(float(each.detach().square().mean().sqrt()) / size, 1e-3) for each in self.trained.values()}

    def _rows(self, ids: Tensor) -> Tensor:
        # Autocast does not round the rows of a dense embedding either.
        with torch.autocast(ids.device.type, enabled=False):
            return decode_rows(ids, self._tensors(), self.embedding_dim).to(self.like.dtype)

    def _views(self) -> dict[str, Tensor]:
        kept = {name: getattr(self, buffer_name(name)) for name in self._stored_as}
        return {name: kept[name].view(dtype).view(shape) for name, (dtype, shape) in self._stored_as.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CompressedEmbedding":
        masters = {name: master.data for name, master in self.trained.items()}
        index = {place: getattr(self, place) for place in map(buffer_name, self._index)}
        super()._apply(fn, recurse)
        for place, tensor in index.items():
            if tensor.is_floating_point():  # the codebook, which is not rounded either
                setattr(self, place, tensor.to(self.codes.device))
        for name, master in self.trained.items():  # a model's .half() does not round what is trained
            master.data = masters[name].to(master.device)
        self._stored = self._views()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """From what a checkpoint keeps, too: codes under the name of the dense weight, and nothing that is trained."""
        if f"{prefix}weight" in state_dict:
            state_dict[f"{prefix}codes"] = state_dict.pop(f"{prefix}weight")
        super()._load_from_state_dict(state_dict, prefix, *args)
        stored = replace(self._description, tensors=self._views())
        for name, master in self.trained.items():
            state_dict.setdefault(f"{prefix}trained.{name}", stored.matrix(name).view_as(master))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_stored": {}}  # torch.save refuses two views of the same bytes

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._stored = self._views()

    def _tensors(self) -> Mapping[str, Tensor]:
        """What `decode_rows` reads: what is stored, but for what is trained."""
        # Views that were made before, for export: ONNX has no operator for a view of another type.
        tensors = dict(self._stored) if torch.compiler.is_compiling() else self._views()
        index = {name: getattr(self, buffer_name(name)) for name in self._index}
        for name, master in self.trained.items():
            rounded = dequantize(*self._round(name, tensors), master.shape[-1]).view_as(master)
            tensors[name] = master.float() + (rounded - master.detach().float())
            tensors.pop(f"{name}.scale", None)
        return tensors | index

    def _round(self, name: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """What is trained in the precision and with the scale of what is stored."""
        master = self.trained[name].detach().float()
        precision = precision_of(tensors[name])
        return quantize(master.view(-1, master.shape[-1]), precision, scale=tensors.get(f"{name}.scale"))

    def compressed_table(self) -> CompressedTable:
        """The compressed table as it is now, fine-tuned or not: the same bytes on disk as before."""
        stored = self._views()
        for name in self.trained:
            stored[name] = self._round(name, stored)[0].view_as(stored[name])
        return replace(self._description, tensors=stored)

    def stored_buffers(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the persistent buffers, with what is trained now in them."""
        return {buffer_name(name): _as_kept(name, tensor) for name, tensor in self.compressed_table().tensors.items()}

    @property
    @torch.no_grad()
    def weight(self) -> Tensor:
        """The whole table (V, d), unscaled, decoded on each access; for code that asks an embedding for its weight."""
        if not self._prepared:  # while a model is loaded
            return torch.empty(self.num_embeddings, self.embedding_dim, dtype=self.like.dtype, device="meta")
        rows = torch.empty(self.num_embeddings, self.embedding_dim, dtype=self.like.dtype, device=self.codes.device)
        ids = torch.arange(self.num_embeddings, device=self.codes.device)
        for part, ids_of_part in zip(rows.split(ROWS_PER_CHUNK), ids.split(ROWS_PER_CHUNK), strict=True):
            part.copy_(self._rows(ids_of_part))
        return rows

    def __repr__(self) -> str:
        size = 8 * self.codes.numel() * self.codes.element_size() / self.num_embeddings
        bits = f", bits_per_row={size:.1f}" if size else ""  # svd has no codes
        ratio = "" if self.codes.is_meta else f", ratio={self.ratio:.1f}"
        return f"CompressedEmbedding({self.num_embeddings}, {self.embedding_dim}{bits}{ratio})"

    @property
    def ratio(self) -> float:
        """V x d x 4 bytes over the bytes of the artifact."""
        return self.compressed_table().ratio


class SharedEmbedding(nn.Module):
    """A second place in a model, as in T5, that looks up the same rows."""

    embedding: CompressedEmbedding

    def __init__(self, embedding: CompressedEmbedding):
        super().__init__()
        self.__dict__["embedding"] = embedding  # not a child: its tensors are moved and saved in one place

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (*ids.shape, d) of ids of any shape."""
        return self.embedding(ids)


class CompressedHead(nn.Module):
    """Stands in for the `nn.Linear` of an output head tied to the table: logits (..., V) of hidden states (..., d)."""

    embedding: CompressedEmbedding

    def __init__(self, embedding: CompressedEmbedding, bias: nn.Parameter | None):
        super().__init__()
        self.__dict__["embedding"] = embedding  # not a child: its tensors are moved and saved in one place
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        """Shape and precision of the weight that is not there, for code that asks; reading numbers of it fails."""
        return torch.empty(
            self.embedding.num_embeddings, self.embedding.embedding_dim, dtype=self.embedding.like.dtype, device="meta"
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary."""
        logits = self.embedding.project(hidden)
        return logits if self.bias is None else logits + self.bias


def set_trainable(embedding: nn.Module, trainable: Trainable) -> None:
    """Choose what fine-tuning may change of an embedding, compressed or not.

    `frozen`: nothing; `decoder`: what rows share, the decoder or the codebooks, and the bias; `decoder+factors`: the
    rank-k factors, the trellis code's gains or the rows' scales, too. A dense embedding has a single weight: frozen
    under `frozen`, trained under the other two. Raises LighttokenError otherwise.
    """
    names = {"frozen": (), "decoder": DECODER, "decoder+factors": DECODER + FACTORS}
    if trainable not in names:
        raise LighttokenError(f"unknown trainable={trainable!r}; choose one of {', '.join(names)}")
    if isinstance(embedding, CompressedEmbedding):
        embedding.set_trainable(names[trainable])
    else:
        embedding.requires_grad_(trainable != "frozen")


def _prepare(module: CompressedEmbedding, _: object) -> None:  # not a lambda: a model can then be pickled
    module.prepare()


def _as_kept(name: str, tensor: Tensor) -> Tensor:
    """A stored tensor as a buffer of integers; codes flat, so that they never have the shape of the dense weight."""
    kept = tensor.contiguous().view(_SAME_BITS.get(tensor.dtype, tensor.dtype))
    return kept.flatten() if name == "codes" else kept


def buffer_name(name: str) -> str:
    """The name of a buffer, which may have no dots."""
    return name.replace(".", "_")
