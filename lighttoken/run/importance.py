"""What rows and errors weigh, as a codec and a backbone say."""

import torch

from lighttoken.backbone.source import Backbone
from lighttoken.backbone.swap import find_embedding
from lighttoken.codec import Codec
from lighttoken.codec.error_metric import backbone_metric
from lighttoken.codec.lighttoken.method import LightToken, resolve_device
from lighttoken.codec.prior import special_tokens


def measure_importance(
    backbone: Backbone, codec: Codec, rows: int, seed: int = 0, progress: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Row weights (V,) and error metric (d, d), or None, as the codec's `prior` and `metric` ask for them."""
    asks_backbone = isinstance(codec, LightToken) and codec.metric == "backbone"
    tokenizer = backbone.tokenizer(padding=False) if asks_backbone or codec.prior in ("wordfreq", "corpus") else None
    frequencies = codec.frequencies(tokenizer, rows)
    metric = None
    if asks_backbone:
        assert isinstance(codec, LightToken)
        encoder = backbone.encoder()
        torch.nn.Module.to(encoder, resolve_device(codec.device))
        metric = backbone_metric(
            encoder,
            find_embedding(encoder),
            frequencies,
            special_tokens(tokenizer),
            sequences=codec.metric_sequences,
            damping=codec.metric_damping,
            seed=seed,
            progress=progress,
        )
    return codec.row_weights(frequencies), metric
