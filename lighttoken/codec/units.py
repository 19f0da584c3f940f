"""Units: a table of any scale and any common mean, brought to numbers whose squares float32 and float16 can hold.

Almost all tables are in such numbers already. They are left as they are, so that they keep their bytes.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from lighttoken.artifact.forms import Form, read_bias
from lighttoken.errors import LighttokenError

# Largest absolute values of a table that is left as it is: far from what float16 cannot hold, sums of squares included.
LEAST, MOST = 2.0**-14, 2.0**12
# A mean row of so many times the spread around it is taken off first: int8 stores a bias to 1/127 of its largest
# number, float16 to 1/2048.
MOST_MEAN = 32
MOST_LOSS = 0.01  # of the norm of a matrix, by rounding, where it is brought back
ROWS_PER_CHUNK = 256  # rows that are widened to float64 at a time


@dataclass(frozen=True)
class Units:
    """How a table (V, d) follows from normalised numbers: numbers * 2**exponent + offset.

    exponent  a power of two keeps all digits of a number
    offset    (d,) float32, the mean row where it is large; None: 0
    """

    exponent: int = 0
    offset: Tensor | None = None

    @property
    def ordinary(self) -> bool:
        """The table is left as it is."""
        return self.exponent == 0 and self.offset is None

    def bias_bytes(self, dim: int) -> int:
        """Bytes that the bias takes besides those that the codec counts."""
        return 0 if self.ordinary else 4 * dim

    def normalise(self, table: Float32[Tensor, "V d"]) -> Float32[Tensor, "V d"]:
        """The normalised numbers of a table; the table itself where it is ordinary."""
        if self.ordinary:
            return table
        offset = torch.zeros(table.shape[1]) if self.offset is None else self.offset
        numbers = torch.empty_like(table)
        for part, rows in zip(numbers.split(ROWS_PER_CHUNK), table.split(ROWS_PER_CHUNK), strict=True):
            part.copy_((rows.double() - offset) * 2.0**-self.exponent)
        return numbers

    def restore(self, tensors: dict[str, Tensor], form: Form, dim: int) -> dict[str, Tensor]:
        """Tensors that decode to the table, from those that decode to its normalised numbers.

        The bias becomes float32. Raises LighttokenError if a tensor's type cannot hold the scale.
        """
        if self.ordinary:
            return tensors
        restored = {name: tensor.cpu() for name, tensor in tensors.items() if name != "bias.scale"}
        for matrix in form.scaled:
            name = f"{matrix}.scale" if f"{matrix}.scale" in tensors else matrix
            if name in restored:
                restored[name] = self._scaled(restored[name], name)
        bias = read_bias(tensors, dim).cpu().double() * 2.0**self.exponent
        restored["bias"] = (bias if self.offset is None else bias + self.offset).float()
        return restored

    def _scaled(self, tensor: Tensor, name: str) -> Tensor:
        exact = tensor.double() * 2.0**self.exponent
        stored = exact.to(tensor.dtype)
        if not float((stored.double() - exact).norm()) <= MOST_LOSS * float(exact.norm()):
            cure = f"multiply the table by 2**{-self.exponent}"
            if tensor.dtype == torch.float16:
                cure += ", or choose codec=lighttoken, or matrix_precision=int8 where the codec has it"
            raise LighttokenError(
                f"the table has values of the order of 2**{self.exponent}, which the artifact's {name!r} cannot hold "
                f"in {str(tensor.dtype).removeprefix('torch.')}; {cure}"
            )
        return stored


def find_units(table: Float32[Tensor, "V d"]) -> Units:
    """The units of a table."""
    mean = torch.zeros(table.shape[1], dtype=torch.float64, device=table.device)
    # Added up at once: a list of sums would lie between the widened rows in memory, which then grows by two tables.
    for rows in table.split(ROWS_PER_CHUNK):
        mean += rows.sum(0, dtype=torch.float64) / len(table)
    squares, peak = 0.0, 0.0
    for rows in table.split(ROWS_PER_CHUNK):
        centred = rows.double() - mean
        squares, peak = squares + float(centred.square().sum()), max(peak, float(centred.abs().max()))
    offset = None
    if float(mean.abs().max()) > MOST_MEAN * math.sqrt(squares / table.numel()):
        offset = mean.float()
    else:
        peak = float(torch.stack([rows.abs().max() for rows in table.split(ROWS_PER_CHUNK)]).max())
    ordinary = peak == 0 or LEAST <= peak < MOST
    return Units(0 if ordinary else math.frexp(peak)[1], offset)
