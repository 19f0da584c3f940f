"""Names for the shapes that codecs share: V rows of the table, d columns, m bits or coefficients of a row, k rank."""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

Table = Float[Tensor, "V d"]  # and any other matrix of a number for each number of the table
Weights = Float[Tensor, " V"]  # of rows, of mean 1
Bits = Bool[Tensor, "V m"]
Left = Float[Tensor, "V k"]  # of a low-rank part
Right = Float[Tensor, "k d"]
Decoder = Float[Tensor, "m d"]
Bias = Float[Tensor, " d"]
Spectrum = Float[Tensor, " d"]  # variances along independent directions
Fitted = tuple[dict[str, Tensor], dict[str, Any]]  # tensors and a summary: what a codec's `fit` returns
