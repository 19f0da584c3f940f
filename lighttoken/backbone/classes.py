"""The classes of a sentence-classification head: their names decide which logit is which."""

import logging
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from lighttoken.errors import LighttokenError

log = logging.getLogger(__name__)


def order_classes(
    model: PreTrainedModel, stored: Mapping[int, str], wanted: Sequence[str], new: Collection[str], label: str
) -> None:
    """Bring the classes of a head that a checkpoint brought along into the order of a task, in place.

    `stored` are the checkpoint's own names of classes, by number; `wanted` the task's, in order; `new` the parameters
    that were not in the checkpoint. A new head has no order yet. A head whose classes have no names (LABEL_0, ...) is
    left as it is, with a warning. Raises LighttokenError if the names are not those of the task.
    """
    prefix = f"{model.base_model_prefix}."
    heads = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == len(wanted) and not name.startswith(prefix)
    }
    name, head = list(heads.items())[-1] if heads else ("", None)
    if head is None or f"{name}.weight" in new:
        return
    theirs, ours = [_plain(stored[i]) for i in range(len(wanted))], list(map(_plain, wanted))
    if theirs == ours:
        return
    if theirs == [f"label_{i}" for i in range(len(wanted))]:
        log.warning("model=%s has no names for its classes; they are taken to be %s", label, ", ".join(wanted))
        return
    if sorted(theirs) != sorted(ours):
        raise LighttokenError(
            f"the classes of model={label} are {', '.join(stored.values())} and the task's are {', '.join(wanted)}; "
            "if they mean the same, rename them in id2label of its config.json, else use a checkpoint without this head"
        )
    order = [theirs.index(entry) for entry in ours]
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter[order])


def _plain(name: str) -> str:
    """A name as it compares: CONTRADICTION, Contradiction and contradiction are one class."""
    return name.casefold().replace("-", "_").replace(" ", "_")
