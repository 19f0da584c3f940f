"""The compiled searches of both codes, `viterbi.cpp`.

They give the same bits as the plain searches, 4 to 13 times sooner with 12 state bits (most at high rates), 2 to 9
times with fewer, and 12 to 17 times for integers. Without a compiler the plain ones are used.
"""

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int32, Int64, UInt8
from torch import Tensor
from torch.nn.functional import pad

from lighttoken.artifact.compiled import library

SOURCE = Path(__file__).with_name("viterbi.cpp")
LANES = 8  # rows searched together
MAX_BITS = 8  # of a step
ROWS_PER_CALL = 64


def there() -> bool:
    """Whether the searches could be built."""
    return library(SOURCE) is not None


def search_trellis(
    targets: Float[Tensor, "n m"],
    vectors: Sequence[int],
    bits: Sequence[int],
    factors: Sequence[Float[Tensor, "states _v"]],
    norms: Sequence[Float[Tensor, "states 1"]],
    state_bits: int,
) -> Int32[Tensor, "n steps"]:
    """`viterbi.search` on the CPU, with as many threads as torch has; `library` must be there."""
    native, (rows, m), steps = library(SOURCE), targets.shape, len(bits)
    assert native is not None
    lanes = pad(targets, (0, 0, 0, -rows % LANES)).view(-1, LANES, m).transpose(1, 2).contiguous()
    path = torch.empty(len(lanes), steps, LANES, dtype=torch.int32)
    numbers, pointers = ctypes.c_int32 * steps, ctypes.c_void_p * steps
    books = [[tensor.contiguous() for tensor in tensors] for tensors in (factors, norms)]
    tables = [pointers(*(tensor.data_ptr() for tensor in tensors)) for tensors in books]

    def call(part: tuple[Tensor, Tensor]) -> None:
        source, found = part
        native.search_trellis(
            *(ctypes.c_void_p(source.data_ptr()), len(source), m, numbers(*vectors), numbers(*bits), steps),
            *(state_bits, *tables, ctypes.c_void_p(found.data_ptr())),
        )

    size = ROWS_PER_CALL // LANES
    _in_threads(call, list(zip(lanes.split(size), path.split(size), strict=True)))
    return path.transpose(1, 2).reshape(-1, steps)[:rows]


def search_integers(cost: Float[Tensor, "G 4 n"], grids: Int64[Tensor, " transitions"]) -> UInt8[Tensor, "G n"]:
    """`integers._best_path` on the CPU, likewise."""
    native, (steps, _, count), states = library(SOURCE), cost.shape, len(grids) // 2
    assert native is not None
    costs, numbers = pad(cost, (0, -count % LANES)).contiguous(), grids.int().contiguous()
    rows = costs.shape[2]
    path = torch.empty(steps, rows, dtype=torch.uint8)

    def call(first: int) -> None:
        native.search_integers(
            *(ctypes.c_void_p(costs.data_ptr() + 4 * first), steps, ctypes.c_int64(rows)),
            *(ctypes.c_int64(min(ROWS_PER_CALL, rows - first)), ctypes.c_void_p(numbers.data_ptr()), states),
            ctypes.c_void_p(path.data_ptr() + first),
        )

    _in_threads(call, range(0, rows, ROWS_PER_CALL))
    return path[:, :count]


def _in_threads(call: Callable[[Any], None], parts: Sequence[Any]) -> None:
    """As many threads as torch has: ctypes lets the others run."""
    if len(parts) == 1:
        return call(parts[0])
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(call, parts))
