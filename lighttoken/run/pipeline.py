"""The run as a story: table -> compressed table -> backbone -> fine-tune -> record."""

import logging
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.plugins.precision import Precision
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel

from lighttoken.artifact.files import make_directory
from lighttoken.artifact.table import CompressedTable
from lighttoken.backbone.precision import model_bytes, reduce_precision
from lighttoken.backbone.replace import find_embedding, position_count
from lighttoken.backbone.source import Backbone
from lighttoken.backbone.swap import swap_embedding
from lighttoken.codec import Codec, Uncompressed
from lighttoken.errors import LighttokenError
from lighttoken.run.artifacts import ArtifactCache
from lighttoken.run.libraries import quiet_libraries
from lighttoken.run.measure import common_frequencies, measure_artifact, measure_table
from lighttoken.run.records import MODEL_FOLDER, Record, find_reference, make_paths_absolute
from lighttoken.run.screen import print_closing_table
from lighttoken.run.tracking import close_run
from lighttoken.run.trainer import (
    CHECKPOINT_FILE,
    check_precisions,
    load_best,
    make_trainer,
    open_loggers,
    resume_folder,
)
from lighttoken.run.transfer import load_body, load_teacher
from lighttoken.tasks.data import TaskData

log = logging.getLogger(__name__)


def train(config: DictConfig) -> Record:
    """Compress the table of a backbone, put it in, fine-tune, evaluate, write the record; prints the closing table."""
    quiet_libraries(config.progress)
    torch.set_float32_matmul_precision("highest")  # for the codec, whatever a job before this one has left
    make_paths_absolute(config)
    backbone: Backbone = instantiate(config.model)
    codec: Codec | Uncompressed = instantiate(config.codec)
    record = new_record(config, backbone, codec)
    with record.running(), open_loggers(config, record) as loggers:
        with record.phase("load"):
            check_precisions(config)  # what can be known before hours of work
            trainer = make_trainer(config, loggers, record.directory)
            if trainer.strategy.root_device.type == "cpu":
                record.hardware["accelerator"] = "none"  # that is there was not asked for
            data = load_data(config, backbone)
            model, teacher = load_models(config, data, backbone)
            table = find_embedding(model).weight.detach()
            record.table_bytes = record.artifact_bytes = table.numel() * 4
            record.model_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())

        with record.phase("compress"):
            compressed: CompressedTable | None = None
            if not isinstance(codec, Uncompressed):
                compressed = put_in(config, model, table, backbone, codec, record, loggers)
            record.ratio = record.table_bytes / record.artifact_bytes
            sizes = {"table/ratio": record.ratio, "table/bytes": float(record.artifact_bytes)}
            for logger in loggers:
                logger.log_metrics(sizes, step=0)

        with record.phase("measure"):
            record.table = measure_table(table)
            if compressed is not None:
                frequencies = common_frequencies(data.tokenizer, len(table))
                record.compression = compressed.summary | measure_artifact(table, compressed, frequencies)
            record.save()  # a dashboard can show it while the model is fine-tuned

        with record.phase("finetune"):
            module = fine_tune(config, trainer, data, model, teacher, record)

        with record.phase("evaluate"):
            evaluate(config, trainer, data, module, record)

        if config.predict:
            with record.phase("predict"):
                folder = record.directory / "predictions"
                make_directory(folder)
                answered: Any = trainer.predict(module, data)
                data.write_answers(answered if isinstance(answered[0], list) else [answered], folder)

        reference = find_reference(record, Path(config.output_dir))
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                close_run(logger.experiment, record, reference)
    if config.resume:
        shutil.rmtree(resume_folder(config), ignore_errors=True)
    print_closing_table(record, reference)
    return record


