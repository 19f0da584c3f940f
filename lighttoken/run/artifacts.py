"""The artifacts that runs share: made once from the same inputs and the same code."""

import ast
import hashlib
import importlib.util
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock
from lightning.pytorch.loggers import Logger
from torch import Tensor

from lighttoken.artifact.files import make_directory
from lighttoken.artifact.parts import Parts
from lighttoken.artifact.table import CompressedTable, hash_table, load_table
from lighttoken.backbone.embedding import Tie
from lighttoken.backbone.source import Backbone
from lighttoken.codec import Codec, check_reach, compress_table
from lighttoken.codec.interface import MetricCodec, resolve_device
from lighttoken.errors import LighttokenError
from lighttoken.run.importance import measure_importance
from lighttoken.run.memory import peak_memory

log = logging.getLogger(__name__)

# Modules whose code decides the bytes of every artifact; the codec's own module comes on top.
MAKERS = ("lighttoken.codec", "lighttoken.run.importance")


@dataclass(frozen=True)
class Artifact:
    """A compressed table, its folder, whether it was there before, and the memory that making it took, in tables."""

    compressed: CompressedTable
    directory: Path
    reused: bool
    peak_memory: float | None = None


@dataclass(frozen=True)
class ArtifactCache:
    """The artifacts under `output_dir`, and how missing ones are made."""

    output_dir: Path
    progress: bool = False
    loggers: Sequence[Logger] = ()

    def get(
        self, table: Tensor, backbone: Backbone, codec: Codec, ratio: float, seed: int, head: bool, tie: Tie
    ) -> Artifact:
        """The artifact of a table (V, d): read if it was made before from the same inputs, else made and saved.

        `head` and `tie` say how the model uses the table besides its input, see `measure_importance`.
        """
        key = artifact_key(table, backbone, codec, ratio, seed, head, tie)
        directory = self.output_dir / "artifacts" / f"{codec.name}_{ratio:g}x_seed{seed}_{key}"
        locks = self.output_dir / "locks"
        make_directory(locks)
        # Of jobs that need it at once, one makes it; the lock is freed if that one dies.
        with FileLock(locks / f"{directory.name}.lock"):
            if directory.is_dir():
                try:
                    compressed = load_table(directory)
                    if compressed.needs_tokenizer:
                        compressed = compressed.with_tokenizer(backbone.tokenizer(padding=False))
                    log.info("reusing the artifact %s", directory)
                    return Artifact(compressed, directory, reused=True)
                except LighttokenError as error:
                    log.warning("making the artifact again: %s", error)
            check_reach(table, codec, ratio)
            parts = Parts(directory.with_name(f".{directory.name}.parts"))
            with peak_memory() as peak:
                importance = measure_importance(backbone, codec, len(table), seed, self.progress, parts, head, tie)
                compressed = compress_table(
                    table,
                    codec,
                    ratio,
                    importance=importance,
                    seed=seed,
                    progress=self.progress,
                    loggers=self.loggers,
                    parts=parts,
                )
            compressed.save(directory)
            parts.remove()
            return Artifact(compressed, directory, reused=False, peak_memory=peak.in_tables(*table.shape))


def artifact_key(
    table: Tensor, backbone: Backbone, codec: Codec, ratio: float | None, seed: int, *uses: bool | str
) -> str:
    """A hash of everything that the bytes of an artifact depend on: inputs, code, libraries, arithmetic."""
    inputs = [
        code_hash(type(codec).__module__),
        hash_table(table),
        codec.name,
        codec.settings(),
        codec.importance_settings(),
        backbone.fingerprint(),  # the importance comes from the tokenizer and the model, not from the table alone
        None if ratio is None else float(ratio),
        seed,
        uses,  # of the table besides the input
        [str(torch.__version__), version("transformers"), version("wordfreq")],
        # Sums depend on how many threads add them up, and on the device.
        torch.get_num_threads(),
        str(resolve_device(codec.device)) if isinstance(codec, MetricCodec) else "cpu",
    ]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def code_hash(codec_module: str) -> str:
    """SHA-256, in hex, of the code that makes a codec's artifacts: after an edit, artifacts of before are not reused.

    It covers the modules that the codec, `compress_table` and `measure_importance` import from this package and from
    that of the codec, directly or not, and the C++ files beside them. Other codecs do not matter.
    """
    modules = reached_files([codec_module, *MAKERS]).values()
    files = {*modules, *(file for module in modules for file in module.parent.glob("*.cpp"))}
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


def reached_files(modules: Sequence[str]) -> dict[str, Path]:
    """The source files, by module, of modules and of all that they import from their own packages."""
    packages = {name.partition(".")[0] for name in modules}
    files: dict[str, Path] = {}
    rest = list(modules)
    while rest:
        name = rest.pop()
        file = _source(name) if name.partition(".")[0] in packages and name not in files else None
        if file:
            files[name] = file
            rest += _imports(file)
    return files


def _source(module: str) -> Path | None:
    """The file of a module; None if there is no such module, as for an imported name that is no module."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def _imports(file: Path) -> Iterator[str]:
    """Modules, and names that may be modules, which the code of a file imports anywhere."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
