"""The artifacts that runs share: made once from the same inputs."""

import hashlib
import json
from pathlib import Path

import torch
from filelock import FileLock
from lightning.pytorch.loggers import Logger

from lighttoken.artifact.files import make_directory
from lighttoken.artifact.table import CompressedTable, hash_table, load_table
from lighttoken.backbone.source import Backbone
from lighttoken.codec import Codec, compress_table
from lighttoken.errors import LighttokenError
from lighttoken.run.compression import log
from lighttoken.run.importance import measure_importance

# The code that decides an artifact's bytes.
CODE = ("codec/**/*.py", "artifact/*.py")


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
    package = Path(__file__).parents[1]
    files = sorted(file for pattern in CODE for file in package.glob(pattern))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
