"""The LightToken codec, past the paper: low rank, prediction, trellis codes by tiers, decoder fitted to the codes.

It keeps the four stages of LightToken (Wang et al., KDD 2023; `codec.paper` has their published form) and changes the
hash code: instead of a sum of +-1 steps of a learned matrix, a window over the bits looks coefficients up
(`artifact.trellis`). On white Gaussian rows that is 0.55 dB from the rate-distortion bound at 1 bit per coefficient.
Rows are not independent of each other: some are predicted from others first (`codec.lighttoken.prediction`).
`LightToken.fit` reads top to bottom as the method does.

Letters: V rows of the table, d columns, m rows of the decoder, T tiers, s steps of a tier, n rows of a chunk.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lighttoken.artifact.forms import Trellis
from lighttoken.artifact.packing import MAX_LEVEL, quantize
from lighttoken.artifact.trellis import MAX_STATE_BITS, MAX_TIERS, pack_tiers
from lighttoken.codec.interface import Budget, Importance, MetricCodec, Reporter, resolve_devices
from lighttoken.codec.lighttoken.encode import ROWS_PER_CHUNK, encode_integers, encode_trellis
from lighttoken.codec.lighttoken.plan import Plan, plan_budget, spectrum_of
from lighttoken.codec.lighttoken.prediction import Prediction, fit_prediction, levels_of
from lighttoken.codec.lighttoken.rates import distortions
from lighttoken.codec.lowrank import weighted_moments
from lighttoken.codec.metric_roots import metric_roots
from lighttoken.codec.prior import Prior, WordFrequency
from lighttoken.codec.refine import refit_decoder
from lighttoken.codec.shapes import Decoder, Fitted, Table
from lighttoken.errors import LighttokenError

MIN_STATE_BITS = 4  # the planner's fitted distortion of a shorter window says that everything is lost
# Large rows of the decoder that cancel each other, as repeated rows of a table ask for, do not survive its rounding:
# hence a larger ridge than the default of `refit_decoder`. On MiniLM-L6 at 103x it also lowers the error by 0.15 %.
RIDGE = 1e-4
Predict = Literal["related", "none"]
FINEST = 0.01  # octaves, to which the spacing of the decoder's levels is found


@dataclass(frozen=True)
class LightToken(MetricCodec):
    """Settings of the codec; `conf/codec/lighttoken.yaml` lists the same defaults and explains them."""

    name: str = "lighttoken"
    prior: Prior = field(default_factory=WordFrequency)
    state_bits: int = 12
    tiers: int | None = None
    predict: Predict = "related"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not MIN_STATE_BITS <= self.state_bits <= MAX_STATE_BITS:
            raise LighttokenError(
                f"state_bits is {self.state_bits}; it must be from {MIN_STATE_BITS} to {MAX_STATE_BITS}"
            )
        if self.predict not in get_args(Predict):
            raise LighttokenError(f"unknown predict={self.predict!r}; choose one of {', '.join(get_args(Predict))}")
        if self.tiers is not None and not 1 <= self.tiers <= MAX_TIERS:
            raise LighttokenError(f"tiers is {self.tiers}; it must be from 1 to {MAX_TIERS}, or null")

    @property
    def form(self) -> Trellis:
        return Trellis(self.state_bits)

    @property
    def reads_relations(self) -> bool:
        return self.predict == "related"

    def fit(self, table: Table, importance: Importance, budget: Budget, reporter: Reporter) -> Fitted:
        """See `Codec.fit`: the tensors of the form `Trellis`, and the plan."""
        devices = resolve_devices(self.device)
        table, weights = table.to(devices[0]), importance.weights.to(devices[0])
        root, inverse_root = metric_roots(importance.error_metric, table.shape[1])

        # 1. Low rank: the principal directions of the table, under the weights and the error metric.
        mean, covariance = weighted_moments(table, weights)
        mean = mean.half().float()
        directions = torch.linalg.eigh(root @ covariance @ root).eigenvectors.flip(1)  # eigh sorts upwards
        lengths = torch.linalg.vector_norm(inverse_root @ directions, dim=0)
        projection = (root @ directions).to(table)

        for integers in (True, False):
            # 2. The plan: tiers of rows by importance, bits of each tier's directions, the fineness of the decoder; and
            # whether rows are predicted from related ones, so that only what is left of them is coded.
            coordinates = _project(table, mean, projection)
            plan, prediction = self._plan(coordinates, importance, budget, lengths, integers)
            del coordinates  # as large as the table, like those that follow

            # 3. Hash codes: for each row, what decodes nearest to its coordinates along the directions. First the
            # integers, whose bits follow from the rows; then the trellis codes of the other directions.
            unit = plan.unit.to(table)
            coordinates = _project(table, mean, projection[:, : plan.rank] / unit)
            encoded = encode_integers(coordinates, plan, budget.tensor_bytes, reporter)
            if encoded is not None:
                break
        plan, codes = encoded or (plan, {})
        summary = plan.describe()
        if prediction is not None:
            prediction, maps = prediction.stored(plan)
            codes |= maps
            summary["predicted_rows"] = int((levels_of(prediction.relations) > 0).sum())
        codes |= encode_trellis(coordinates, plan, unit, self.state_bits, reporter, prediction, devices)

        # 4. Reconstruction: the decoder and the bias fitted to the codes, by weighted least squares.
        decoder, bias = refit_decoder(coordinates, table, weights, ridge=RIDGE)
        tensors = _tensors(plan, bias) | codes
        room = budget.tensor_bytes - sum(tensor.nbytes for tensor in tensors.values())
        return tensors | _finest_decoder(decoder, (plan.spacing.to(unit) * unit).unsqueeze(1), room), summary

    def _plan(
        self, coordinates: Table, importance: Importance, budget: Budget, lengths: Tensor, integers: bool
    ) -> tuple[Plan, Prediction | None]:
        """The plan of least predicted error, with a prediction if that lowers it; changes the coordinates."""
        weights = importance.weights.to(coordinates)
        make = partial(plan_budget, weights=weights, state_bits=self.state_bits, lengths=lengths, tiers=self.tiers)
        plan = make(coordinates, budget=budget, integers=integers)
        if not self.reads_relations or importance.relations is None:
            return plan, None
        variances = spectrum_of(coordinates, weights)
        prediction = fit_prediction(coordinates, weights, importance.relations.to(weights.device))
        prediction.subtract(coordinates, plan.tiers, distortions(plan.steps, self.state_bits, len(variances)))
        maps = sum(tensor.nbytes for tensor in prediction.stored(plan)[1].values())
        budget = replace(budget, description_bytes=budget.description_bytes + maps)
        try:
            left = make(coordinates, budget=budget, integers=False, variances=variances)
        except LighttokenError:  # no bytes for the maps
            return plan, None
        return (left, prediction) if left.predicted < plan.predicted else (plan, None)

    def check_reach(self, table: Table, budget: Budget) -> None:
        """See `Codec.check_reach`. The least bytes hardly depend on the importance, so a plan without it shows them."""
        if budget.tensor_bytes > len(table) + 64 * table.shape[1]:  # far from the least
            return
        margin = replace(budget, description_bytes=budget.description_bytes - abs(budget.tensor_bytes) // 4)
        table, uniform = table - table.mean(0), Importance(torch.ones(len(table)))
        try:
            self._plan(table, uniform, margin, torch.ones(table.shape[1]), integers=False)
        except LighttokenError:
            self._plan(table, uniform, budget, torch.ones(table.shape[1]), integers=False)


def _project(table: Tensor, mean: Tensor, projection: Tensor) -> Tensor:
    """(table - mean) @ projection without a copy of the table."""
    result = table.new_empty(len(table), projection.shape[1])
    for part in torch.arange(len(table), device=table.device).split(ROWS_PER_CHUNK):
        result[part] = (table[part] - mean) @ projection
    return result


def _tensors(plan: Plan, bias: Tensor) -> dict[str, Tensor]:
    """The tensors of the artifact, but for the codes and the decoder."""
    gain, scale = quantize(plan.gain, "int8", scale_dim=0)
    assert scale is not None
    return {
        "tiers": pack_tiers(plan.tiers),
        "steps": plan.steps,
        "gain": gain,
        "gain.scale": scale,
        "bias": bias.half(),
    }


def _finest_decoder(decoder: Decoder, spacing: Float[Tensor, "m 1"], room: int) -> dict[str, Tensor]:
    """The decoder's tensors, its levels as narrow as so many bytes allow: by bisection of a factor of the spacing."""
    low, high, fitting = -2.0, 1.0, None  # octaves
    least = decoder.abs().amax(1, keepdim=True) / MAX_LEVEL
    while fitting is None or high - low > FINEST:
        middle = high if fitting is None else (low + high) / 2
        scale = torch.maximum(spacing * 2**middle, least)
        levels, _ = quantize(decoder, "deflated", scale=scale)
        if levels.nbytes + scale.nbytes <= room:
            high, fitting = middle, {"decoder": levels, "decoder.scale": scale}
        elif fitting is None:
            low, high = high, high + 1
        else:
            low = middle
    return fitting
