"""The look-up of a trellis table in int32 and float32 alone, for exports to processors that have no other types."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lighttoken.artifact.form import INDEX, read_bias
from lighttoken.artifact.relations import DEPTH, kinds_of, maps_by_kind, parents_of, place_in_vocabulary
from lighttoken.artifact.trellis import LEAD, MAX_VECTOR, row_starts, unpack_tiers
from lighttoken.artifact.trellis_form import Trellis
from lighttoken.backbone.embedding import CompressedEmbedding
from lighttoken.errors import LighttokenError

WORD = 24  # bits of the stream in a word: float32 has such integers, and a window of 16 bits lies in two words
BEFORE = 2  # words of zeros before the stream, where the windows of the first row begin


class Int32Embedding(nn.Module):
    """The rows of a compressed embedding, from codes that are int32 words. Nothing of it can be trained.

    WebGPU has neither bytes nor 64-bit integers, and onnxruntime-web no shifts of integers there. So a window of
    `artifact.trellis` is cut out of two words by products with powers of 2 and by rounding down, which float32 does
    without error. `model.set_input_embeddings` puts this module in the place of the compressed one before
    `torch.onnx.export`. The words take 4/3 of the bytes of the codes, and 20 bytes a row are added.
    """

    basis: Tensor
    bias: Tensor
    slope: Tensor

    def __init__(self, embedding: CompressedEmbedding):
        """Raises LighttokenError for a table that is not of the trellis form, or that has integers."""
        super().__init__()
        compressed = embedding.compressed_table()
        form, tensors, rows = compressed.form, compressed.tensors | compressed.index, compressed.shape[0]
        if not isinstance(form, Trellis) or "integers" in tensors:
            raise LighttokenError(
                f"the table of codec={compressed.codec} at {compressed.ratio:.1f}x cannot be read as int32 words; that "
                "takes codec=lighttoken and a ratio where it has no integers, such as 25"
            )
        self.scale, self.num_embeddings, self.embedding_dim = embedding.scale, *compressed.shape
        self.related = "maps" in tensors
        tables = self._tables(form, tensors, unpack_tiers(tensors["tiers"], rows))
        self.numbers = {name for name, tensor in tables.items() if tensor.ndim == 1}
        for name, tensor in tables.items():
            kept = tensor.float() if tensor.is_floating_point() else tensor.int()
            kept = kept.unsqueeze(1) if name in self.numbers else kept  # a look-up reads rows
            self.register_buffer(name, kept.to(embedding.like.device).contiguous())

    def _tables(self, form: Trellis, tensors: dict[str, Tensor], tiers: Tensor) -> dict[str, Tensor]:
        """What `forward` looks up; r is the number of bits of a window in its last word."""
        index = {name.removeprefix(INDEX): tensor for name, tensor in tensors.items() if name.startswith(INDEX)}
        position, gain = index["position"], form.gains(tensors)
        starts, ends = row_starts(tiers, tensors["steps"]) + BEFORE * WORD, torch.arange(WORD + int(position.max()) + 1)
        r = torch.arange(WORD + 1).float()
        rest = (form.state_bits - r).clamp_min(0)  # bits in the word before
        own = position.clamp_max(form.state_bits).float()  # bits of the row in a window: those before are another's
        tables = {
            "words": _words(tensors["codes"][LEAD:]),
            "word": starts // WORD,
            "offset": starts % WORD,
            "tiers": tiers,
            "position": position,
            "place": (ends + WORD - 1) // WORD - 1,  # of the word with the last bit before each end
            "bits": (ends - 1) % WORD + 1,
            "powers": torch.exp2(torch.stack([r - WORD, rest, -rest, r], 1)),
            "window": torch.exp2(torch.stack([own, -own], 2)).flatten(1),
            "component": index["component"],
            "book": index["book"].float().flatten(),
            "gains": nn.functional.pad(gain, (0, 1)).gather(1, index["step"].long()),
            "basis": form.basis(tensors, self.embedding_dim),
            "bias": read_bias(tensors, self.embedding_dim).unsqueeze(0),
        }
        if not self.related:
            return tables
        slope, offsets, slants = maps_by_kind(index["maps"])
        tables |= {"parents": parents_of(index["relations"]), "kinds": kinds_of(index["relations"])}
        return tables | {"slope": slope, "offsets": offsets, "slants": slants}

    def forward(self, ids: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids d"]:
        """Rows of ids of any shape, in float32, the precision that the model must have."""
        chain = [ids.int().flatten()]  # rows, parents, grandparents
        for _ in range(DEPTH if self.related else 0):
            chain.append(self._of("parents", chain[-1]))
        coefficients: Any = 0.0
        for rows in chain[::-1]:
            decoded = self._coefficients(rows)
            if self.related:
                kinds = self._of("kinds", rows)
                decoded = decoded + place_in_vocabulary(rows).unsqueeze(1) * self.slope + self._of("offsets", kinds)
                coefficients = decoded + self._of("slants", kinds) * coefficients
            else:
                coefficients = decoded
        rows = coefficients @ self.basis + self.bias
        return (rows * self.scale).view(*ids.shape, self.embedding_dim)

    def _coefficients(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n m"]:
        """What the codes of rows decode to."""
        tiers = self._of("tiers", ids)
        end = self._of("offset", ids).unsqueeze(1) + self._of("position", tiers)  # of each window, from a word's start
        place = self._of("word", ids).unsqueeze(1) + self._of("place", end)
        down, keep, keeps, up = self._of("powers", self._of("bits", end)).unbind(-1)
        window, windows = self._of("window", tiers).unflatten(1, (-1, 2)).unbind(-1)
        last, before = self._of("words", place).float(), self._of("words", place - 1).float()
        state = torch.floor(last * down) + (before - torch.floor(before * keeps) * keep) * up
        state = (state - torch.floor(state * windows) * window).int()
        return self._of("book", state * MAX_VECTOR + self._of("component", tiers)) * self._of("gains", tiers)

    def _of(self, name: str, places: Tensor) -> Tensor:
        """Rows of a table, or its numbers."""
        rows = nn.functional.embedding(places, self.get_buffer(name))
        return rows.squeeze(-1) if name in self.numbers else rows


def _words(stream: Tensor) -> Tensor:
    """The bytes of a stream, three to a word, the first one highest, behind words of zeros."""
    parts = nn.functional.pad(stream.cpu().int(), (3 * BEFORE, -len(stream) % 3)).view(-1, 3)
    return parts[:, 0] * 2**16 + parts[:, 1] * 2**8 + parts[:, 2]
