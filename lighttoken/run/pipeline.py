"""A run: load, compress, heal, measure, fine-tune if the task trains, evaluate, and write the record."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class, instantiate
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.precision import Precision
from omegaconf import DictConfig
from transformers import PreTrainedModel

from lighttoken.artifact.files import make_directory, write_atomically, write_folder
from lighttoken.artifact.table import CompressedTable
from lighttoken.backbone.card import CARD_FILE, model_card
from lighttoken.backbone.checkpoint import save_with_tokenizer
from lighttoken.backbone.embedding import CompressedEmbedding, CompressedHead
from lighttoken.backbone.language_model import shared_copy
from lighttoken.backbone.precision import reduce_precision
from lighttoken.backbone.replace import find_table, position_count, shares_table
from lighttoken.backbone.source import Backbone
from lighttoken.backbone.swap import swap_embedding
from lighttoken.codec import Choice, Stored, Uncompressed
from lighttoken.errors import LighttokenError
from lighttoken.run.answers import write_answers
from lighttoken.run.artifacts import ArtifactCache
from lighttoken.run.checkpoints import CHECKPOINT_FILE, find_checkpoint
from lighttoken.run.distributed import first_process_first, open_trainer
from lighttoken.run.healing import check_healing, heal_once
from lighttoken.run.libraries import quiet_libraries
from lighttoken.run.measure import bytes_by_part, common_frequencies, measure_artifact, measure_table
from lighttoken.run.process import rank
from lighttoken.run.records import MODEL_FOLDER, RECORD_FILE, Record, command_line, find_reference, settings_of, settle
from lighttoken.run.scores import check_metrics
from lighttoken.run.screen import print_closing_table
from lighttoken.run.tracking import log_result, log_sizes, open_loggers
from lighttoken.run.trainer import check_finite, load_best, resumable, resume_folder
from lighttoken.run.transfer import load_body, load_teacher
from lighttoken.tasks.data import TaskData
from lighttoken.tasks.shares import AnswerKeeper, in_order

log = logging.getLogger(__name__)


@dataclass
class Run:
    """What the steps of a run share."""

    config: DictConfig
    record: Record
    loggers: list[Logger]
    backbone: Backbone
    codec: Choice
    trainer: L.Trainer
    data: TaskData
    model: PreTrainedModel  # the backbone with the head of the task
    teacher: PreTrainedModel | None  # to learn from
    original: PreTrainedModel  # to compare with: of a task without training, a copy that shares the weights of `model`
    table: torch.Tensor  # (V, d), the original one; of codec=stored the decoded one


def train(config: DictConfig) -> Record:
    """Compress the table of a backbone, swap it in, fine-tune, evaluate, write the record; print the closing table."""
    quiet_libraries(config.progress)
    settle(config)
    backbone: Backbone = instantiate(config.model)
    codec: Choice = instantiate(config.codec)
    record = new_record(config, backbone, codec)
    loggers: list[Logger] = [] if rank() else list(instantiate(config.logger or {}).values())
    with (
        resumable(config),
        saying_what_is_kept(config, record),
        record.running(),
        open_trainer(config, loggers, record) as trainer,
    ):
        with record.phase("load"):  # the task's rows, the backbone with the head of the task
            run = load(config, backbone, codec, record, loggers, trainer)
        with open_loggers(loggers, record):  # only now: a run that cannot be does not appear in W&B
            with record.phase("compress"):  # make the compressed table, or read an artifact; swap it in
                compressed = compress(run)
            if config.heal:
                with record.phase("heal"):  # adapt the backbone to the compressed table, on texts without labels
                    heal_backbone(run, compressed)
            with record.phase("measure"):  # the table's spectrum and bound, the artifact's errors and bytes
                measure(run, compressed)
            if run.data.trains:
                with record.phase("finetune"):  # train the model around the compressed table
                    module = fine_tune(run)
            else:  # a zero-shot task scores the model as it is
                module = scorer(run)
            with record.phase("evaluate"):  # score the model in the precision that it is stored in
                evaluate(run, module)
            if config.predict:
                with record.phase("predict"):  # answer the test split
                    predict(run, module)
            reference = find_reference(record, Path(config.output_dir))
            for logger in loggers:
                log_result(logger, record, reference)
    if rank() == 0:
        print_closing_table(record, reference)
    return record


@contextmanager
def saying_what_is_kept(config: DictConfig, record: Record) -> Iterator[None]:
    """When a signal ends the run, add to the exception what is kept of it and how to go on."""
    try:
        yield
    except SystemExit as error:
        checkpoint = resume_folder(config) / CHECKPOINT_FILE
        resumes = config.resume and checkpoint.is_file()
        kept = [str(record.directory / RECORD_FILE), record.artifact, str(checkpoint) if resumes else None]
        error.add_note(f"kept {', '.join(filter(None, kept))}")
        if resumes:
            error.add_note("the same command goes on from this checkpoint")
        else:
            how = "" if config.resume else "; with resume=true it would keep a checkpoint of every epoch"
            error.add_note(f"the same command starts again{how}")
        raise


def new_record(config: DictConfig, backbone: Backbone, codec: Choice) -> Record:
    """The record of a run that has not started."""
    return Record(
        directory=Path(HydraConfig.get().runtime.output_dir),
        config=settings_of(config),
        model=backbone.label,
        task=config.task.name,
        codec=codec.name,
        seed=config.seed,
        command=command_line(),
        ratio_asked=None if isinstance(codec, Uncompressed | Stored) else config.ratio,
    )


def load(
    config: DictConfig, backbone: Backbone, codec: Choice, record: Record, loggers: list[Logger], trainer: L.Trainer
) -> Run:
    """Read and build everything that a run needs, and enter the sizes of the uncompressed model."""
    torch.set_float32_matmul_precision("highest")  # for the codec, whatever an earlier job has set
    if trainer.strategy.root_device.type == "cpu":
        record.hardware["accelerator"] = "none"  # this run leaves an accelerator of the machine unused
    with first_process_first(trainer):  # the others find the tokenised rows in the cache
        data = load_data(config, backbone)
    if config.heal:
        check_healing(instantiate(config.heal), backbone, data)
    model, teacher = load_models(config, data, backbone)
    # Healing changes weights in place, which a shared copy would see.
    original = model if data.trains else copy.deepcopy(model) if config.heal else shared_copy(model)
    table = find_table(model, stored=isinstance(codec, Stored))
    record.add_model(model, table)
    return Run(config, record, loggers, backbone, codec, trainer, data, model, teacher, original, table)


def load_data(config: DictConfig, backbone: Backbone) -> TaskData:
    """The task's rows, tokenised. Raises LighttokenError for `predict` without rows to answer, and `check_metrics`."""
    task: Any = get_class(config.task._target_)
    data: TaskData = instantiate(config.task, tokenizer=backbone.tokenizer(task.pads))
    data.prepare_data()
    data.setup()
    check_metrics(data.metrics)
    if config.predict:
        data.predict_dataloader()
    return data


