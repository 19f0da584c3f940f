"""The content of an artifact or of a compressed checkpoint, and its comparison with the original table."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from lighttoken.artifact.description import refusing
from lighttoken.artifact.table import METADATA_FILE, CompressedTable, hash_table, load_table
from lighttoken.backbone.card import healing_text
from lighttoken.backbone.checkpoint import read_checkpoint
from lighttoken.backbone.source import Backbone
from lighttoken.codec.loss import table_errors
from lighttoken.errors import LighttokenError
from lighttoken.run.records import MODEL_FOLDER
from lighttoken.run.screen import print_plan, print_rows, size


def show(folder: Path, source: Backbone | None = None) -> bool:
    """Print the content of a folder. With a source, return whether its table is the one that was compressed.

    Raises LighttokenError if the folder is damaged, or that of a run.
    """
    if source is not None:
        source.source()  # raises its error before anything is printed
    is_checkpoint = not (folder / METADATA_FILE).exists() and (folder / "config.json").exists()
    if not is_checkpoint and (folder / MODEL_FOLDER / "config.json").exists():
        raise LighttokenError(f"{folder} is the folder of a run; show its model, {folder / MODEL_FOLDER}")
    compressed = read_checkpoint(folder) if is_checkpoint else load_table(folder)
    with refusing(f"{folder} is damaged"):  # the description has values of other types or lengths than a codec writes
        print_rows(str(folder), _rows(folder, compressed, is_checkpoint))
        print_plan(compressed)
    return source is None or verify(compressed, source)


def _rows(folder: Path, compressed: CompressedTable, is_checkpoint: bool) -> list[tuple[str, str]]:
    """What a folder holds, as names and values."""
    vocab_size, dim = compressed.shape
    rows = [
        ("codec", f"{compressed.codec}, form {compressed.form.name}"),
        ("table", f"{vocab_size} x {dim}, {size(4 * vocab_size * dim)} -> {size(compressed.nbytes)}"),
        ("ratio", f"{compressed.ratio:.2f}"),
        ("source table", f"SHA-256 {compressed.source_sha256}"),
        ("made with", ", ".join(f"{name} {version}" for name, version in compressed.versions.items())),
    ]
    if is_checkpoint:
        rows += _checkpoint_rows(folder, compressed)
    settings = compressed.settings | compressed.settings.get("importance", {}) | compressed.summary
    settings["ratio asked"] = settings.pop("ratio", None)
    rows += [(name, str(value)) for name, value in settings.items() if isinstance(value, (str, int, float))]
    return rows


def _checkpoint_rows(folder: Path, compressed: CompressedTable) -> list[tuple[str, str]]:
    """Sizes of the whole checkpoint before and after, and its output head."""
    config = json.loads((folder / "config.json").read_bytes())
    width = 2 if "16" in str(config.get("dtype")) else 4  # bytes of a number of the original table
    table = width * compressed.shape[0] * compressed.shape[1]
    after = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    packed = sum(tensor.numel() * tensor.element_size() for tensor in compressed.tensors.values())
    before = after - packed + table
    return [
        ("weights", f"{size(before)} -> {size(after)}"),
        ("table's share of them", f"{table / before:.1%} -> {packed / after:.1%}"),
        ("tied output head", config["quantization_config"]["tie"]),
        *([("healed", healing_text(config["healing"]))] if config.get("healing") else []),
    ]


def verify(compressed: CompressedTable, source: Backbone) -> bool:
    """Print how a compressed table compares with the table of a source.

    Returns whether it was made from this table and has the errors that its summary says.
    """
    transformers.logging.disable_progress_bar()
    table = source.table()
    if tuple(table.shape) != compressed.shape:
        raise LighttokenError(
            f"the compressed table is {compressed.shape[0]} x {compressed.shape[1]} and that of {source.name} is "
            f"{table.shape[0]} x {table.shape[1]}; give the checkpoint it was made from"
        )
    if compressed.needs_tokenizer:
        compressed = compressed.with_tokenizer(source.tokenizer(padding=False))
    same = hash_table(table) == compressed.source_sha256
    rows = [("made from this table", "yes" if same else "no, its hash is another")]
    errors = table_errors(table, compressed.decode(), torch.ones(len(table)))
    for name in ("nmse", "cosine"):
        expected: Any = compressed.summary.get(name)
        is_number = isinstance(expected, (int, float))
        same &= is_number and abs(errors[name] - expected) < 1e-4
        rows.append((name, f"{errors[name]:.6g} (in the summary: {f'{expected:.6g}' if is_number else 'nothing'})"))
    print_rows(f"against {source.name}", rows)
    return same
