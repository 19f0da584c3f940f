"""Language models, body and head apart: the logits of a few positions at a time, and a copy that shares the weights."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import ModelOutput


def is_masked(config: PretrainedConfig) -> bool:
    """Whether a checkpoint predicts masked tokens, as BERT does, and not the next one."""
    names = config.architectures or [""]
    decodes = getattr(config, "is_decoder", False) or names[0].endswith(("ForCausalLM", "LMHeadModel"))
    if config.model_type in ("xlm", "flaubert"):  # whose masked models have a class of the second name
        decodes = config.causal
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decodes


def predicts_tokens(class_name: str) -> bool:
    """Whether a class of models has a head that predicts tokens."""
    return class_name.endswith(("ForCausalLM", "ForMaskedLM", "LMHeadModel"))


def body_output(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> ModelOutput:
    """What the body of a language model returns: `last_hidden_state` (batch, length, d) and more."""
    return model.base_model(**inputs)


def head_logits(model: PreTrainedModel, output: ModelOutput, states: Tensor) -> Tensor:
    """The logits (n, V) of a language model for some last hidden states (n, d) of its body.

    V may be 262,144, so the logits of all positions of a batch do not fit into memory. What follows the body differs
    between models (a transform, a scale, a soft cap), so the model itself runs, with `states` in the place of what its
    body has returned.
    """
    replaced = copy.copy(output)
    replaced.last_hidden_state = states.unsqueeze(0)
    body = model.base_model
    decoder = getattr(body, "decoder", None)  # which OPT's and BART's causal models call instead of their body
    bodies: list[Any] = [body, *([decoder] if isinstance(decoder, PreTrainedModel) else [])]
    for part in bodies:
        part.forward = lambda *_, **__: replaced
    try:
        nothing = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
        return model(input_ids=nothing).logits.squeeze(0)
    finally:
        for part in bodies:
            del part.forward  # the method of its class is visible again


def shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model that shares the memory of all weights.

    A change of precision, or another embedding, leaves the other of the two models as it is. Not for training.
    """
    shared: dict[int, object] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    return copy.deepcopy(model, shared)
