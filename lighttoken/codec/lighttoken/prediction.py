"""Prediction: the part of a row's coefficients that its parent, its id and its kind tell (`artifact.relations`).

What is left after prediction is coded. A decoder knows the decoded coefficients of the parent only; the search predicts
from these as well, parents before children, so that errors do not add up.

A coefficient is predicted as offset + slope * place of the id + gain * coefficient of the parent; the offset and the
gain are of its direction and of the row's kind, the slope is of its direction.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int32, Int64, UInt8
from torch import Tensor

from lighttoken.artifact.packing import quantize, rounded
from lighttoken.artifact.relations import DEPTH, KINDS, digest, kinds_of, parents_of, place_in_vocabulary, predict
from lighttoken.codec.lighttoken.plan import Plan
from lighttoken.codec.shapes import Table, Weights

RIDGE_ROWS = 8  # whose parents tell nothing, as if every kind had them on top
ROUNDING = 1e-5  # of a square, that a difference of such squares in float32 may be
# Levels of the maps over those of the decoder's rows: a map serves the rows of a kind, not all rows.
SPACING = 4.0
COLUMNS = 64  # directions that are worked on at a time, so that work space stays small next to the table


@dataclass(frozen=True)
class Prediction:
    """Relations (V,) and the maps of every direction, (m, `MAPS`)."""

    relations: Int32[Tensor, " V"]
    maps: Float[Tensor, "m MAPS"]

    def of(self, ids: Int64[Tensor, " n"], decoded: Float[Tensor, "V m"]) -> Float[Tensor, "n m"]:
        """What is predicted of the coefficients of rows, whose parents are decoded."""
        relations = self.relations[ids]
        return predict(ids, kinds_of(relations), decoded[parents_of(relations)], self.maps)

    def subtract(self, coordinates: Table, tiers: UInt8[Tensor, " V"], distortion: Float[Tensor, "T d"]) -> None:
        """Subtract from all coordinates what will be predicted of them, before any row is coded.

        The decoded coordinate of a parent has a share D of its energy as error. As far as the energy that is left goes,
        the true one times 1 - sqrt(D) predicts as well as the decoded one.
        """
        parents, kinds = parents_of(self.relations), kinds_of(self.relations)
        kept = 1 - distortion.to(coordinates).sqrt()
        tiers, ids = tiers[parents].long(), torch.arange(len(kinds), device=kinds.device)
        for part in torch.arange(coordinates.shape[1]).split(COLUMNS):
            columns = slice(int(part[0]), int(part[-1]) + 1)
            known = coordinates[parents, columns] * kept[tiers, columns]
            coordinates[:, columns] -= predict(ids, kinds, known, self.maps[columns])

    def stored(self, plan: Plan) -> tuple["Prediction", dict[str, Tensor]]:
        """The prediction of a plan's coefficients as a decoder has it, and its tensors."""
        maps, unit = self.maps[: plan.rank].clone(), plan.unit.to(self.maps)
        maps[:, : KINDS + 1] /= unit.unsqueeze(1)  # slope and offsets; gains have no unit
        scale = SPACING * plan.spacing.to(maps).unsqueeze(1)
        levels, _ = quantize(maps, "deflated", scale=scale)
        tensors = {"maps": levels, "maps.scale": scale, "relations": digest(self.relations)}
        return replace(self, maps=rounded(maps, "deflated", scale)), tensors


def fit_prediction(coordinates: Table, weights: Weights, relations: Int32[Tensor, " V"]) -> Prediction:
    """The maps of least weighted squared error, by the true coordinates of the parents.

    The decoded coordinates of a parent are what its code tells of the true ones, so that the gains of both are equal.
    """
    parents, kinds = parents_of(relations), kinds_of(relations)
    ids = torch.arange(len(kinds), device=kinds.device)
    place = place_in_vocabulary(ids)
    place = (place - (weights @ place) / weights.sum()) * weights
    rows = torch.bincount(kinds, minlength=KINDS).clamp_min(1).to(coordinates).unsqueeze(1)
    total = _by_kind(weights.unsqueeze(1), kinds).clamp_min(1e-30)
    maps = []
    for part in coordinates.split(COLUMNS, 1):
        slope = place @ part / (place @ place_in_vocabulary(ids)).clamp_min(1e-30)
        left, parent = part - place_in_vocabulary(ids).unsqueeze(1) * slope, part[parents]
        weighted = weights.unsqueeze(1) * parent
        mean, mean_parent = _by_kind(weights.unsqueeze(1) * left, kinds) / total, _by_kind(weighted, kinds) / total
        square = _by_kind(weighted * parent, kinds) / total
        variance = (square - mean_parent.square()).clamp_min(ROUNDING * square)  # a single row has none
        covariance = _by_kind(weighted * left, kinds) / total - mean * mean_parent
        gain = covariance / (variance * (1 + RIDGE_ROWS / rows)).clamp_min(1e-30)
        gain[0] = 0  # rows without a parent
        maps.append(torch.cat([slope.unsqueeze(0), mean - gain * mean_parent, gain[1:]]).T)
    return Prediction(relations, torch.cat(maps))


def levels_of(relations: Int32[Tensor, " V"]) -> Int64[Tensor, " V"]:
    """How many rows are above each row."""
    above, levels = relations, torch.zeros(len(relations), dtype=torch.long, device=relations.device)
    for _ in range(DEPTH):
        levels += kinds_of(above) > 0
        above = relations[parents_of(above)]
    return levels


def _by_kind(values: Float[Tensor, "V m"], kinds: Int64[Tensor, " V"]) -> Float[Tensor, "KINDS m"]:
    """Sums over the rows of each kind."""
    return values.new_zeros(KINDS, values.shape[1]).index_add_(0, kinds, values)
