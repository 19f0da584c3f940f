"""The search of the trellis code: for each row, the bits whose coefficients lie nearest to its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Path costs held at a time, (states, rows): on a CPU, twice as many let memory peak at 4.6 tables instead of 3.7; a GPU
# is only filled by many rows.
WORK_SPACE = {"cpu": 2**18, "cuda": 2**24}


def search(targets: Sequence[Tensor], books: Sequence[Tensor], bits: Sequence[int], state_bits: int) -> Tensor:
    """States (n, steps) int32 of least squared error, by dynamic programming (Viterbi 1967).

    Step j chooses a row of books[j] (2 ** state_bits, v) for targets[j] (n, v). The state s moves to
    (s << bits[j] | new bits) modulo 2 ** state_bits; it starts at 0. Time grows with n * steps * 2 ** state_bits.
    """
    states = 1 << state_bits
    norms = [book.square().sum(1, keepdim=True) for book in books]
    factors = [-2 * book for book in books]
    chunk = max(16, WORK_SPACE.get(targets[0].device.type, WORK_SPACE["cpu"]) // states)
    found = torch.empty(len(targets[0]), len(bits), dtype=torch.int32, device=targets[0].device)
    for part, *chunks in zip(found.split(chunk), *(target.split(chunk) for target in targets), strict=True):
        part.copy_(_search_chunk([each.T.contiguous() for each in chunks], factors, norms, bits, state_bits))
    return found


def _search_chunk(
    targets: list[Tensor], factors: list[Tensor], norms: list[Tensor], bits: Sequence[int], state_bits: int
) -> Tensor:
    states, rows = 1 << state_bits, targets[0].shape[1]
    cost = targets[0].new_full((states, rows), torch.inf)  # rows last: then every operation runs along memory
    cost[0] = 0
    origins = []
    for target, factor, norm, k in zip(targets, factors, norms, bits, strict=True):
        arrivals = cost.view(1 << k, states >> k, rows)  # a state is reached from those that differ in the top k bits
        if k <= 2:
            best, origin = torch.minimum(arrivals[0], arrivals[1]), (arrivals[1] < arrivals[0]).to(torch.uint8)
            for j in range(2, 1 << k):
                origin.masked_fill_(arrivals[j] < best, j)
                best = torch.minimum(best, arrivals[j])
        else:  # the same, for many
            best, indices = arrivals.min(0)
            origin = indices.to(torch.int16)
        origins.append(origin)
        cost = torch.addmm(norm, factor, target)  # squared distance, less the part that is the same for all states
        cost.view(states >> k, 1 << k, rows).add_(best.unsqueeze(1))
    state = cost.argmin(0)
    path = [state]
    for origin, k in zip(reversed(origins), reversed(bits), strict=True):
        before = state >> k
        state = before | origin.gather(0, before.unsqueeze(0)).squeeze(0).long() << (state_bits - k)
        path.append(state)
    return torch.stack(path[-2::-1], 1).int()  # without the state before the first step


def new_bits(states: Tensor, bits: Sequence[int]) -> Tensor:
    """The bits (n, sum(bits)) uint8 that states (n, steps) read, in the order of the stream."""
    columns = [
        (states[:, step, None] >> torch.arange(k - 1, -1, -1, device=states.device)) & 1 for step, k in enumerate(bits)
    ]
    return torch.cat(columns, 1).to(torch.uint8)
