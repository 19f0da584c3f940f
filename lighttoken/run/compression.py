"""The compress command: the table of a backbone as an artifact, or as a checkpoint of the whole model."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from lighttoken.artifact.files import folder_for_output
from lighttoken.artifact.table import CompressedTable
from lighttoken.backbone.source import Backbone
from lighttoken.codec import Codec, check_reach, compress_table
from lighttoken.codec.quality import compress_to_quality
from lighttoken.run.importance import measure_importance
from lighttoken.run.libraries import quiet_libraries
from lighttoken.run.screen import print_plan, print_rows, size


def compress(config: DictConfig) -> CompressedTable:
    """Compress the table of a backbone and write the artifact, or a checkpoint of the model with it in."""
    quiet_libraries(config.progress)
    with folder_for_output(Path(config.output)):
        return _compress(config, Path(config.output))


def _compress(config: DictConfig, output: Path) -> CompressedTable:
    # 1. The table, and how much its errors cost.
    backbone: Backbone = instantiate(config.model)
    codec: Codec = instantiate(config.codec)
    table = backbone.table()
    if config.quality is None:
        check_reach(table, codec, config.ratio)
    importance = measure_importance(backbone, codec, len(table), config.seed, config.progress)
    # 2. The compressed table of a ratio, or of a quality.
    settings: dict[str, Any] = {"importance": importance, "seed": config.seed, "progress": config.progress}
    if config.quality is None:
        goal, compressed = f"{config.ratio:g}x", compress_table(table, codec, config.ratio, **settings)
    else:
        goal = f"{config.measure} {config.quality:g}"
        compressed = compress_to_quality(table, codec, measure=config.measure, bound=config.quality, **settings)
    # 3. The files.
    rows = [("model", backbone.label)]
    if config.checkpoint:
        before, after = backbone.save_checkpoint(compressed, output, config.tie)
        rows.append(("weights", f"{size(before)} -> {size(after)}"))
    else:
        compressed.save(output)
    # 4. What the screen shows.
    rows += [
        ("ratio", f"{compressed.ratio:.2f}"),
        ("table", f"{size(4 * table.numel())} -> {size(compressed.nbytes)}"),
        *((name, str(value)) for name, value in compressed.summary.items() if not isinstance(value, list)),
        ("checkpoint" if config.checkpoint else "artifact", str(output)),
    ]
    print_rows(f"{codec.name} for {goal}", rows)
    print_plan(compressed)
    return compressed
