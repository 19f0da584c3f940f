"""What a run takes from another one: the body to start from, the model to learn from."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from lighttoken.backbone.replace import find_embedding
from lighttoken.backbone.source import no_load_report
from lighttoken.errors import LighttokenError
from lighttoken.run.records import MODEL_FOLDER, RECORD_FILE


def load_body(model: PreTrainedModel, run: Path) -> None:
    """Take the weights of the body, but for the token embedding and the head, from a run that kept its model.

    A pooler, which readers lack, is taken if the run has one. Raises LighttokenError if there is no such run, or if it
    is that of another backbone.
    """
    files = sorted((run / MODEL_FOLDER).glob("*.safetensors"))
    if not files:
        raise LighttokenError(f"init_from={run} has no {MODEL_FOLDER}/ in it; run that task with save_model=true first")
    state = {name: each for file in files for name, each in load_file(file).items()}
    table, body = find_embedding(model).weight, model.base_model
    prefix = "" if body is model else model.base_model_prefix
    wanted = {
        name: each
        for name, each in body.named_parameters(prefix=prefix)
        if each is not table and (name in state or "pooler" not in name)
    }
    unfit = [name for name, each in wanted.items() if name not in state or state[name].shape != each.shape]
    if unfit:
        raise LighttokenError(
            f"init_from={run} is the run of another backbone: {len(unfit)} weights do not fit, the first {unfit[0]}; "
            "choose a run of the same model"
        )
    with torch.no_grad():
        for name, each in wanted.items():
            each.copy_(state[name])


def load_teacher(model: PreTrainedModel, run: Path, task: str) -> PreTrainedModel:
    """The fine-tuned model of a run that kept its model, for a model of the same task to learn from.

    Raises LighttokenError if there is none, or if it is that of another task or another kind of backbone.
    """
    if not (run / MODEL_FOLDER / "config.json").is_file() or not (run / RECORD_FILE).is_file():
        raise LighttokenError(f"distill={run} has no {MODEL_FOLDER}/ in it; run the task with save_model=true first")
    of = json.loads((run / RECORD_FILE).read_bytes())["task"]
    if of != task:
        raise LighttokenError(f"distill={run} is a run of task={of} and this is task={task}; choose one of {task}")
    with no_load_report():  # what it would list is in the error
        loaded: Any = type(model).from_pretrained(run / MODEL_FOLDER, output_loading_info=True)
    teacher: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise LighttokenError(
            f"distill={run} is the run of another backbone: it lacks {len(missing)} weights of {type(model).__name__}, "
            f"the first {missing[0]}; choose a run of the same kind of model"
        )
    return teacher
