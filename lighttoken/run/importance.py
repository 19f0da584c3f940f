"""The importance of a table's errors: row weights and error metric, as a codec's settings ask for them."""

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lighttoken.artifact.parts import NOT_KEPT, Parts
from lighttoken.artifact.relations import relations_of
from lighttoken.backbone.embedding import Tie
from lighttoken.backbone.language_model import is_masked
from lighttoken.backbone.replace import find_embedding, shares_table
from lighttoken.codec import fisher
from lighttoken.codec.error_metric import backbone_metric, damped
from lighttoken.codec.interface import Codec, Importance, MetricCodec, WeightedCodec, resolve_device
from lighttoken.codec.prior import EXPONENT, Corpus, Prior, Uniform, special_tokens
from lighttoken.codec.texts import Texts
from lighttoken.errors import LighttokenError

if TYPE_CHECKING:
    from lighttoken.backbone.loaded import LoadedBackbone
    from lighttoken.backbone.source import Backbone

log = logging.getLogger(__name__)

LENGTH = 24  # tokens of a text


def measure_importance(
    backbone: "Backbone | LoadedBackbone",
    codec: Codec,
    rows: int,
    seed: int = 0,
    progress: bool = False,
    parts: Parts = NOT_KEPT,
    head: bool | None = None,
    tie: Tie = "compressed",
) -> Importance:
    """Row weights and error metric for the table of a backbone with so many rows.

    The weights come from the codec's prior, through the backbone's tokenizer; the error metric from what the backbone
    does with texts: its predictions if it has a `head` that predicts tokens (None: if its checkpoint has one), else its
    hidden states. A head that shares the table, and keeps doing so (`tie`), also counts in the weights. No data is
    needed. `parts` keeps what was measured. The tokenizer also tells which rows are related, where the codec reads
    that: without a tokenizer, none are. Raises LighttokenError if the tokenizer does not fit the table.
    """
    # 1. Token frequencies.
    prior = codec.prior if isinstance(codec, WeightedCodec) else Uniform()
    kind = codec.error_metric if isinstance(codec, MetricCodec) else "euclidean"
    tokenizer = backbone.tokenizer(padding=False) if prior.reads_tokenizer or kind != "euclidean" else None
    prior = prior.resolved(tokenizer)
    frequencies = prior.frequencies(tokenizer, rows)

    # 2. What the backbone makes of errors: in its predictions, in its hidden states, or nothing is asked of it.
    settings, error_metric = codec.importance_settings(), None
    if isinstance(codec, MetricCodec) and kind == "fisher" and (backbone.predicts_tokens() if head is None else head):
        tensors = parts.get("fisher", lambda: vars(_fisher(backbone, codec, prior, tokenizer, frequencies, seed, tie)))
        measured = fisher.Fisher(**tensors)
        frequencies, prior = measured.uses(frequencies), prior.tempered(fisher.EXPONENT)
        error_metric = damped(measured.form, codec.error_metric_damping)
    elif isinstance(codec, MetricCodec) and kind != "euclidean":
        measure = partial(_backbone_metric, backbone, codec, tokenizer, frequencies, seed, progress)
        error_metric = parts.get("error_metric", lambda: {"error_metric": measure()})["error_metric"]
        settings |= {"error_metric": "backbone"}
        settings.pop("texts", None)

    # 3. Row weights.
    prior = prior.tempered(EXPONENT)
    weights, settings = prior.row_weights(frequencies), settings | prior.settings()
    return Importance(weights, error_metric, settings, _relations(backbone, tokenizer, rows, codec))


def _relations(backbone: "Backbone | LoadedBackbone", tokenizer: Any, rows: int, codec: Codec) -> Tensor | None:
    if not codec.reads_relations:
        return None
    try:
        return relations_of(tokenizer or backbone.tokenizer(padding=False), rows)
    except LighttokenError as error:
        log.info("no rows are predicted: %s", error)
        return None


def _backbone_metric(
    backbone: "Backbone | LoadedBackbone",
    codec: MetricCodec,
    tokenizer: Any,
    frequencies: Tensor,
    seed: int,
    progress: bool,
) -> Tensor:
    encoder = backbone.encoder()
    try:
        embedding = find_embedding(encoder)
    except LighttokenError as error:  # as FSMT's encoder
        raise LighttokenError(
            f"{type(encoder).__name__} names no token embedding to measure the error metric at; set "
            "codec.error_metric=euclidean"
        ) from error
    torch.nn.Module.to(encoder, resolve_device(codec.device))
    return backbone_metric(
        encoder,
        embedding,
        frequencies,
        special_tokens(tokenizer),
        sequences=codec.error_metric_sequences,
        length=LENGTH,
        damping=codec.error_metric_damping,
        seed=seed,
        progress=progress,
    )


def _fisher(
    backbone: "Backbone | LoadedBackbone",
    codec: MetricCodec,
    prior: Prior,
    tokenizer: Any,
    frequencies: Tensor,
    seed: int,
    tie: Tie,
) -> fisher.Fisher:
    model = backbone.language_model()
    torch.nn.Module.to(model, resolve_device(codec.device))
    masked = is_masked(model.config)
    if masked and tokenizer.mask_token_id is None:
        raise LighttokenError(
            f"the tokenizer of {type(model).__name__}, a masked model, has no mask token; set and save it, or set "
            "codec.error_metric=backbone"
        )
    mask = tokenizer.mask_token_id if masked else None
    texts = Texts(model, tokenizer, mask, codec.error_metric_sequences, LENGTH, seed)
    corpus = prior.texts() if isinstance(prior, Corpus) else None
    ids = texts.make(codec.error_metric_texts, frequencies, corpus)
    tied = tie == "compressed" and shares_table(model)
    return fisher.table_fisher(model, find_embedding(model), tied, texts.batches(ids), seed)
