"""What a run takes from another run: the body to start from, the teacher to learn from."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from lighttoken.backbone.replace import find_embedding
from lighttoken.backbone.source import no_load_report
from lighttoken.errors import LighttokenError
from lighttoken.run.reading import RECORD_FILE, read_record, reason_of
from lighttoken.run.records import MODEL_FOLDER


def load_body(model: PreTrainedModel, run: Path) -> None:
    """Copy the parameters of the body, without the token embedding and the head, from a run that kept its model.

    The pooler, which a model for question answering lacks, is copied if the run has one. Raises LighttokenError if the
    run kept no model, if its backbone is another one, or if its files are damaged.
    """
    files = sorted((run / MODEL_FOLDER).glob("*.safetensors"))
    if not files:
        raise LighttokenError(f"init_from={run} has no {MODEL_FOLDER}/ in it; run that task with save_model=true first")
    with _one_line(f"init_from={run}"):
        state = {name: tensor for file in files for name, tensor in load_file(file).items()}
        config = AutoConfig.from_pretrained(run / MODEL_FOLDER, local_files_only=True, trust_remote_code=False)
    _check_vocabulary(f"init_from={run}", config, model)
    table, body = find_embedding(model).weight, model.base_model
    prefix = "" if body is model else model.base_model_prefix
    parameters = {
        name: parameter
        for name, parameter in body.named_parameters(prefix=prefix)
        if parameter is not table and (name in state or "pooler" not in name)
    }
    unfit = [
        name for name, parameter in parameters.items() if name not in state or state[name].shape != parameter.shape
    ]
    if unfit:
        raise LighttokenError(
            f"init_from={run} is the run of another backbone: {len(unfit)} weights do not fit, the first {unfit[0]}; "
            "choose a run of the same model"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def load_teacher(model: PreTrainedModel, run: Path, task: str) -> PreTrainedModel:
    """The fine-tuned model of a run that kept its model, as the teacher of a model of the same task.

    Raises LighttokenError if the run kept no model, if its task or its kind of backbone is another one, or if its files
    are damaged.
    """
    if not (run / MODEL_FOLDER / "config.json").is_file() or not (run / RECORD_FILE).is_file():
        raise LighttokenError(f"distill={run} has no {MODEL_FOLDER}/ in it; run the task with save_model=true first")
    with _one_line(f"distill={run}"):
        other = read_record(run / RECORD_FILE)["task"]
    if other != task:
        raise LighttokenError(f"distill={run} is a run of task={other} and this is task={task}; choose one of {task}")
    with _one_line(f"distill={run}"), no_load_report():  # the error below says what the report would list
        loaded: Any = type(model).from_pretrained(run / MODEL_FOLDER, output_loading_info=True)
    teacher: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise LighttokenError(
            f"distill={run} is the run of another backbone: it lacks {len(missing)} weights of {type(model).__name__}, "
            f"the first {missing[0]}; choose a run of the same kind of model"
        )
    _check_vocabulary(f"distill={run}", teacher.config, model)
    if teacher.config.id2label != model.config.id2label:
        labels = [", ".join((config.id2label or {}).values()) for config in (teacher.config, model.config)]
        raise LighttokenError(
            f"distill={run} answers with {labels[0]} and this task has {labels[1]}; choose a run of the same task"
        )
    return teacher


def _check_vocabulary(run: str, config: PretrainedConfig, model: PreTrainedModel) -> None:
    """Raise LighttokenError if a run's model reads other ids: bodies of equal shapes may have other vocabularies."""
    theirs, ours = (part.get_text_config().vocab_size for part in (config, model.config))
    if theirs != ours:
        raise LighttokenError(
            f"{run} is the run of another backbone: its vocabulary has {theirs} tokens and this one {ours}; choose a "
            "run of the same model"
        )


@contextmanager
def _one_line(run: str) -> Iterator[None]:
    """Turn whatever the files of another run raise into a LighttokenError of one line."""
    try:
        yield
    except Exception as error:
        raise LighttokenError(
            f"{run} cannot be read ({reason_of(error, 120)}); run it again with save_model=true, or choose another"
        ) from error
