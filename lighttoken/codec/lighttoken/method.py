"""The LightToken codec, past the paper: low rank, trellis codes by tiers of importance, decoder fitted to the codes.

It keeps the four stages of LightToken (Wang et al., KDD 2023; `codec.paper` has their published form) and changes the
hash code: instead of a sum of +-1 steps of a learned matrix, a window over the bits looks coefficients up
(`artifact.trellis`). On white Gaussian rows that is 0.55 dB from the rate-distortion bound at 1 bit per coefficient.
`LightToken.fit` reads top to bottom as the method does.

Letters: V rows of the table, d columns, m rows of the decoder, T tiers, s steps of a tier, n rows of a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Float, Int16, UInt8
from torch import Tensor

from lighttoken.artifact.forms import Trellis
from lighttoken.artifact.packing import Precision, dequantize, quantize
from lighttoken.artifact.trellis import (
    MAX_STATE_BITS,
    MAX_TIERS,
    codebook,
    pack_stream,
    pack_tiers,
    row_starts,
    unpack_steps,
)
from lighttoken.codec.interface import Budget, Importance, MetricCodec, Reporter, resolve_device
from lighttoken.codec.lighttoken.plan import PRECISIONS, Plan, plan_budget
from lighttoken.codec.lighttoken.viterbi import new_bits, search
from lighttoken.codec.lowrank import weighted_moments
from lighttoken.codec.metric_roots import metric_roots
from lighttoken.codec.prior import Prior, WordFrequency
from lighttoken.codec.refine import refit_decoder
from lighttoken.codec.shapes import Fitted, Table
from lighttoken.errors import LighttokenError

ROWS_PER_CHUNK = 2048  # so that work space stays small next to the table
MIN_STATE_BITS = 4  # the planner's fitted distortion of a shorter window says that everything is lost
# Large rows of the decoder that cancel each other, as repeated rows of a table ask for, do not survive its rounding:
# hence a larger ridge than the default of `refit_decoder`. On MiniLM-L6 at 103x it also lowers the error by 0.15 %.
RIDGE = 1e-4

StepAsRead = tuple[slice, int, Tensor]  # its coefficients, its bits, the vectors (states, v) that they choose from


@dataclass(frozen=True)
class LightToken(MetricCodec):
    """Settings of the codec; `conf/codec/lighttoken.yaml` lists the same defaults and explains them."""

    name: str = "lighttoken"
    prior: Prior = field(default_factory=WordFrequency)
    state_bits: int = 12
    tiers: int | None = None
    decoder_precision: Precision | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not MIN_STATE_BITS <= self.state_bits <= MAX_STATE_BITS:
            raise LighttokenError(
                f"state_bits is {self.state_bits}; it must be from {MIN_STATE_BITS} to {MAX_STATE_BITS}"
            )
        if self.decoder_precision not in (None, *PRECISIONS):
            raise LighttokenError(
                f"decoder_precision is {self.decoder_precision!r}; choose one of {', '.join(PRECISIONS)}, or null"
            )
        if self.tiers is not None and not 1 <= self.tiers <= MAX_TIERS:
            raise LighttokenError(f"tiers is {self.tiers}; it must be from 1 to {MAX_TIERS}, or null")

    @property
    def form(self) -> Trellis:
        return Trellis(self.state_bits)

    def fit(self, table: Table, importance: Importance, budget: Budget, reporter: Reporter) -> Fitted:
        """See `Codec.fit`: the tensors of the form `Trellis`, and the plan."""
        device = resolve_device(self.device)
        table, weights = table.to(device), importance.weights.to(device)
        root, inverse_root = metric_roots(importance.error_metric, table.shape[1])

        # 1. Low rank: the principal directions of the table, under the weights and the error metric.
        mean, covariance = weighted_moments(table, weights)
        mean = _stored(mean.unsqueeze(0), "int8").squeeze(0)
        variances, directions = torch.linalg.eigh(root @ covariance @ root)
        variances, directions = variances.flip(0).clamp_min(0), directions.flip(1)

        # 2. The plan: tiers of rows by importance, bits of each tier's directions, precision of the decoder.
        coordinates = _project(table, mean, (root @ directions).to(table))
        plan = plan_budget(coordinates, weights, budget, self.state_bits, self.tiers, self.decoder_precision)
        scale = variances.sqrt().clamp_min(float(variances[0].sqrt()) * 1e-6 + 1e-30)
        decoder = ((inverse_root @ directions) * scale).T[: plan.rank].to(table)

        # 3. Hash codes: for each row, the bits that decode nearest to its coordinates along the directions as stored.
        del coordinates  # as large as the table, like those that follow
        decoder = _stored(decoder, plan.precision)
        seen = (decoder.cpu().double() @ root).to(table)  # as the error metric sees the directions
        norms = torch.linalg.vector_norm(seen, dim=1)
        coordinates = _project(table, mean, root.to(table) @ torch.linalg.pinv(seen))
        stream = self._encode(coordinates, plan, norms, reporter)

        # 4. Reconstruction: the decoder and the bias fitted to the codes, by weighted least squares.
        decoder, bias = refit_decoder(coordinates, table, weights, ridge=RIDGE)
        return _tensors(plan, stream, decoder, bias), plan.describe()

    def check_reach(self, table: Table, budget: Budget) -> None:
        """See `Codec.check_reach`. The least bytes hardly depend on the importance, so a plan without it shows them."""
        if budget.tensor_bytes > len(table) + 64 * table.shape[1]:  # far from the least
            return
        table, weights = table - table.mean(0), torch.ones(len(table))
        margin = replace(budget, description_bytes=budget.description_bytes - abs(budget.tensor_bytes) // 4)
        try:
            plan_budget(table, weights, margin, self.state_bits, self.tiers, self.decoder_precision)
        except LighttokenError:
            plan_budget(table, weights, budget, self.state_bits, self.tiers, self.decoder_precision)

    def _encode(
        self, coordinates: Float[Tensor, "V m"], plan: Plan, norms: Float[Tensor, " m"], reporter: Reporter
    ) -> UInt8[Tensor, " bytes"]:
        """Search the codes of all rows. Returns their stream; `coordinates` become what the codes decode to."""
        book, gain = codebook(self.state_bits).to(coordinates), _stored(plan.gain, "int8").to(coordinates)
        starts = row_starts(plan.tiers, plan.steps.to(plan.tiers.device))
        lengths = unpack_steps(plan.steps)[1].sum(1)
        total = int(torch.bincount(plan.tiers.cpu().long(), minlength=len(lengths)) @ lengths)
        stream = torch.zeros(total, dtype=torch.uint8, device=coordinates.device)
        with reporter.bar(total=len(coordinates), description="codes", unit="row") as bar:
            for tier, steps in enumerate(_steps_as_read(plan.steps, gain, book)):
                for j, ids in enumerate((plan.tiers == tier).nonzero().flatten().split(ROWS_PER_CHUNK)):
                    make = partial(self._search_rows, coordinates[ids], steps, norms)
                    kept = reporter.parts.get(f"states-{tier}-{j}", make)["states"].to(ids.device)
                    states = kept.int() & ((1 << self.state_bits) - 1)
                    coordinates[ids] = 0
                    for k, (part, _, entries) in enumerate(steps):
                        coordinates[ids, part] = entries[states[:, k].long()]
                    bits = new_bits(states, [k for _, k, _ in steps])
                    stream[starts[ids].unsqueeze(1) + torch.arange(bits.shape[1], device=ids.device)] = bits
                    bar.update(len(ids))
        return pack_stream(stream)

    def _search_rows(
        self, rows: Float[Tensor, "n m"], steps: Sequence[StepAsRead], norms: Float[Tensor, " m"]
    ) -> dict[str, Int16[Tensor, "n steps"]]:
        """The states of rows of one tier, in 16 bits, the highest of which becomes a sign."""
        if not steps:
            return {"states": torch.zeros(len(rows), 0, dtype=torch.int16, device=rows.device)}
        # The error of a coefficient counts as much as its direction is long.
        targets = [rows[:, part] * norms[part] for part, _, _ in steps]
        books = [entries * norms[part] for part, _, entries in steps]
        states = search(targets, books, [k for _, k, _ in steps], self.state_bits)
        return {"states": states.to(torch.int16)}


def _steps_as_read(
    steps: UInt8[Tensor, "T s"], gain: Float[Tensor, "T s"], book: Float[Tensor, "states 8"]
) -> list[list[StepAsRead]]:
    """For each tier, its steps that have bits, in the order they are read."""
    vectors, bits = unpack_steps(steps)
    ends = vectors.cumsum(1)
    tiers = []
    for tier in zip((ends - vectors).tolist(), ends.tolist(), bits.tolist(), gain, strict=True):
        listed = [(slice(a, end), k, book[:, : end - a] * scale) for a, end, k, scale in zip(*tier, strict=True) if k]
        tiers.append(listed[::-1])
    return tiers


def _project(table: Tensor, mean: Tensor, projection: Tensor) -> Tensor:
    """(table - mean) @ projection without a copy of the table."""
    result = table.new_empty(len(table), projection.shape[1])
    for part in torch.arange(len(table), device=table.device).split(ROWS_PER_CHUNK):
        result[part] = (table[part] - mean) @ projection
    return result


def _stored(matrix: Tensor, precision: Precision) -> Tensor:
    """A matrix as it will be read back from the artifact."""
    values, scale = quantize(matrix, precision, scale_dim=0)
    return dequantize(values, scale, matrix.shape[1])


def _tensors(plan: Plan, stream: Tensor, decoder: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """The tensors of the artifact."""
    tensors: dict[str, Tensor | None] = {"codes": stream, "tiers": pack_tiers(plan.tiers), "steps": plan.steps}
    small: Precision = "int8"
    for name, matrix, precision in (
        ("gain", plan.gain, small),
        ("decoder", decoder, plan.precision),
        ("bias", bias.unsqueeze(0), small),
    ):
        tensors[name], tensors[f"{name}.scale"] = quantize(matrix, precision, scale_dim=0)
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}
