"""The search of the trellis code: for each row, the bits that decode nearest to its coefficients."""

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from lighttoken.artifact.compiled import has_triton
from lighttoken.artifact.trellis import codebook
from lighttoken.codec.lighttoken import compiled

log = logging.getLogger(__name__)

# Path costs in memory at a time, states x rows: few on a CPU, where they would outgrow the table; a GPU needs many rows
# to be busy.
WORK_SPACE = {"cpu": 2**18, "cuda": 2**24}


def search(
    targets: Sequence[Float[Tensor, "n _v"]],
    books: Iterable[Float[Tensor, "states _v"]],
    bits: Sequence[int],
    state_bits: int,
    devices: Sequence[torch.device] = (),
) -> Int32[Tensor, "n steps"]:
    """States of least squared error, by dynamic programming (Viterbi 1967).

    Step j chooses a row of books[j] (2 ** state_bits, v) for targets[j] (n, v). The state s moves to
    (s << bits[j] | new bits) modulo 2 ** state_bits; it starts at 0. Time grows with n * steps * 2 ** state_bits. On a
    CPU the search is compiled, if there is a compiler and no step has more bits than it can take; on an NVIDIA GPU, if
    Triton is there. Several `devices` share the rows; none: that of the targets searches them.
    """
    costs = [(-2 * book, book.square().sum(1, keepdim=True)) for book in books]  # so that the books are never all there
    factors, norms = [list(tensors) for tensors in zip(*costs, strict=True)]
    if targets[0].device.type == "cpu" and max(bits) <= compiled.MAX_BITS and compiled.there():
        vectors = [factor.shape[1] for factor in factors]
        return compiled.search_trellis(torch.cat(list(targets), 1), vectors, bits, factors, norms, state_bits)
    if len(devices) < 2:
        return _search_on_device(targets, factors, norms, bits, state_bits)

    def search_share(device: torch.device, *share: Tensor) -> Tensor:
        given = [[tensor.to(device) for tensor in tensors] for tensors in (share, factors, norms)]
        return _search_on_device(given[0], given[1], given[2], bits, state_bits).to(targets[0].device)

    shares = (target.tensor_split(len(devices)) for target in targets)
    with ThreadPoolExecutor(len(devices)) as pool:
        return torch.cat(list(pool.map(search_share, devices, *shares)))


def _search_on_device(
    targets: Sequence[Tensor], factors: Sequence[Tensor], norms: Sequence[Tensor], bits: Sequence[int], state_bits: int
) -> Int32[Tensor, "n steps"]:
    """As many rows at a time as the work space holds; fewer if the device has no memory left."""
    device, first = targets[0].device, 0
    size = max(16, WORK_SPACE.get(device.type, WORK_SPACE["cpu"]) >> state_bits)
    path = torch.empty(len(targets[0]), len(bits), dtype=torch.int32, device=device)
    search_chunk: Callable[..., Tensor] = _search_chunk
    if has_triton(device, _triton_agrees):
        from lighttoken.codec.lighttoken.viterbi_triton import search_chunk  # Triton is not there without a GPU
    while first < len(path):
        chunk = [target[first : first + size] for target in targets]
        try:
            path[first : first + size] = search_chunk(chunk, factors, norms, bits, state_bits)
            first += size
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size //= 2
            log.info("%s has no memory left; the search goes on with %d rows at a time", device, size)
    return path


def _triton_agrees(device: torch.device) -> bool:
    """Whether Triton finds on a device the paths that the plain code finds on the CPU, of 20 random rows.

    It adds in another order, and of two paths of almost the same error may find the other: nine of ten must agree.
    """
    from lighttoken.codec.lighttoken import viterbi_triton

    random, bits, state_bits = torch.Generator().manual_seed(0), [1, 2, 2, 3, 4, 2, 1, 1], 12
    targets = [torch.randn(20, v, generator=random) for v in (8, 4, 4, 2, 1, 1, 8, 2)]
    books = [codebook(state_bits)[:, : target.shape[1]] for target in targets]
    given = targets, [-2 * book for book in books], [book.square().sum(1, keepdim=True) for book in books]
    there = [[tensor.to(device) for tensor in tensors] for tensors in given]
    found = viterbi_triton.search_chunk(there[0], there[1], there[2], bits, state_bits)
    return int((found.cpu() == _search_chunk(*given, bits, state_bits)).all(1).sum()) >= 18


def _search_chunk(
    targets: list[Tensor], factors: list[Tensor], norms: list[Tensor], bits: Sequence[int], state_bits: int
) -> Tensor:
    """The states (n, steps) of a chunk; targets are (n, v), costs (states, n)."""
    states, rows = 1 << state_bits, len(targets[0])
    columns = [target.T.contiguous() for target in targets]  # rows last: every operation then runs along memory
    cost = targets[0].new_full((states, rows), torch.inf)
    cost[0] = 0  # every path starts in state 0
    origins = []
    for target, factor, norm, k in zip(columns, factors, norms, bits, strict=True):
        # 1. The states before this step that lead to the same states differ in their top k bits: keep the best of them.
        arrivals = cost.view(1 << k, states >> k, rows)
        if k <= 2:
            best, origin = torch.minimum(arrivals[0], arrivals[1]), (arrivals[1] < arrivals[0]).to(torch.uint8)
            for j in range(2, 1 << k):
                origin.masked_fill_(arrivals[j] < best, j)
                best = torch.minimum(best, arrivals[j])
        else:  # the same, for many
            best, indices = arrivals.min(0)
            origin = indices.to(torch.int16)
        origins.append(origin)
        # 2. The squared distance of each new state, without |target|^2, which is the same for all states.
        if target.is_cuda:
            cost = torch.addmm(norm, factor, target)
        else:  # in the order of the compiled search
            cost = norm.expand(-1, rows)
            for column, coefficient in zip(factor.split(1, 1), target, strict=True):
                cost = cost + column * coefficient
        cost.view(states >> k, 1 << k, rows).add_(best.unsqueeze(1))
    # 3. From the best last state back to the first.
    state = cost.argmin(0)
    path = [state]
    for origin, k in zip(reversed(origins), reversed(bits), strict=True):
        low_bits = state >> k
        state = low_bits | origin.gather(0, low_bits.unsqueeze(0)).squeeze(0).long() << (state_bits - k)
        path.append(state)
    return torch.stack(path[-2::-1], 1).int()  # without the state before the first step


def new_bits(states: Int32[Tensor, "n steps"], bits: Sequence[int]) -> UInt8[Tensor, "n bits"]:
    """The bits that every state reads anew, in the order of the stream."""
    columns = [states[:, :0].to(torch.uint8)]
    for step, k in enumerate(bits):
        new = (states[:, step, None] >> torch.arange(k - 1, -1, -1, device=states.device)) & 1
        columns.append(new.to(torch.uint8))
    return torch.cat(columns, 1)
