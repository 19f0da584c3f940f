"""Compressing the table of a backbone: the command, the artifacts that runs share, what rows and errors weigh."""

import hashlib
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from lighttoken.artifact import (
    METADATA_FILE,
    TENSORS_FILE,
    CompressedTable,
    hash_table,
    load_table,
    make_directory,
)
from lighttoken.backbone import (
    Backbone,
    find_embedding,
)
from lighttoken.codec import Codec, Uncompressed, check_quality, compress_table, compress_to_quality
from lighttoken.codec.lighttoken import LightToken, resolve_device
from lighttoken.codec.metric import backbone_metric
from lighttoken.codec.weighting import special_tokens
from lighttoken.errors import LighttokenError
from lighttoken.screen import print_plan, print_rows, size

log = logging.getLogger(__name__)

# What the libraries say on every run, about things that are meant to be as they are.
NOISE = (
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    "Experiment logs directory .* exists and is not empty.*",
    ".*does not have many workers.*",
    ".*will save all targets and predictions in the buffer.*",
)

# The code that decides an artifact's bytes.
CODE = ("codec/*.py", "baselines/*.py", "artifact.py", "forms.py", "packing.py", "trellis.py")


def compress(config: DictConfig) -> CompressedTable:
    """Compress the table of a backbone and write the artifact, or a checkpoint of the model with it in."""
    quiet_libraries(config.progress)
    backbone: Backbone = instantiate(config.model)
    codec: Codec | Uncompressed = instantiate(config.codec)
    if isinstance(codec, Uncompressed):
        raise LighttokenError("codec=none has nothing to compress; choose another codec, for example codec=lighttoken")
    if config.quality is not None:
        check_quality(config.measure, config.quality)  # before the work, not after it
        if ratio := [each for each in HydraConfig.get().overrides.task if each.startswith("ratio=")]:
            raise LighttokenError(f"{ratio[0]} and quality={config.quality:g} are two goals; give one of them")
    output = Path(config.output)
    for file, held in ((METADATA_FILE, "an artifact"), ("config.json", "a checkpoint")):
        if (output / file).exists() and not config.overwrite:
            raise LighttokenError(f"output={output} holds {held} already; choose another folder or add overwrite=true")
    make_directory(output)
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
        for file in (METADATA_FILE, TENSORS_FILE):  # of an artifact that was there: `inspect` would tell of it
            (output / file).unlink(missing_ok=True)
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
        code_hash(),
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


def code_hash() -> str:
    """SHA-256, in hex, of the code that makes artifacts: what a codec has made before it was edited is not reused."""
    package = Path(__file__).parent
    files = sorted(file for pattern in CODE for file in package.glob(pattern))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


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
