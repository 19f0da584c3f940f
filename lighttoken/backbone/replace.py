"""Finding the token embedding of a transformers model, and replacing the module by a compressed one."""

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from lighttoken.artifact.table import CompressedTable
from lighttoken.backbone.embedding import CompressedEmbedding, CompressedHead, SharedEmbedding, Tie
from lighttoken.errors import LighttokenError


def find_embedding(model: nn.Module) -> nn.Embedding:
    """The token embedding of any transformers model. Raises LighttokenError if it has none, or not a dense one."""
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except (NotImplementedError, AttributeError) as error:  # CLIP has two towers, CANINE hashes characters
        raise LighttokenError(
            f"{type(model).__name__} names no token embedding; compress the model inside it that has one, as CLIP's "
            "text model, if any"
        ) from error
    if isinstance(embedding, CompressedEmbedding):
        raise LighttokenError(
            f"the table of {type(model).__name__} is compressed already, {embedding.ratio:.1f}x smaller; load the "
            "original, or train and score this one with codec=stored"
        )
    scaled = hasattr(embedding, "embed_scale")  # as BART's and Gemma's
    if not isinstance(embedding, nn.Embedding) or not (type(embedding) is nn.Embedding or scaled):
        raise LighttokenError(
            f"{type(model).__name__} has {type(embedding).__name__} as its token embedding, not nn.Embedding; "
            "load a checkpoint whose table is dense"
        )
    return embedding


def find_table(model: nn.Module, stored: bool = False) -> Tensor:
    """The table (V, d) of a model; with `stored` the decoded one of a compressed embedding.

    Raises LighttokenError as `find_embedding` does, and with `stored` if the embedding is not compressed.
    """
    if not stored:
        return find_embedding(model).weight.detach()
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    if not isinstance(embedding, CompressedEmbedding):
        raise LighttokenError(
            f"codec=stored keeps a compressed table, and {type(model).__name__} has {type(embedding).__name__}; set "
            "model.path to a compressed checkpoint, or codec=none"
        )
    return embedding.weight


def position_count(model: PreTrainedModel) -> int | None:
    """The most tokens of a model that adds a learned vector to every position; None for other models."""
    for name, module in model.named_modules():
        # The names in BERT, GPT-2 and BART.
        if name.endswith(("position_embeddings", "wpe", "embed_positions")) and isinstance(module, nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - max(unused, getattr(module, "offset", 0))
    return None


def shares_table(model: PreTrainedModel) -> bool:
    """Whether a model has an output head that computes with the rows of its token embedding."""
    head: Any = model.get_output_embeddings()
    return head is not None and head.weight is find_embedding(model).weight


def replace_embedding(model: PreTrainedModel, compressed: CompressedTable, tie: Tie) -> bool:
    """Put a compressed embedding in the place of the dense one, on its device and in its precision.

    Returns whether the output head shared the table.
    """
    old = find_embedding(model)
    head: Any = model.get_output_embeddings()
    if tuple(old.weight.shape) != compressed.shape:
        raise LighttokenError(
            f"the compressed table is {compressed.shape[0]} x {compressed.shape[1]} and the model's is "
            f"{old.weight.shape[0]} x {old.weight.shape[1]}; compress the table of this model"
        )
    scale = getattr(old, "embed_scale", 1.0)
    round_scale = isinstance(scale, Tensor)  # the tensor is empty while a model loads: the number is next to it
    number = float(getattr(old, "scalar_embed_scale", 1.0) if round_scale else scale)
    new = CompressedEmbedding(compressed, padding_idx=old.padding_idx, scale=number, round_scale=round_scale)
    new = new.to(old.weight.device, old.weight.dtype)
    sharers: dict[str, Any] = {
        target.removesuffix(".weight"): model.get_submodule(target.removesuffix(".weight"))
        for target in _forget_ties(model, old)
    }
    model.set_input_embeddings(new)
    model.resize_token_embeddings = partial(refuse_resizing, model)  # type: ignore[assignment, method-assign]
    for path, module in sharers.items():
        if module is not head:
            model.set_submodule(path, SharedEmbedding(new))
        elif tie == "compressed":
            model.set_submodule(path, CompressedHead(new, head.bias))
        else:
            head.weight = nn.Parameter(old.weight.detach().clone(), requires_grad=old.weight.requires_grad)
    return head in sharers.values()


def refuse_resizing(model: PreTrainedModel, new_num_tokens: int | None = None, *_: Any, **__: Any) -> nn.Module:
    """Stands in for `resize_token_embeddings` of a swapped model: the table keeps its rows.

    Returns the embedding if the size stays the same. Raises LighttokenError for another size.
    """
    embedding: Any = model.get_input_embeddings()
    if new_num_tokens not in (None, embedding.num_embeddings):
        raise LighttokenError(
            f"a compressed table of {embedding.num_embeddings} rows cannot be resized to {new_num_tokens}; add tokens "
            "and resize the original model before its table is compressed"
        )
    return embedding


def _forget_ties(model: PreTrainedModel, embedding: nn.Embedding) -> list[str]:
    """Make transformers forget which weights it ties to the table; their names.

    Raises LighttokenError if the table is itself tied to another.
    """
    source = next(name for name, module in model.named_modules() if module is embedding) + ".weight"
    if source in model.all_tied_weights_keys:  # as Marian's encoder, whose own embedding the model calls its input
        raise LighttokenError(
            f"{type(model).__name__} ties its input embedding {source} to {model.all_tied_weights_keys[source]}, which "
            "cannot be swapped yet; models that share it the other way round, as Bart and T5, can"
        )
    tied = [target for target, origin in model.all_tied_weights_keys.items() if origin == source]
    for prefix, part in model.named_modules():
        if isinstance(part, PreTrainedModel):
            for keys in ("_tied_weights_keys", "all_tied_weights_keys"):
                ties = getattr(part, keys, None) or {}
                others = {t: origin for t, origin in ties.items() if f"{prefix}.{origin}".lstrip(".") != source}
                setattr(part, keys, others)
    return tied