def new_record(config: DictConfig, backbone: Backbone, codec: Codec | Uncompressed) -> Record:
    """What is known of a run before it starts."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return Record(
        directory=Path(HydraConfig.get().runtime.output_dir),
        config=plain,
        model=backbone.label,
        task=config.task.name,
        codec=codec.name,
        seed=config.seed,
        ratio_asked=None if isinstance(codec, Uncompressed) else config.ratio,
    )


def load_data(config: DictConfig, backbone: Backbone) -> TaskData:
    """The task's rows, tokenised. Raises LighttokenError if there is none to answer and `predict` asks for answers."""
    data: TaskData = instantiate(config.task, tokenizer=backbone.tokenizer())
    data.prepare_data()
    data.setup()
    if config.predict:
        data.predict_dataloader()
    return data


def load_models(
    config: DictConfig, data: TaskData, backbone: Backbone
) -> tuple[PreTrainedModel, PreTrainedModel | None]:
    """The backbone with the task's head, and the teacher if there is one.

    Raises LighttokenError if the task has rows that are longer than the backbone takes.
    """
    L.seed_everything(config.seed, verbose=False)
    model = data.make_model(backbone)
    longest = max(max(rows["length"]) for rows in data.splits.values())
    if (places := position_count(model)) and longest > places:
        raise LighttokenError(
            f"task={config.task.name} has rows of {longest} tokens and model={backbone.label} takes {places}; "
            f"set task.max_length={places}"
        )
    if config.init_from:
        load_body(model, Path(config.init_from))
    return model, load_teacher(model, Path(config.distill), config.task.name) if config.distill else None


def put_in(
    config: DictConfig,
    model: PreTrainedModel,
    table: torch.Tensor,
    backbone: Backbone,
    codec: Codec,
    record: Record,
    loggers: list[Logger],
) -> CompressedTable:
    """The compressed table, made or read, in the place of the dense one."""
    cache = ArtifactCache(Path(config.output_dir), config.progress, loggers)
    artifact = cache.get(table, backbone, codec, config.ratio, config.seed)
    record.artifact, record.artifact_reused = str(artifact.directory), artifact.reused
    record.artifact_bytes = artifact.compressed.nbytes
    swap_embedding(model, artifact.compressed)
    return artifact.compressed


def fine_tune(
    config: DictConfig,
    trainer: L.Trainer,
    data: TaskData,
    model: PreTrainedModel,
    teacher: PreTrainedModel | None,
    record: Record,
) -> L.LightningModule:
    """Train the model, from the checkpoint of a run that was killed if there is one."""
    told = {"model": model, "metrics": data.metrics, "splits": data.eval_names, "teacher": teacher}
    module: L.LightningModule = instantiate(config.finetune, **told, _recursive_=False)
    torch.set_float32_matmul_precision(config.matmul_precision)
    # Again: whatever the codec drew, batches and dropout are the same for all.
    L.seed_everything(config.seed, verbose=False)
    checkpoint = resume_folder(config) / CHECKPOINT_FILE
    if config.resume and checkpoint.is_file():
        record.resumed = str(checkpoint)
        log.info("going on from %s", checkpoint)
        kept = torch.load(checkpoint, weights_only=True, mmap=True)["callbacks"]
        record.seconds["finetune"] = kept["Timer"]["time_elapsed"]["train"]  # what it took before it was killed
    trainer.fit(module, data, ckpt_path=record.resumed, weights_only=True)
    return module


def evaluate(config: DictConfig, trainer: L.Trainer, data: TaskData, module: L.LightningModule, record: Record) -> None:
    """Score the model as it is stored, and keep it if that is asked."""
    load_best(trainer, module, keep=config.resume)
    model: Any = module.model
    if config.save_model:
        model.save_pretrained(record.directory / MODEL_FOLDER)
        data.tokenizer.save_pretrained(record.directory / MODEL_FOLDER)
    reduce_precision(model, config.backbone_precision)
    record.stored_bytes = model_bytes(model)
    if config.backbone_precision in ("float16", "bfloat16"):  # autocast would compute in another one
        trainer.strategy.precision_plugin = Precision()
    trainer.validate(module, data, verbose=False)
    scores = trainer.callback_metrics
    names = tuple(f"{name}/" for name in data.eval_names)
    record.metrics = {name: float(scores[name]) for name in scores if name.startswith(names)}
