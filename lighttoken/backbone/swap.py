"""Swapping the token embedding of a transformers model for a compressed one."""

from typing import get_args

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lighttoken.artifact.table import CompressedTable
from lighttoken.backbone.checkpoint import attach
from lighttoken.backbone.embedding import Tie
from lighttoken.backbone.replace import replace_embedding
from lighttoken.errors import LighttokenError


def swap_embedding(
    model: PreTrainedModel,
    compressed: CompressedTable,
    tie: Tie = "compressed",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PreTrainedModel:
    """Replace the token embedding of a transformers model by a compressed one, in place; returns the model.

    `tie` is about an output head that shares the table: `compressed` computes its logits from the compressed table as
    well; `untie` keeps its original weights, dense and separate.
    A table that was loaded without the `tokenizer` of its model needs that here if it predicts rows from related ones.
    `save_pretrained` then writes a checkpoint that every Auto class loads once lighttoken is imported. Raises
    LighttokenError if the compressed table has another shape than the model's, for another `tie`, or without the
    right tokenizer.
    """
    check_tie(tie)
    if tokenizer is not None:
        compressed = compressed.with_tokenizer(tokenizer)
    shared = replace_embedding(model, compressed, tie)
    if model.get_output_embeddings() is None:  # a head that the body gets later
        shared = getattr(model.config.get_text_config(), "tie_word_embeddings", True)
    attach(model, compressed, tie if shared else "untie")
    return model


def check_tie(tie: str) -> None:
    """Raise LighttokenError for a `tie` that there is not."""
    if tie not in get_args(Tie):
        raise LighttokenError(f"unknown tie={tie!r}; choose one of {', '.join(get_args(Tie))}")
