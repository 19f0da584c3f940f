"""The run as a story: table -> compressed table -> backbone -> fine-tune -> record."""

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import lightning as L
import torch
import transformers
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel

from lighttoken import __version__
from lighttoken.artifact import (
    FORMAT_VERSION,
    METADATA_FILE,
    CompressedTable,
    hash_table,
    load_table,
    make_directory,
)
from lighttoken.backbone import (
    MODEL_FOLDER,
    Backbone,
    check_precision,
    find_embedding,
    load_body,
    load_teacher,
    model_bytes,
    reduce_precision,
    swap_embedding,
)
from lighttoken.codec import Codec, Uncompressed, compress_table, compress_to_quality
from lighttoken.codec.lighttoken import LightToken, resolve_device
from lighttoken.codec.metric import backbone_metric
from lighttoken.codec.weighting import special_tokens
from lighttoken.dashboard.wandb_run import close_run, open_run, staging_in
from lighttoken.errors import LighttokenError
from lighttoken.measure import common_frequencies, measure_artifact, measure_table
from lighttoken.records import Record, asked_for, find_reference, make_paths_absolute
from lighttoken.screen import print_closing_table, print_plan, print_rows, size
from lighttoken.tasks.data import TaskData

log = logging.getLogger(__name__)

CHECKPOINT_FILE = "last.ckpt"
MATMUL_PRECISIONS = ("highest", "high", "medium")  # of torch.set_float32_matmul_precision

# What the libraries say on every run, about things that are meant to be as they are.
NOISE = (
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    "Experiment logs directory .* exists and is not empty.*",
    ".*does not have many workers.*",
    ".*will save all targets and predictions in the buffer.*",
)


def train(config: DictConfig) -> Record:
    """Compress the table of a backbone, put it in, fine-tune, evaluate, write the record; prints the closing table."""
    quiet_libraries(config.progress)
    torch.set_float32_matmul_precision("highest")  # for the codec, whatever a job before this one has left
    make_paths_absolute(config)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    backbone: Backbone = instantiate(config.model)
    codec: Codec | Uncompressed = instantiate(config.codec)
    record = Record(
        directory=Path(HydraConfig.get().runtime.output_dir),
        config=plain,
        model=backbone.label,
        task=config.task.name,
        codec=codec.name,
        seed=config.seed,
        ratio_asked=None if isinstance(codec, Uncompressed) else config.ratio,
    )
    with record.running(), open_loggers(config, record) as loggers:
        with record.phase("load"):
            check_precision(config.backbone_precision)  # what can be known before hours of work
            trainer = make_trainer(config, loggers, record.directory)
            data = load_data(config, backbone)
            model, teacher = load_models(config, data, backbone)
            table = find_embedding(model).weight.detach()
            record.table_bytes = record.artifact_bytes = table.numel() * 4
            record.model_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())

        with record.phase("compress"):
            compressed: CompressedTable | None = None
            if not isinstance(codec, Uncompressed):
                compressed, directory, record.artifact_reused = make_artifact(
                    table, backbone, codec, config.ratio, config.seed, config.output_dir, config.progress, loggers
                )
                record.artifact, record.artifact_bytes = str(directory), compressed.nbytes
                swap_embedding(model, compressed)
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
    """The backbone with the task's head, and the teacher if there is one."""
    L.seed_everything(config.seed, verbose=False)
    model = data.make_model(backbone)
    if config.init_from:
        load_body(model, Path(config.init_from))
    return model, load_teacher(model, Path(config.distill)) if config.distill else None


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
    trainer.fit(module, data, ckpt_path=record.resumed, weights_only=True)
    return module


