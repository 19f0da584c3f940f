"""Decoded rows that look-ups keep. In text a few rows serve most look-ups (Zipf's law)."""

from collections.abc import Callable
from threading import Lock

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lighttoken.errors import LighttokenError


class RowCache:
    """Keeps decoded rows until it is full, then starts again: the frequent rows are back at once.

    It is no module: nothing of it is saved with a model, or sent from one process to another.
    """

    def __init__(self, vocab_size: int, dim: int, megabytes: float, like: Tensor):
        """Rows of `dim` numbers, as many as fit into so many megabytes (10^6 bytes), on the device and in the precision
        of `like`.

        An index of 4 bytes for every row of the vocabulary comes on top. Raises LighttokenError if no row fits.
        """
        row = dim * like.element_size()
        if not megabytes * 1e6 >= row:
            raise LighttokenError(f"megabytes={megabytes:g} do not hold a row of {row} bytes; ask for more")
        self.capacity = int(min(megabytes * 1e6 / row, vocab_size))
        self.lock = Lock()  # threads may share a model
        with torch.inference_mode(False):  # else they could not be written outside of it
            self.slots = like.new_full((vocab_size,), -1, dtype=torch.int32)
            self.rows = like.new_empty(self.capacity, dim)
        self.used = 0

    def read(self, ids: Int[Tensor, " n"], decode: Callable[[Tensor], Tensor]) -> Float[Tensor, "n d"]:
        """The rows of ids; `decode` gives those that are not kept."""
        with self.lock:
            return self._read(ids, decode)

    def _read(self, ids: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
        new = ids[self.slots[ids] < 0].unique()
        if self.used + len(new) > self.capacity:
            self.slots.fill_(-1)
            self.used = 0
            new = ids.unique()
            if len(new) > self.capacity:
                return nn.functional.embedding(torch.searchsorted(new, ids), decode(new))
        if len(new):
            places = torch.arange(self.used, self.used + len(new), device=ids.device)
            self.rows[places] = decode(new)
            self.slots[new] = places.int()
            self.used += len(new)
        return nn.functional.embedding(self.slots[ids], self.rows)
