"""The model card of a compressed checkpoint: its README.md, with the card of the original model below."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from lighttoken.artifact.table import CompressedTable

CARD_FILE = "README.md"
METADATA = (
    "library_name",
    "language",
    "license",
    "license_name",
    "license_link",
    "datasets",
    "pipeline_tag",
    "base_model",
    "tags",
)


def healing_text(summary: Mapping[str, Any]) -> str:
    """What a backbone was healed on, for how long, and how near its hidden states are to the original ones."""
    name = summary["file"] if summary["texts"] == "corpus" else summary["texts"]
    cosines = f"{summary['cosine_before']:.4f} -> {summary['cosine']:.4f}"
    return f"{summary['steps']} steps on texts of {name}, cosine of hidden states {cosines}"


def model_card(
    name: str,
    class_name: str,
    compressed: CompressedTable | None,
    folder: Path,
    hub_id: str | None = None,
    command: str | None = None,
    healing: Mapping[str, Any] | None = None,
    scores: Mapping[str, float] | None = None,
) -> str:
    """The text of README.md for a checkpoint in `folder`, whose files are there, the original's README.md too.

    `class_name` is the model's class in transformers; `scores` are by name, such as `sst2 val/accuracy`. Of the
    original's metadata, what holds for the compressed model too is kept; `hub_id` becomes its `base_model`.
    """
    original, known = _read(folder / CARD_FILE)
    metadata = {key: value for key, value in known.items() if key in METADATA}
    metadata |= {"base_model": hub_id} if hub_id else {}
    tags = metadata.get("tags")
    tags = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    metadata["tags"] = list(dict.fromkeys([*tags, "lighttoken"]))
    data = ModelCardData(ignore_metadata_errors=True, **({"library_name": "transformers"} | metadata))
    parts = [
        f"---\n{data.to_yaml()}\n---",
        _head(name, compressed, healing),
        _numbers(compressed, scores or {}),
        _loading(class_name, folder, compressed is not None),
        *([f"## Made with\n\n    {command}"] if command else []),
        *([f"---\n\nThe card of the original model:\n\n{original.strip()}"] if original else []),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _read(file: Path) -> tuple[str, dict[str, Any]]:
    """The text of a card and its metadata; of a card whose metadata is damaged, all of it is text."""
    if not file.is_file():
        return "", {}
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
    except (yaml.YAMLError, ValueError, TypeError):
        return text, {}
    return card.text, card.data.to_dict()


def _head(name: str, compressed: CompressedTable | None, healing: Mapping[str, Any] | None) -> str:
    if compressed is None:
        return f"# {name}, fine-tuned\n\nThe token-embedding table is not compressed."
    rows, dim = compressed.shape
    lines = [
        f"# {name} with a {compressed.ratio:.3g}x smaller token-embedding table\n",
        f"The table of {rows:,} x {dim} numbers takes {compressed.nbytes:,} bytes instead of the {4 * rows * dim:,} of",
        f"float32. lighttoken {compressed.versions['lighttoken']} made it, with the codec `{compressed.codec}`.",
    ]
    if healing:
        lines.append(f"The other weights were adapted to it: {healing_text(healing)}.")
    return "\n".join(lines)


def _numbers(compressed: CompressedTable | None, scores: Mapping[str, float]) -> str:
    rows = [(name, f"{score:.4f}") for name, score in scores.items()]
    if compressed is not None:
        names = {"nmse": "squared error over the table's variance", "weighted_nmse": "the same, rows by their weights"}
        summary = compressed.summary
        rows += [(f"{name} ({text})", f"{summary[name]:.4f}") for name, text in names.items() if name in summary]
        rows.append(("ratio, of bytes on disk", f"{compressed.ratio:.2f}"))
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]) if rows else ""


def loading_lines(class_name: str, folder: Path, packed: bool, name: str = "DIR") -> list[str]:
    """The Python that loads a checkpoint, `name` in the code, whose table may be packed."""
    lines = [f"from transformers import {class_name}", f'model = {class_name}.from_pretrained("{name}")']
    if (folder / "modules.json").is_file():
        lines = ["from sentence_transformers import SentenceTransformer", f'model = SentenceTransformer("{name}")']
    return ["import lighttoken  # teaches transformers to read the table", *lines] if packed else lines


def _loading(class_name: str, folder: Path, packed: bool) -> str:
    *imports, last = loading_lines(class_name, folder, packed)
    code = ["## Load it\n", "```python", *imports, "", last, "```"]
    if not packed:
        return "\n".join(code)
    cure = (
        "DIR is this folder, or its id on the hub. Without lighttoken, transformers stops with an error about the size "
        "of the embedding. `ignore_mismatched_sizes=True` would draw a random table: do not set it."
    )
    return "\n".join([*code, "", cure])