def evaluate(config: DictConfig, trainer: L.Trainer, data: TaskData, module: L.LightningModule, record: Record) -> None:
    """Score the model as it is stored, and keep it if that is asked."""
    load_best(trainer, module)
    model: Any = module.model
    if config.save_model:
        model.save_pretrained(record.directory / MODEL_FOLDER)
        data.tokenizer.save_pretrained(record.directory / MODEL_FOLDER)
    reduce_precision(model, config.backbone_precision)
    record.stored_bytes = model_bytes(model)
    trainer.validate(module, data, verbose=False)
    scores = trainer.callback_metrics
    names = tuple(f"{name}/" for name in data.eval_names)
    record.metrics = {name: float(scores[name]) for name in scores if name.startswith(names)}


def make_trainer(config: DictConfig, loggers: list[Logger], directory: Path) -> L.Trainer:
    """The trainer with its callbacks.

    Raises LighttokenError for callbacks that watch rows which are not held out, and for an unknown `matmul_precision`.
    """
    if config.matmul_precision not in MATMUL_PRECISIONS:
        raise LighttokenError(
            f"unknown matmul_precision={config.matmul_precision!r}; choose one of {', '.join(MATMUL_PRECISIONS)}"
        )
    callbacks: list[L.Callback] = list(instantiate(config.callbacks or {}).values())
    if config.resume:
        last = ModelCheckpoint(resume_folder(config), filename=Path(CHECKPOINT_FILE).stem, save_on_train_epoch_end=True)
        callbacks.append(last)
    if not loggers:  # it refuses to work without one
        callbacks = [each for each in callbacks if not isinstance(each, LearningRateMonitor)]
    watched = [str(each.monitor) for each in callbacks if hasattr(each, "monitor")]
    if not config.task.dev_fraction and any(name.startswith("dev/") for name in watched):
        raise LighttokenError(
            f"callbacks watch {', '.join(watched)} and task.dev_fraction is 0; set task.dev_fraction=0.05"
        )
    return instantiate(
        config.trainer,
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=str(directory),
        enable_progress_bar=config.progress,
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
    )


