"""A model in memory and its tokenizer, for what is measured on a backbone."""

import copy
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lighttoken.backbone.language_model import predicts_tokens
from lighttoken.backbone.replace import find_embedding
from lighttoken.errors import LighttokenError


@dataclass(frozen=True)
class LoadedBackbone:
    """A model and its tokenizer, with the methods of `Backbone` that do not read files."""

    model: PreTrainedModel
    own_tokenizer: PreTrainedTokenizerBase

    def tokenizer(self, padding: bool = True) -> PreTrainedTokenizerBase:
        """As `Backbone.tokenizer`."""
        rows = find_embedding(self.model).num_embeddings
        return check_tokenizer(self.own_tokenizer, rows, type(self.model).__name__, padding)

    def predicts_tokens(self) -> bool:
        """As `Backbone.predicts_tokens`."""
        return not self.is_encoder_decoder and predicts_tokens(type(self.model).__name__)

    @property
    def is_encoder_decoder(self) -> bool:
        """As `Backbone.is_encoder_decoder`."""
        return self.model.config.is_encoder_decoder

    def language_model(self) -> PreTrainedModel:
        """A copy of the model, as `Backbone.language_model` loads it."""
        return copy.deepcopy(self.model).float().eval()

    def encoder(self) -> PreTrainedModel:
        """A copy of the model without its head, as `Backbone.encoder` loads it."""
        body: Any = copy.deepcopy(self.model.base_model).float().eval()
        return body.get_encoder() if body.config.is_encoder_decoder else body


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, rows: int, label: str, padding: bool
) -> PreTrainedTokenizerBase:
    """The tokenizer. Raises LighttokenError if a table with so many rows is not its own, or if it cannot pad."""
    if not hasattr(tokenizer, "get_vocab"):
        raise LighttokenError(f"{tokenizer!r} is no tokenizer; pass AutoTokenizer.from_pretrained(...)")
    largest = max(tokenizer.get_vocab().values())
    if not rows / 2 <= largest + 1 <= rows:  # tables are often padded by a few rows, never by as many again
        raise LighttokenError(
            f"the tokenizer of model={label} has ids 0 to {largest} and the table has {rows} rows; "
            "save the model's own tokenizer in its folder, with tokenizer.save_pretrained"
        )
    if padding and tokenizer.pad_token is None:
        raise LighttokenError(
            f"the tokenizer of model={label} has no padding token and sentences are batched; "
            "set tokenizer.pad_token and save it with the checkpoint"
        )
    return tokenizer
