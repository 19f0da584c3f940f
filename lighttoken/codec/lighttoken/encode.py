"""The codes of all rows, as a plan asks for them: integers of the first directions, the trellis for the others."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float, Int16, Int64, UInt8
from torch import Tensor

from lighttoken.artifact import integers
from lighttoken.artifact.packing import Precision, dequantize, quantize
from lighttoken.artifact.trellis import codebook, pack_stream, row_starts, unpack_steps
from lighttoken.codec.interface import Reporter
from lighttoken.codec.lighttoken.integers import search_integers
from lighttoken.codec.lighttoken.plan import Plan
from lighttoken.codec.lighttoken.prediction import Prediction, levels_of
from lighttoken.codec.lighttoken.viterbi import new_bits, search

ROWS_PER_CHUNK = 2048  # so that work space stays small next to the table
SAMPLE_ROWS = 2048  # that the spacing of integers is found on,
SAMPLE_ROUNDS = 3  # in so many steps,
MARGIN = 0.001  # with this share of the bytes left for rows that need more than these
TRIES, MOST_OCTAVES = 6, 0.25  # whole searches; most that the spacing changes between two

StepAsRead = tuple[slice, int, Tensor]  # its coefficients, its bits, their scale ()
RowBytes = tuple[Int64[Tensor, " _"], UInt8[Tensor, "_ _"]]  # ids of rows, and their bits


def as_stored(matrix: Tensor, precision: Precision) -> Tensor:
    """A matrix as it will be read back from the artifact."""
    values, scale = quantize(matrix, precision, scale_dim=0)
    return dequantize(values, scale, matrix.shape[1])


def encode_integers(
    coordinates: Float[Tensor, "V m"], plan: Plan, tensor_bytes: int, reporter: Reporter
) -> tuple[Plan, dict[str, Tensor]] | None:
    """Code the integers of all rows, as finely as the bytes allow that the plan leaves of `tensor_bytes`.

    Returns the plan with the gains and bits that came out, and the tensors; `coordinates` become what these decode to.
    None if the rows are so unlike Gaussian ones that their integers do not fit; nothing is changed then.
    """
    counts, low = integers.integer_steps(plan.steps)
    if not bool(counts.any()):
        return plan, {}
    tiers, others = plan.tiers.cpu().long(), plan.nbytes - plan.integer_bytes
    room, numbers, least = tensor_bytes - others, float(counts[tiers].sum()), integers.least_lengths(counts, low)[tiers]
    # 1. The spacing, by a sample: at twice the spacing, an integer has a bit less.
    sample = torch.arange(0, len(tiers), max(1, len(tiers) // SAMPLE_ROWS))
    for _ in range(SAMPLE_ROUNDS):
        _, lengths = _encode_rows(coordinates, sample, plan)
        if int((lengths - least)[sample].max()) > integers.MAX_BEYOND:
            return None
        expected = float(lengths[sample].double().mean()) * len(tiers) * (1 + MARGIN) / 8
        expected += integers.pack_lengths(lengths[sample], least[sample]).nbytes / len(sample) * len(tiers)
        plan = _widen(plan, counts, (expected - room) * 8 / numbers)
    # 2. All rows; and again, a little wider, if the sample has misled.
    for _ in range(TRIES):
        packed, lengths = _encode_rows(coordinates, torch.arange(len(tiers)), plan, reporter)
        if int((lengths - least).max()) > integers.MAX_BEYOND:
            return None
        tensors = {"integers": _join(packed, lengths), "lengths": integers.pack_lengths(lengths, least)}
        over = sum(tensor.nbytes for tensor in tensors.values()) - room
        if over <= 0:
            break
        plan = _widen(plan, counts, (over * 8 + 64) / numbers)
    else:
        return None
    # 3. What the codes decode to.
    gain, index = as_stored(plan.gain, "int8").to(coordinates), integers.make_index(lengths, counts, low)
    index = {name: tensor.to(coordinates.device) for name, tensor in index.items()}
    stream = tensors["integers"].to(coordinates.device)
    for ids in torch.arange(len(tiers), device=coordinates.device).split(ROWS_PER_CHUNK):
        tier = plan.tiers[ids].long()
        decoded = integers.read_integers(ids, tier, stream, gain, index)
        there = torch.arange(decoded.shape[1], device=ids.device) < index["counts"][tier].unsqueeze(1)
        coordinates[ids, : decoded.shape[1]] = torch.where(there, decoded, coordinates[ids, : decoded.shape[1]])
    rows = torch.bincount(tiers, minlength=len(counts)).clamp_min(1)
    bits = torch.zeros(len(counts)).index_add_(0, tiers, lengths.float()) / rows
    return replace(plan, integers=bits, nbytes=others + room + over), tensors


def _encode_rows(
    coordinates: Float[Tensor, "V m"], ids: Int64[Tensor, " n"], plan: Plan, reporter: Reporter | None = None
) -> tuple[list[RowBytes], Int64[Tensor, " V"]]:
    """The integers of some rows, packed, and their lengths in bits: 0 for other rows."""
    counts, low = integers.integer_steps(plan.steps)
    gain, tiers = as_stored(plan.gain, "int8").to(coordinates), plan.tiers.cpu()
    packed, lengths = [], torch.zeros(len(tiers), dtype=torch.long)
    with (reporter or Reporter(progress=False)).bar(total=len(ids), description="integers", unit="row") as bar:
        for tier, count in enumerate(counts.tolist()):
            for part in ids[tiers[ids] == tier].split(ROWS_PER_CHUNK if count else len(tiers)):
                bar.update(len(part))
                if count and len(part):
                    r = low[tier, :count].to(coordinates.device)
                    spacing = gain[tier, :count] * torch.exp2(-r.to(gain)) / 4
                    path, u = search_integers(coordinates[part, :count], spacing, r)
                    rows, bits = integers.pack_rows(path, u, r)
                    lengths[part] = bits.cpu()
                    packed.append((part, rows.cpu()))
    return packed, lengths


def _join(packed: list[RowBytes], lengths: Int64[Tensor, " V"]) -> UInt8[Tensor, " bytes"]:
    """The stream of all rows, in the order of their ids."""
    ends = lengths.cumsum(0)
    stream = torch.zeros(-(-int(ends[-1]) // 8), dtype=torch.uint8)
    for ids, rows in packed:
        integers.join_rows(stream, (ends - lengths)[ids], rows)
    return stream


def _widen(plan: Plan, counts: Int64[Tensor, " T"], octaves: float) -> Plan:
    """The plan with a wider spacing of all integers."""
    factor = 2 ** min(max(octaves, -MOST_OCTAVES), MOST_OCTAVES)
    of_integers = torch.arange(plan.gain.shape[1]) < counts.unsqueeze(1)
    return replace(plan, gain=torch.where(of_integers, plan.gain * factor, plan.gain))


def encode_trellis(
    coordinates: Float[Tensor, "V m"],
    plan: Plan,
    norms: Float[Tensor, " m"],
    state_bits: int,
    reporter: Reporter,
    prediction: Prediction | None = None,
    devices: Sequence[torch.device] = (),
) -> dict[str, Tensor]:
    """Search the trellis codes of all rows; `coordinates` behind the integers become what they decode to.

    `norms` says how much an error of each coefficient costs. With a `prediction`, which goes without integers, the
    codes are of what it leaves of the coordinates, parents first. `devices` share the search. Returns the tensor of the
    stream.
    """
    book, gain = codebook(state_bits).to(coordinates), as_stored(plan.gain, "int8").to(coordinates)
    starts = row_starts(plan.tiers, plan.steps.to(plan.tiers.device))
    lengths, counts = unpack_steps(plan.steps)[1].sum(1), integers.integer_steps(plan.steps)[0]
    total = int(torch.bincount(plan.tiers.cpu().long(), minlength=len(lengths)) @ lengths)
    stream = torch.zeros(total, dtype=torch.uint8, device=coordinates.device)
    levels = torch.zeros_like(starts) if prediction is None else levels_of(prediction.relations)
    with reporter.bar(total=len(coordinates), description="codes", unit="row") as bar:
        for level, tier in itertools.product(range(int(levels.max()) + 1), range(len(gain))):
            steps = _steps_as_read(plan.steps[tier], gain[tier])
            members = ((plan.tiers == tier) & (levels == level)).nonzero().flatten()
            for j, ids in enumerate(members.split(ROWS_PER_CHUNK)):
                predicted = 0.0 if prediction is None else prediction.of(ids, coordinates)
                make = partial(_search_rows, coordinates[ids] - predicted, steps, norms, book, devices)
                kept = reporter.parts.get(f"states-{level}-{tier}-{j}", make)["states"].to(ids.device)
                states = kept.int() & ((1 << state_bits) - 1)
                coordinates[ids, int(counts[tier]) :] = 0
                for k, (part, _, scale) in enumerate(steps):
                    coordinates[ids, part] = _vectors(book[states[:, k].long()], part, scale)
                coordinates[ids] += predicted
                bits = new_bits(states, [k for _, k, _ in steps])
                stream[starts[ids].unsqueeze(1) + torch.arange(bits.shape[1], device=ids.device)] = bits
                bar.update(len(ids))
    return {"codes": pack_stream(stream)}


def _search_rows(
    rows: Float[Tensor, "n m"],
    steps: Sequence[StepAsRead],
    norms: Float[Tensor, " m"],
    book: Float[Tensor, "states 8"],
    devices: Sequence[torch.device],
) -> dict[str, Int16[Tensor, "n steps"]]:
    """The states of rows of one tier, in 16 bits, the highest of which becomes a sign."""
    if not steps:
        return {"states": torch.zeros(len(rows), 0, dtype=torch.int16, device=rows.device)}
    # The error of a coefficient counts as much as its direction is long.
    targets = [rows[:, part] * norms[part] for part, _, _ in steps]
    books = (_vectors(book, part, scale) * norms[part] for part, _, scale in steps)
    states = search(targets, books, [k for _, k, _ in steps], len(book).bit_length() - 1, devices)
    return {"states": states.to(torch.int16)}


def _vectors(entries: Float[Tensor, "n 8"], part: slice, scale: Float[Tensor, ""]) -> Float[Tensor, "n _v"]:
    """What entries of the codebook decode to, as the coefficients of one step."""
    return entries[:, : part.stop - part.start] * scale


def _steps_as_read(steps: UInt8[Tensor, " s"], gain: Float[Tensor, " s"]) -> list[StepAsRead]:
    """The steps of a tier that have bits, in the order they are read."""
    vectors, bits = (tensor[0] for tensor in unpack_steps(steps.unsqueeze(0)))
    ends = vectors.cumsum(0)
    columns = ((ends - vectors).tolist(), ends.tolist(), bits.tolist(), gain)
    listed = [(slice(a, end), k, scale) for a, end, k, scale in zip(*columns, strict=True) if k]
    return listed[::-1]
