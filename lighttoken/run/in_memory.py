"""Compression of a model that is in memory or being loaded, as `python -m lighttoken.compress` does a checkpoint's."""

from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.quantization_config import QuantizationConfigMixin

from lighttoken.backbone.checkpoint import METHOD
from lighttoken.backbone.embedding import Tie
from lighttoken.backbone.loaded import LoadedBackbone, check_tokenizer
from lighttoken.backbone.replace import find_embedding
from lighttoken.backbone.swap import check_tie, swap_embedding
from lighttoken.codec import Codec, check_reach, compress_table, find_codec
from lighttoken.errors import LighttokenError
from lighttoken.run.healing import Healing, check_healing, heal
from lighttoken.run.importance import measure_importance


def compress_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ratio: float = 25.0,
    codec: str | Codec = "lighttoken",
    tie: Tie = "compressed",
    seed: int = 0,
    progress: bool = True,
    healing: Healing | None = None,
) -> PreTrainedModel:
    """Compress the token embedding of a model, in place; returns the model.

    The importance comes from the tokenizer and the model, as in `python -m lighttoken.compress`: the table is the same,
    for the same model, seed and number of threads. While it is measured, a float32 copy of the model is in memory. For
    `tie` see `swap_embedding`. With `healing`, the body is adapted to the compressed table, which takes two copies;
    `model.config.healing` then says what was done. Raises LighttokenError as `compress_table`, `measure_importance` and
    `heal` do.
    """
    codec = find_codec(codec)
    check_tie(tie)
    table = find_embedding(model).weight.detach().float()
    check_reach(table, codec, ratio)
    backbone = LoadedBackbone(model, tokenizer)
    backbone.tokenizer(padding=False)
    if healing is not None:
        check_healing(healing, backbone)
    importance = measure_importance(backbone, codec, len(table), seed, progress, tie=tie)
    compressed = compress_table(table, codec, ratio, importance=importance, seed=seed, progress=progress)
    healed = heal(backbone, compressed, healing, seed=seed, progress=progress) if healing is not None else None
    swap_embedding(model, compressed, tie)
    if healed is not None:
        healed.put_into(model)
    return model


class LighttokenConfig(QuantizationConfigMixin):
    """`from_pretrained(FOLDER, quantization_config=LighttokenConfig(ratio=25))` compresses the table while it loads.

    The table is that of `compress_model`, with the tokenizer of the same folder unless there is another one.
    `save_pretrained` then writes a compressed checkpoint. For the settings see `compress_model`. Raises LighttokenError
    as that does, and, before the weights are read, if the tokenizer cannot be loaded.
    """

    def __init__(
        self,
        ratio: float = 25.0,
        codec: str | Codec = "lighttoken",
        tokenizer: PreTrainedTokenizerBase | None = None,
        tie: Tie = "compressed",
        seed: int = 0,
        progress: bool = True,
        healing: Healing | None = None,
    ):
        self.quant_method: Any = METHOD
        self.ratio, self.codec, self.tokenizer = ratio, find_codec(codec), tokenizer
        self.tie: Tie = tie
        self.seed, self.progress, self.healing = seed, progress, healing

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for transformers to print."""
        texts = self.healing and self.healing.texts
        return vars(self) | {"codec": self.codec.name, "tokenizer": type(self.tokenizer).__name__, "healing": texts}

    def prepare(self, source: str, rows: int) -> None:
        """Load the tokenizer of a folder, or of a checkpoint of the hub, for a table with so many rows."""
        if self.tokenizer is None:
            try:  # transformers makes an almost empty one of a folder that has none
                self.tokenizer = check_tokenizer(AutoTokenizer.from_pretrained(source), rows, source, padding=False)
            except Exception as error:  # of any type, as in Backbone._call
                raise LighttokenError(
                    f"{source} has no tokenizer that fits its table of {rows} rows; pass one: "
                    "LighttokenConfig(tokenizer=TOKENIZER)"
                ) from error

    def compress(self, model: PreTrainedModel) -> PreTrainedModel:
        """Compress the table of the model, whose weights are loaded, in place; returns the model."""
        assert self.tokenizer is not None
        settings = self.ratio, self.codec, self.tie, self.seed, self.progress, self.healing
        return compress_model(model, self.tokenizer, *settings)
