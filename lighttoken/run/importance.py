"""The importance of a table's errors: row weights and error metric, as a codec's settings ask for them."""

from functools import partial
from typing import TYPE_CHECKING

import torch

from lighttoken.artifact.parts import NOT_KEPT, Parts
from lighttoken.backbone.replace import find_embedding
from lighttoken.codec.error_metric import backbone_metric
from lighttoken.codec.interface import Codec, Importance, MetricCodec, WeightedCodec, resolve_device
from lighttoken.codec.prior import Uniform, special_tokens
from lighttoken.errors import LighttokenError

if TYPE_CHECKING:
    from lighttoken.backbone.source import Backbone, LoadedBackbone


def measure_importance(
    backbone: "Backbone | LoadedBackbone",
    codec: Codec,
    rows: int,
    seed: int = 0,
    progress: bool = False,
    parts: Parts = NOT_KEPT,
) -> Importance:
    """Row weights and error metric for the table of a backbone with so many rows.

    The weights come from the codec's prior, through the backbone's tokenizer; the error metric from its hidden states
    on random text; `parts` keeps it. No data is needed. Raises LighttokenError if the tokenizer does not fit the table.
    """
    # 1. Row weights from token frequencies.
    prior = codec.prior if isinstance(codec, WeightedCodec) else Uniform()
    measures_metric = isinstance(codec, MetricCodec) and codec.error_metric == "backbone"
    tokenizer = backbone.tokenizer(padding=False) if prior.reads_tokenizer or measures_metric else None
    prior = prior.resolved(tokenizer)
    frequencies = prior.frequencies(tokenizer, rows)
    weights = prior.row_weights(frequencies)

    # 2. The error metric from the backbone.
    error_metric = None
    if isinstance(codec, MetricCodec) and codec.error_metric == "backbone":
        encoder = backbone.encoder()
        try:
            embedding = find_embedding(encoder)
        except LighttokenError as error:  # as FSMT's encoder
            raise LighttokenError(
                f"{type(encoder).__name__} names no token embedding to measure the error metric at; set "
                "codec.error_metric=euclidean"
            ) from error
        torch.nn.Module.to(encoder, resolve_device(codec.device))
        measure = partial(
            backbone_metric,
            encoder,
            embedding,
            frequencies,
            special_tokens(tokenizer),
            sequences=codec.error_metric_sequences,
            damping=codec.error_metric_damping,
            seed=seed,
            progress=progress,
        )
        error_metric = parts.get("error_metric", lambda: {"error_metric": measure()})["error_metric"]
    return Importance(weights, error_metric, codec.importance_settings() | prior.settings())
