"""What is in an artifact or a compressed checkpoint, and whether it is what it says it is."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from lighttoken.errors import LighttokenError

if TYPE_CHECKING:
    from lighttoken.artifact.table import CompressedTable
    from lighttoken.backbone.source import Backbone


def show(folder: Path, source: str | None = None) -> bool:
    """Print what is in a folder; whether its table is what it says it is, with a source to tell by."""
    from lighttoken.artifact.table import METADATA_FILE, load_table
    from lighttoken.run.screen import print_plan, print_rows, quiet_imports, size

    quiet_imports()
    if source is not None:
        _backbone(source).source()  # before all that is printed
    is_checkpoint = not (folder / METADATA_FILE).exists() and (folder / "config.json").exists()
    if is_checkpoint:
        from lighttoken.backbone.checkpoint import read_checkpoint

        compressed = read_checkpoint(folder)
    else:
        compressed = load_table(folder)
    (vocab_size, dim), table = compressed.shape, compressed.shape[0] * compressed.shape[1]
    told = compressed.settings | compressed.settings.get("importance", {}) | compressed.summary
    told["ratio asked"] = told.pop("ratio", None)
    rows = [
        ("codec", compressed.codec),
        ("table", f"{vocab_size} x {dim}, {size(4 * table)} -> {size(compressed.nbytes)}"),
        ("ratio", f"{compressed.ratio:.2f}"),
        ("source table", f"SHA-256 {compressed.source_sha256}"),
        ("made with", ", ".join(f"{name} {version}" for name, version in compressed.versions.items())),
    ]
    if is_checkpoint:
        config = json.loads((folder / "config.json").read_bytes())
        width = 2 if "16" in str(config.get("dtype")) else 4
        after = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        packed = sum(tensor.numel() * tensor.element_size() for tensor in compressed.tensors.values())
        before = after - packed + width * table
        rows += [
            ("weights", f"{size(before)} -> {size(after)}"),
            ("table's share of them", f"{width * table / before:.1%} -> {packed / after:.1%}"),
            ("tied output head", config["quantization_config"]["tie"]),
        ]
    rows += [(name, str(value)) for name, value in told.items() if isinstance(value, (str, int, float))]
    print_rows(str(folder), rows)
    print_plan(compressed)
    return source is None or verify(compressed, source)


def verify(compressed: "CompressedTable", source: str) -> bool:
    """Print how a compressed table compares with the table of a source; whether it is what it says it is.

    That is: made from this table, with the errors that its summary tells.
    """
    import torch
    import transformers

    from lighttoken.artifact.table import hash_table
    from lighttoken.codec.loss import table_errors
    from lighttoken.run.screen import print_rows

    transformers.logging.disable_progress_bar()
    table = _backbone(source).table()
    if tuple(table.shape) != compressed.shape:
        raise LighttokenError(
            f"the compressed table is {compressed.shape[0]} x {compressed.shape[1]} and that of {source} is "
            f"{table.shape[0]} x {table.shape[1]}; give the checkpoint it was made from"
        )
    same = hash_table(table) == compressed.source_sha256
    rows = [("made from this table", "yes" if same else "no, its hash is another")]
    errors = table_errors(table, compressed.decode(), torch.ones(len(table)))
    for name in ("nmse", "cosine"):
        told = compressed.summary.get(name)
        same &= told is not None and abs(errors[name] - told) < 1e-4
        rows.append((name, f"{errors[name]:.6g} (told: {'nothing' if told is None else f'{told:.6g}'})"))
    print_rows(f"against {source}", rows)
    return same


def _backbone(source: str) -> "Backbone":
    """The model of a `--verify`. Raises LighttokenError if it is neither a checkpoint's folder nor a name."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from lighttoken.backbone.source import Backbone
    from lighttoken.config.schema import config_dir

    names = Path(config_dir()) / "model"
    if (names / f"{source}.yaml").is_file():
        return instantiate(OmegaConf.load(names / f"{source}.yaml"))
    if not Path(source, "config.json").is_file():
        known = ", ".join(sorted(path.stem for path in names.glob("*.yaml")))
        raise LighttokenError(f"--verify {source} is no checkpoint: give its folder, or one of {known}")
    return Backbone(source, path=source)
