"""The search of the trellis code on a GPU, `_search_chunk` of viterbi.py, by kernels in Triton.

The costs of all states of a row stay in registers over a run of steps of the same shape. The plain search reads and
writes them in GPU memory several times a step.
"""

import itertools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

NUMBERS_PER_WARP, MOST_WARPS = 512, 16  # costs: 16 for a thread, so that its registers hold them
ROWS = 128  # that one program traces back


def search_chunk(
    targets: Sequence[Float[Tensor, "n _v"]],
    factors: Sequence[Float[Tensor, "states _v"]],
    norms: Sequence[Float[Tensor, "states 1"]],
    bits: Sequence[int],
    state_bits: int,
) -> Int32[Tensor, "n steps"]:
    """States of least squared error; `factors` are -2 times the vectors of all states, `norms` their squares."""
    rows, states, device = len(targets[0]), 1 << state_bits, targets[0].device
    sizes = [states >> k for k in bits]
    starts = [0, *itertools.accumulate(sizes)]
    origins = torch.empty(rows, starts[-1], dtype=torch.uint8 if max(bits) <= 8 else torch.int16, device=device)
    warps = min(max(states // NUMBERS_PER_WARP, 1), MOST_WARPS)
    cost = torch.full((rows, states), torch.inf, device=device)
    cost[:, 0] = 0  # every path starts in state 0

    # 1. Step by step, the least cost of every state, and which state before it that came from.
    shapes = [(target.shape[1], k) for target, k in zip(targets, bits, strict=True)]
    for (v, k), run in itertools.groupby(range(len(bits)), key=shapes.__getitem__):
        steps = list(run)
        target = torch.cat([targets[j] for j in steps], 1).contiguous()
        factor = torch.stack([factors[j].T for j in steps]).contiguous()  # (steps, v, states)
        norm = torch.stack([norms[j] for j in steps]).contiguous()
        places = starts[steps[0]], starts[-1], len(steps)
        with torch.cuda.device_of(cost):
            _walk[(rows,)](cost, target, factor, norm, origins, *places, v, k, state_bits, num_warps=warps)

    # 2. From the best last state back to the first.
    path = torch.empty(rows, len(bits), dtype=torch.int32, device=device)
    each = torch.tensor([starts[:-1], list(bits)], dtype=torch.int32, device=device)
    with torch.cuda.device_of(cost):
        last, grid = cost.argmin(1).int(), (triton.cdiv(rows, ROWS),)
        _trace[grid](last, origins, *each, path, rows, starts[-1], len(bits), state_bits, ROWS)
    return path


@triton.jit(do_not_specialize=["start", "width", "steps"])  # they differ from run to run
def _walk(  # type: ignore[no-untyped-def]
    costs,  # (rows, 2^state_bits): before the first of the steps; written: after the last one
    targets,  # (rows, steps v)
    factors,  # (steps, v, 2^state_bits)
    norms,  # (steps, 2^state_bits)
    origins,  # (rows, width), written from the column `start` on
    start,
    width,
    steps,
    v: tl.constexpr,
    k: tl.constexpr,
    state_bits: tl.constexpr,
):
    """A run of steps of v coefficients and k bits, of one row."""
    states: tl.constexpr = 1 << state_bits
    before: tl.constexpr = states >> k
    row = tl.program_id(0).to(tl.int64)
    state, low = tl.arange(0, states), tl.arange(0, before)
    cost = tl.load(costs + row * states + state)
    for j in range(steps):
        # The states before this step that lead to the same states differ in their top k bits: keep the best of them.
        arrivals = tl.reshape(cost, (1 << k, before))
        best, origin = tl.min(arrivals, 0, return_indices=True)
        tl.store(origins + row * width + start + j * before + low, origin.to(origins.dtype.element_ty))
        # The squared distance of each new state, without |target|^2, which is the same for all states.
        cost = tl.load(norms + j * states + state)
        for i in tl.static_range(v):
            cost += tl.load(factors + (j * v + i) * states + state) * tl.load(targets + row * steps * v + j * v + i)
        cost += tl.reshape(tl.broadcast_to(best[:, None], (before, 1 << k)), (states,))
    tl.store(costs + row * states + state, cost)


@triton.jit(do_not_specialize=["rows", "width", "steps"])
def _trace(  # type: ignore[no-untyped-def]
    states,  # (rows,) int32: the last ones
    origins,  # (rows, width)
    starts,  # (steps,) int32: the column of `origins` that a step begins at
    bits,  # (steps,) int32
    path,  # (rows, steps) int32, written
    rows,
    width,
    steps,
    state_bits: tl.constexpr,
    block: tl.constexpr,
):
    """The paths of a block of rows."""
    row = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    there = row < rows
    state = tl.load(states + row, mask=there, other=0)
    for back in range(steps):
        j = steps - 1 - back
        tl.store(path + row * steps + j, state, mask=there)
        k = tl.load(bits + j)
        low = state >> k
        origin = tl.load(origins + row * width + tl.load(starts + j) + low, mask=there, other=0)
        state = low | (origin.to(tl.int32) << (state_bits - k))