def load_models(
    config: DictConfig, data: TaskData, backbone: Backbone
) -> tuple[PreTrainedModel, PreTrainedModel | None]:
    """The backbone with the task's head, and the teacher if the config names one.

    Raises LighttokenError if the task has rows that are longer than the backbone takes.
    """
    L.seed_everything(config.seed, verbose=False)
    model = data.make_model(backbone)
    longest = max(max(rows["length"]) for rows in data.splits.values())
    if (limit := position_count(model)) and longest > limit:
        raise LighttokenError(
            f"task={config.task.name} has rows of {longest} tokens and model={backbone.label} takes {limit}; "
            f"set task.{data.length_key}={limit}"
        )
    if config.distill and not data.trains:
        raise LighttokenError(f"task={config.task.name} trains nothing; leave out distill={config.distill}")
    if config.init_from:
        load_body(model, Path(config.init_from))
    return model, load_teacher(model, Path(config.distill), config.task.name) if config.distill else None


def compress(run: Run) -> CompressedTable | None:
    """Make the compressed table, or read its artifact, and swap it in; None with codec=none."""
    config, record, compressed = run.config, run.record, None
    if isinstance(run.codec, Uncompressed):
        record.add_artifact(record.table_bytes)
    elif isinstance(run.codec, Stored):
        embedding: Any = run.model.get_input_embeddings()
        compressed = embedding.compressed_table()
        record.add_artifact(compressed.nbytes)
        record.healing = getattr(run.model.config, "healing", {})  # of the checkpoint, if it was healed
        record.tie = "compressed" if isinstance(run.model.get_output_embeddings(), CompressedHead) else None
    else:
        cache = ArtifactCache(Path(config.output_dir), config.progress, run.loggers)
        head = run.model.get_output_embeddings() is not None
        with first_process_first(run.trainer):
            artifact = cache.get(run.table, run.backbone, run.codec, config.ratio, config.seed, head, config.tie)
        compressed = artifact.compressed
        record.add_artifact(compressed.nbytes, artifact.directory, artifact.reused)
        record.peak_memory_tables = artifact.peak_memory
        record.tie = config.tie if shares_table(run.model) else None
        swap_embedding(run.model, compressed, config.tie)
    log_sizes(run.loggers, record)
    return compressed


def heal_backbone(run: Run, compressed: CompressedTable | None) -> None:
    """Give the model a body that is adapted to the compressed table; with codec=none there is nothing to adapt to."""
    config, record = run.config, run.record
    if compressed is None:
        log.info("codec=none has nothing to heal")
        return
    with first_process_first(run.trainer):
        healed = heal_once(
            Path(config.output_dir),
            Path(str(record.artifact)),
            run.backbone,
            compressed,
            instantiate(config.heal),
            run.data,
            config.seed,
            loggers=run.loggers,
            progress=config.progress,
            accelerator=config.trainer.accelerator,
            precision=config.trainer.get("precision"),
        )
    healed.put_into(run.model)
    record.healing = healed.summary


