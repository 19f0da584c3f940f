"""The compress command: the table of a backbone as an artifact, or as a checkpoint of the whole model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from lighttoken.artifact.files import folder_for_output
from lighttoken.artifact.parts import Parts
from lighttoken.artifact.table import CompressedTable
from lighttoken.backbone.card import healing_text
from lighttoken.backbone.source import Backbone
from lighttoken.codec import Codec, check_reach, compress_table
from lighttoken.codec.quality import compress_to_quality
from lighttoken.run.artifacts import artifact_key
from lighttoken.run.healing import check_healing, heal
from lighttoken.run.importance import measure_importance
from lighttoken.run.libraries import quiet_libraries
from lighttoken.run.memory import peak_memory
from lighttoken.run.records import command_line
from lighttoken.run.screen import print_lines, print_loading, print_plan, print_rows, size


def compress(config: DictConfig) -> CompressedTable:
    """Compress the table of a backbone and write the artifact, or a checkpoint of the model with it in."""
    quiet_libraries(config.progress)
    with folder_for_output(Path(config.output)):
        return _compress(config, Path(config.output))


def _compress(config: DictConfig, output: Path) -> CompressedTable:
    # 1. The table, and what an interrupted command has left of the same work.
    backbone: Backbone = instantiate(config.model)
    codec: Codec = instantiate(config.codec)
    healing = instantiate(config.heal) if config.heal else None
    if healing is not None:
        check_healing(healing, backbone)
    table = backbone.table()
    if config.quality is None:
        check_reach(table, codec, config.ratio)
    key = artifact_key(
        table, backbone, codec, config.ratio if config.quality is None else None, config.seed, config.tie
    )
    parts = Parts(output.absolute().with_name(f".{output.name}.{key}.parts"))
    shape = table.shape
    del table  # to measure the importance, the whole backbone is loaded; then it is read again
    with saying_what_is_kept(parts), peak_memory() as peak:
        compressed, goal = make_table(config, shape[0], backbone, codec, parts)
    rows = [("model", backbone.label)]
    # 2. The body, adapted to the compressed table.
    healed = None
    if healing is not None:
        healed = heal(backbone, compressed, healing, seed=config.seed, progress=config.progress)
        rows.append(("healed", healing_text(healed.summary)))
    # 3. The files.
    if config.checkpoint:
        change = healed.put_into if healed else None
        before, after = backbone.save_checkpoint(compressed, output, config.tie, change, command_line())
        rows.append(("weights", f"{size(before)} -> {size(after)}"))
    else:
        compressed.save(output)
    parts.remove()
    # 4. What the screen shows.
    rows += [
        ("ratio", f"{compressed.ratio:.2f}"),
        ("table", f"{size(4 * shape.numel())} -> {size(compressed.nbytes)}"),
        *((name, str(value)) for name, value in compressed.summary.items() if not isinstance(value, list)),
        *([("peak memory", f"{tables} tables, with the table itself")] if (tables := peak.in_tables(*shape)) else []),
        ("checkpoint" if config.checkpoint else "artifact", str(output)),
    ]
    print_rows(f"{codec.name} for {goal}", rows)
    print_plan(compressed)
    if config.checkpoint:
        print_loading(output)
    else:
        reads = ", tokenizer" if replace(compressed, relations=None).needs_tokenizer else ""  # as it is on disk
        print_lines("To load it:", ["import lighttoken", f'compressed = lighttoken.load_table("{output}"{reads})'])
    return compressed


def make_table(
    config: DictConfig, vocab_size: int, backbone: Backbone, codec: Codec, parts: Parts
) -> tuple[CompressedTable, str]:
    """The compressed table of a ratio, or of a quality, and the goal in words."""
    importance = measure_importance(backbone, codec, vocab_size, config.seed, config.progress, parts, tie=config.tie)
    table = backbone.table()
    settings: dict[str, Any] = {"importance": importance, "seed": config.seed, "progress": config.progress}
    if config.quality is None:
        return compress_table(table, codec, config.ratio, parts=parts, **settings), f"{config.ratio:g}x"
    compressed = compress_to_quality(table, codec, measure=config.measure, bound=config.quality, **settings)
    return compressed, f"{config.measure} {config.quality:g}"


@contextmanager
def saying_what_is_kept(parts: Parts) -> Iterator[None]:
    """When a signal ends the work, add to the exception what is kept of it."""
    try:
        yield
    except SystemExit as error:
        if parts.kept:
            error.add_note(f"kept {parts.directory}")
            error.add_note("the same command goes on from there")
        raise