def load_best(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Take the weights that a checkpoint callback found best on held-out rows; the last ones stay if none was asked."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            module.load_state_dict(torch.load(callback.best_model_path, weights_only=True)["state_dict"])
            Path(callback.best_model_path).unlink()


def resume_folder(config: DictConfig) -> Path:
    """Where a run keeps its checkpoint until it is done: the same for the same command."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    key = hashlib.sha256(json.dumps(asked_for(plain), sort_keys=True).encode()).hexdigest()[:16]
    return Path(config.output_dir) / "resume" / key


def compress(config: DictConfig) -> CompressedTable:
    """Compress the table of a backbone and write the artifact, or a checkpoint of the model with it in."""
    quiet_libraries(config.progress)
    backbone: Backbone = instantiate(config.model)
    codec: Codec | Uncompressed = instantiate(config.codec)
    if isinstance(codec, Uncompressed):
        raise LighttokenError("codec=none has nothing to compress; choose another codec, for example codec=lighttoken")
    output = Path(config.output)
    for file, held in ((METADATA_FILE, "an artifact"), ("config.json", "a checkpoint")):
        if (output / file).exists() and not config.overwrite:
            raise LighttokenError(f"output={output} holds {held} already; choose another folder or add overwrite=true")
    make_directory(output)  # before the work, not after it
    table = backbone.table()
    weights, metric = measure_importance(backbone, codec, len(table), config.seed, config.progress)
    settings: dict[str, Any] = {
        "weights": weights,
        "metric": metric,
        "importance": codec.importance_settings(),
        "seed": config.seed,
        "progress": config.progress,
    }
    if config.quality is None:
        asked, compressed = f"{config.ratio:g}x", compress_table(table, codec, config.ratio, **settings)
    else:
        asked = f"{config.measure} {config.quality:g}"
        compressed = compress_to_quality(table, codec, measure=config.measure, bound=config.quality, **settings)
    rows = [("model", backbone.label)]
    if config.checkpoint:
        before, after = backbone.save_checkpoint(compressed, output, config.tie)
        rows.append(("weights", f"{size(before)} -> {size(after)}"))
    else:
        compressed.save(output)
    rows += [
        ("ratio", f"{compressed.ratio:.2f}"),
        ("table", f"{size(compressed.shape[0] * compressed.shape[1] * 4)} -> {size(compressed.nbytes)}"),
        *((name, str(value)) for name, value in compressed.summary.items() if not isinstance(value, list)),
        ("checkpoint" if config.checkpoint else "artifact", str(output)),
    ]
    print_rows(f"{codec.name}, asked for {asked}", rows)
    print_plan(compressed)
    return compressed


def quiet_libraries(progress: bool) -> None:
    """Keep what the libraries say on every run out of the terminal, and their progress bars if none are wanted."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    if not progress:
        datasets.disable_progress_bars()
        transformers.logging.disable_progress_bar()


def make_artifact(
    table: torch.Tensor,
    backbone: Backbone,
    codec: Codec,
    ratio: float,
    seed: int,
    output_dir: str,
    progress: bool,
    loggers: list[Logger],
) -> tuple[CompressedTable, Path, bool]:
    """The compressed table for these inputs and its artifact: read if it was made before, else made and saved.

    The last of the three returned is whether it was there before.
    """
    inputs = [
        FORMAT_VERSION,
        __version__,
        hash_table(table),
        codec.name,
        codec.settings(),
        codec.importance_settings(),
        backbone.source(),  # weights and metric come from the tokenizer and the model, not from the table alone
        float(ratio),
        seed,
        str(torch.__version__),
    ]
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    directory = Path(output_dir) / "artifacts" / f"{codec.name}_{ratio:g}x_seed{seed}_{key}"
    locks = Path(output_dir) / "locks"
    make_directory(locks)
    # Of jobs that need it at once, one makes it; the lock is freed if that one dies.
    with FileLock(locks / f"{directory.name}.lock"):
        if directory.is_dir():
            try:
                compressed = load_table(directory)
                log.info("reusing the artifact %s", directory)
                return compressed, directory, True
            except LighttokenError as error:
                log.warning("making the artifact again: %s", error)
        weights, metric = measure_importance(backbone, codec, len(table), seed, progress)
        told = codec.importance_settings()
        compressed = compress_table(
            table, codec, ratio, weights, metric, told, seed=seed, progress=progress, loggers=loggers
        )
        compressed.save(directory)
        return compressed, directory, False


def measure_importance(
    backbone: Backbone, codec: Codec, rows: int, seed: int = 0, progress: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Row weights (V,) and error metric (d, d), or None, as the codec's `prior` and `metric` ask for them."""
    asks_backbone = isinstance(codec, LightToken) and codec.metric == "backbone"
    tokenizer = backbone.tokenizer(padding=False) if asks_backbone or codec.prior in ("wordfreq", "corpus") else None
    frequencies = codec.frequencies(tokenizer, rows)
    metric = None
    if asks_backbone:
        assert isinstance(codec, LightToken)
        encoder = backbone.encoder()
        torch.nn.Module.to(encoder, resolve_device(codec.device))
        metric = backbone_metric(
            encoder,
            find_embedding(encoder),
            frequencies,
            special_tokens(tokenizer),
            sequences=codec.metric_sequences,
            damping=codec.metric_damping,
            seed=seed,
            progress=progress,
        )
    return codec.row_weights(frequencies), metric


@contextmanager
def open_loggers(config: DictConfig, record: Record) -> Iterator[list[Logger]]:
    """The configured loggers, told the whole config; a W&B run is closed at the end: the next job opens its own."""
    loggers: list[Logger] = list(instantiate(config.logger or {}).values())
    exit_code = 1
    try:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                open_run(logger.experiment, record)
            else:
                logger.log_hyperparams(record.config)
        with staging_in(record.directory):
            yield loggers
        exit_code = 0
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=exit_code)
