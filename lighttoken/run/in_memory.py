"""Compression of a model that is in memory, as `python -m lighttoken.compress` does it for a checkpoint."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lighttoken.backbone.embedding import Tie
from lighttoken.backbone.replace import find_embedding
from lighttoken.backbone.source import LoadedBackbone
from lighttoken.backbone.swap import swap_embedding
from lighttoken.codec import Codec, check_reach, compress_table, find_codec
from lighttoken.run.importance import measure_importance


def compress_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ratio: float = 25.0,
    codec: str | Codec = "lighttoken",
    tie: Tie = "compressed",
    seed: int = 0,
    progress: bool = True,
) -> PreTrainedModel:
    """Compress the token embedding of a model, in place; returns the model.

    The row weights come from the tokenizer and the error metric from the model's hidden states, as in
    `python -m lighttoken.compress`: the table is the same, for the same model, seed and number of threads. While it is
    measured, a float32 copy of the model without its head is in memory. For `tie` see `swap_embedding`. Raises
    LighttokenError as `compress_table` and `measure_importance` do.
    """
    codec = find_codec(codec)
    table = find_embedding(model).weight.detach().float()
    check_reach(table, codec, ratio)
    importance = measure_importance(LoadedBackbone(model, tokenizer), codec, len(table), seed, progress)
    compressed = compress_table(table, codec, ratio, importance=importance, seed=seed, progress=progress)
    return swap_embedding(model, compressed, tie)
