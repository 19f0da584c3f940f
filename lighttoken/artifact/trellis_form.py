"""The form of `codec=lighttoken`: coefficients that a window reads from a stream of bits, and integers beside them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lighttoken.artifact.compiled import projector, read_rows
from lighttoken.artifact.form import INDEX, LinearForm, read_matrix
from lighttoken.artifact.integers import MAX_HIGH, integer_steps, least_lengths, read_integers, unpack_lengths
from lighttoken.artifact.integers import make_index as integer_index
from lighttoken.artifact.layout import BYTES, INT8, SCALES, Layout, Tensors, bias_layout, matrix_layout, shape_of
from lighttoken.artifact.packing import unpack_levels
from lighttoken.artifact.relations import MAPS, check_links, read_related
from lighttoken.artifact.trellis import LEAD, MAX_STATE_BITS, MAX_TIERS, make_index, unpack_steps, unpack_tiers

INTEGERS = "integers."  # prefix of what the integer code adds to `INDEX`


@dataclass(frozen=True)
class Trellis(LinearForm):
    """The trellis code of `artifact.trellis`.

    codes    (N,) uint8              the stream of the bits of all rows
    tiers    (bytes,) uint8          the tier of each row, packed
    steps    (T, s) uint8            what each tier's bits mean
    gain     (T, s) int8             the scale of each step's coefficients, with `.scale` (T, 1)
    decoder  (bytes,) uint8          what a coefficient adds to a row: levels (m, d), packed, with `.scale` (m, 1)
    integers (N,) uint8, optional    the stream of `artifact.integers`, where the steps say that there are integers
    lengths  (bytes,) uint8          the bits of each row in it, packed
    maps     (bytes,) uint8, opt.    what a row's parent says of it (`artifact.relations`): levels (m, `MAPS`), packed,
                                     with `.scale` (m, 1)
    relations (8,) uint8             hash of the relations, which follow from the tokenizer
    links    (bytes,) uint8, opt.    the relations themselves, where there is no tokenizer, packed
    """

    name: ClassVar[str] = "trellis"
    required: ClassVar[tuple[str, ...]] = ("codes", "tiers", "steps", "gain", "gain.scale", "decoder", "bias")
    shared: ClassVar[tuple[str, ...]] = ("decoder", "bias")
    factors: ClassVar[tuple[str, ...]] = ("gain",)
    scaled: ClassVar[tuple[str, ...]] = ("decoder",)
    state_bits: int = 12  # of the window: 2 ** state_bits states

    def layout(self, tensors: Tensors, vocab_size: int, dim: int) -> Layout:
        if not 1 <= self.state_bits <= MAX_STATE_BITS:
            raise ValueError(f"state_bits is {self.state_bits} instead of 1 to {MAX_STATE_BITS}")
        coded = "decoder" in tensors and tensors["decoder"].ndim == 1
        m, _ = shape_of(tensors, "decoder.scale" if coded else "decoder", 2)
        if m > dim:
            raise ValueError(f"a decoder of {m} rows for a table of {dim} columns")
        tiers, steps = shape_of(tensors, "steps", 2)
        if not (1 <= tiers <= MAX_TIERS and 1 <= steps <= max(m, 1)):
            raise ValueError(f"steps has shape {(tiers, steps)} instead of 1 to {MAX_TIERS} tiers of 1 to {m} steps")
        layout = bias_layout(tensors, dim)
        if coded:
            layout |= {"decoder": (shape_of(tensors, "decoder", 1), BYTES), "decoder.scale": ((m, 1), SCALES)}
        else:  # before format 6
            layout |= matrix_layout(tensors, "decoder", m, dim)
        layout |= {"steps": ((tiers, steps), BYTES), "gain": ((tiers, steps), INT8), "gain.scale": ((tiers, 1), SCALES)}
        if "maps" in tensors:
            layout |= {"maps.scale": ((m, 1), SCALES), "relations": ((8,), BYTES)}
        optional = ("integers", "lengths", "maps", "links")
        streams = ["codes", "tiers", *(name for name in optional if name in tensors)]
        return layout | {name: (shape_of(tensors, name, 1), BYTES) for name in streams}

    def check(self, tensors: Tensors, vocab_size: int, dim: int) -> None:
        m, steps, tiers = self._rank(tensors), tensors["steps"], unpack_tiers(tensors["tiers"], vocab_size)
        read_matrix(tensors, "decoder", dim)
        if "maps" in tensors:
            read_matrix(tensors, "maps", MAPS)
        if "links" in tensors:
            check_links(tensors["links"], tensors["relations"], vocab_size)
        if int(tiers.max()) >= len(steps):
            raise ValueError(f"rows of tier {int(tiers.max())} and steps of shape {tuple(steps.shape)}")
        vectors, bits = unpack_steps(steps)
        if int((vectors.cumsum(1) * (bits > 0)).max()) > m:
            raise ValueError(f"steps lead beyond the decoder's {m} rows")
        rows = torch.bincount(tiers, minlength=len(steps))  # of each tier
        length = LEAD + -(-int((rows * bits.sum(1).cpu()).sum()) // 8)
        if len(tensors["codes"]) != length:
            raise ValueError(f"codes has shape {tuple(tensors['codes'].shape)} instead of {(length,)}")
        counts, low = integer_steps(steps)
        if bool(counts.any()) != ("integers" in tensors):
            raise ValueError("integers in the steps or in the tensors, and not in both")
        if "integers" in tensors:
            lengths = self._lengths(tensors, tiers.cpu())
            most = int((counts * (MAX_HIGH + 2)).max() + low.sum(1).max())
            if int(lengths.max()) > most or len(tensors["integers"]) != -(-int(lengths.sum()) // 8):
                raise ValueError(
                    f"integers has shape {tuple(tensors['integers'].shape)}, which the lengths do not fill"
                )

    def index(self, tensors: Tensors, vocab_size: int, dim: int) -> dict[str, Tensor]:
        tiers, steps = unpack_tiers(tensors["tiers"].cpu(), vocab_size), tensors["steps"].cpu()
        index = make_index(tiers, steps, self.state_bits, self._rank(tensors))
        if tensors["decoder"].ndim == 1:
            levels = unpack_levels(tensors["decoder"], self._rank(tensors), dim, "decoder")
            wide = bool((levels.abs() > 127).any())
            index["levels"] = levels.to(torch.int32 if wide else torch.int8)  # torch.distributed cannot send int16
        if "maps" in tensors:
            index["maps"] = read_matrix(tensors, "maps", MAPS)
        if "integers" in tensors:
            integers = integer_index(self._lengths(tensors, tiers), *integer_steps(steps))
            index |= {INTEGERS + name: tensor for name, tensor in integers.items()}
        return {INDEX + name: tensor for name, tensor in index.items()}

    def basis(self, tensors: Tensors, dim: int) -> Float[Tensor, "m d"]:
        if tensors["decoder"].ndim == 1:  # else it is trained, or of an earlier format
            return tensors[INDEX + "levels"].float() * tensors["decoder.scale"]
        return read_matrix(tensors, "decoder", dim)

    def products(
        self, vectors: Float[Tensor, "N m"], offsets: Float[Tensor, "N 1"], tensors: Tensors
    ) -> Callable[[Int64[Tensor, " n"]], Float[Tensor, "N n"]]:
        compiled = None
        if "integers" not in tensors:
            compiled = projector(vectors, offsets, tensors["codes"], *self._read_by(tensors), "maps" in tensors)
        return compiled or super().products(vectors, offsets, tensors)

    def coordinates(self, ids: Int64[Tensor, " n"], tensors: Tensors) -> Float[Tensor, "n m"]:
        gain, index = self._read_by(tensors)
        if "integers" not in tensors:
            return read_rows(ids, tensors["codes"], gain, index, related="maps" in tensors)
        if "maps" not in tensors:
            return self._with_integers(ids, tensors, index, gain)
        read = partial(self._with_integers, tensors=tensors, index=index, gain=gain)
        return read_related(ids, index["relations"], index["maps"], read)

    def _with_integers(self, ids: Int64[Tensor, " n"], tensors: Tensors, index: Tensors, gain: Tensor) -> Tensor:
        """What both streams of rows decode to, (n, m)."""
        coefficients = read_rows(ids, tensors["codes"], gain, index)
        of_integers = {name.removeprefix(INTEGERS): tensor for name, tensor in index.items()}
        integers = read_integers(ids, index["tiers"][ids].long(), tensors["integers"], gain, of_integers)
        return coefficients + torch.nn.functional.pad(integers, (0, coefficients.shape[1] - integers.shape[1]))

    def _read_by(self, tensors: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        """The gains and the index."""
        index = {name.removeprefix(INDEX): tensor for name, tensor in tensors.items() if name.startswith(INDEX)}
        return self.gains(tensors), index

    def gains(self, tensors: Tensors) -> Float[Tensor, "T s"]:
        """The scale of each step's coefficients, in float32."""
        return read_matrix(tensors, "gain", tensors["steps"].shape[1])

    def _rank(self, tensors: Tensors) -> int:
        """Rows of the decoder."""
        return len(tensors["decoder" if tensors["decoder"].ndim == 2 else "decoder.scale"])

    def _lengths(self, tensors: Tensors, tiers: UInt8[Tensor, " V"]) -> Int64[Tensor, " V"]:
        """Bits of the rows in the stream of integers."""
        return unpack_lengths(tensors["lengths"], least_lengths(*integer_steps(tensors["steps"].cpu()))[tiers.long()])