def measure(run: Run, compressed: CompressedTable | None) -> None:
    """Enter what the record says of the table and of the artifact: spectrum, bound, errors, bytes by part."""
    if not run.trainer.is_global_zero:
        return
    if compressed is not None and isinstance(run.codec, Stored):  # the original table is not there
        run.record.compression = compressed.summary | {"bytes_by_part": bytes_by_part(compressed)}
    else:
        run.record.table = measure_table(run.table)
        if compressed is not None:
            frequencies = common_frequencies(run.data.tokenizer, len(run.table))
            run.record.compression = compressed.summary | measure_artifact(run.table, compressed, frequencies)
    run.record.save()  # a dashboard can show it while the model is fine-tuned


def fine_tune(run: Run) -> L.LightningModule:
    """Train the model, from the checkpoint of a killed run if there is one.

    Raises LighttokenError if a loss or a score is not finite.
    """
    config, record, data = run.config, run.record, run.data
    module: L.LightningModule = instantiate(
        config.finetune,
        model=run.model,
        metrics=data.metrics,
        splits=data.eval_names,
        teacher=run.teacher,
        _recursive_=False,
    )
    torch.set_float32_matmul_precision(config.matmul_precision)
    # Seed again: batches and dropout are the same for every codec, however many numbers it has drawn.
    L.seed_everything(config.seed, verbose=False)
    with first_process_first(run.trainer):  # which puts a damaged checkpoint aside
        checkpoint = find_checkpoint(resume_folder(config)) if config.resume else None
    if checkpoint:
        record.resumed = str(checkpoint)
        log.info("continuing from %s", checkpoint)
        callbacks = torch.load(checkpoint, weights_only=True, mmap=True)["callbacks"]
        record.seconds["finetune"] = callbacks["Timer"]["time_elapsed"]["train"]  # of the run that was killed
    run.trainer.fit(module, data, ckpt_path=record.resumed, weights_only=True)
    check_finite(run.trainer.callback_metrics, config)
    return module


def scorer(run: Run) -> L.LightningModule:
    """The module that scores the model of a task without training, beside the original model."""
    unchanged = isinstance(run.codec, Uncompressed | Stored) and run.config.backbone_precision == "float32"
    return run.data.scorer(run.model, run.model if unchanged else run.original)


def evaluate(run: Run, module: L.LightningModule) -> None:
    """Score the model in the precision that it is stored in, and save it if the config says so.

    Raises LighttokenError if a loss or a score is not finite.
    """
    config, record, trainer, data = run.config, run.record, run.trainer, run.data
    load_best(trainer, module, keep=config.resume)
    if config.save_model and trainer.is_global_zero:
        with write_folder(record.directory / MODEL_FOLDER) as folder:
            save_with_tokenizer(run.model, data.tokenizer, folder)
    reduce_precision(run.model, config.backbone_precision)
    record.add_stored_model(run.model)
    if config.backbone_precision in ("float16", "bfloat16"):  # autocast would compute in another precision
        trainer.strategy.precision_plugin = Precision()
    keeper = AnswerKeeper()
    trainer.callbacks.append(keeper)  # type: ignore[attr-defined]
    trainer.validate(module, data, verbose=False)
    write_answers(keeper.answers(data.eval_names), record.directory)
    scores = trainer.callback_metrics
    check_finite(scores, config)
    prefixes = tuple(f"{name}/" for name in data.eval_names)
    record.metrics = {name: float(scores[name]) for name in scores if name.startswith(prefixes)}
    record.constant = data.constant_scores()
    if config.save_model and trainer.is_global_zero:
        write_card(run, record.directory / MODEL_FOLDER)


def write_card(run: Run, folder: Path) -> None:
    """The model card of a fine-tuned model, with its scores."""
    record, embedding = run.record, run.model.get_input_embeddings()
    compressed = embedding.compressed_table() if isinstance(embedding, CompressedEmbedding) else None
    scores = {f"{record.task} {name}": score for name, score in record.metrics.items()}
    card = model_card(
        record.model,
        type(run.model).__name__,
        compressed,
        folder,
        command=record.command,
        healing=record.healing,
        scores=scores,
    )
    write_atomically(folder / CARD_FILE, card.encode())


def predict(run: Run, module: L.LightningModule) -> None:
    """Answer the test split, in `predictions/` of the run folder."""
    answers: Any = run.trainer.predict(module, run.data)
    answers = [in_order(batches) for batches in (answers if isinstance(answers[0], list) else [answers])]
    if run.trainer.is_global_zero:
        folder = run.record.directory / "predictions"
        make_directory(folder)
        run.data.write_answers(answers, folder)
