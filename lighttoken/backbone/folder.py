"""The files of a checkpoint: what a compressed checkpoint takes over from the original one."""

import json
import logging
import shutil
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from lighttoken.artifact.description import refusing
from lighttoken.errors import LighttokenError

log = logging.getLogger(__name__)

# Files that hold the weights of the original model, in any framework.
WEIGHTS: tuple[str, ...] = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".index.json")
WEIGHTS += (".onnx", ".onnx_data", ".gguf", ".mlmodel", ".tflite")
FLOATS = ("F16", "BF16", "F32", "F64")  # as safetensors calls them


def copy_rest(source: Path, target: Path) -> None:
    """Copy all files of a checkpoint but its weights. The folders of sentence-transformers' modules keep theirs.

    Links to folders, links that lead out of the folder, but for those to the blobs of the hub's cache, and whatever is
    no file are left out, with a warning. Raises LighttokenError if `modules.json` names a folder outside.
    """
    modules = source / "modules.json"
    with refusing(f"{modules} is damaged"):
        named = [str(entry["path"]) for entry in json.loads(modules.read_bytes())] if modules.is_file() else []
    keep = [(source / name).resolve() for name in named if name]
    for name, folder in zip(filter(None, named), keep, strict=True):
        if not folder.is_relative_to(source.resolve()):
            raise LighttokenError(
                f"{modules} names {name!r}, which is outside its folder; use a checkpoint that you trust"
            )
    for file in _files(source):
        if not file.name.endswith(WEIGHTS) or any(file.parent.resolve().is_relative_to(folder) for folder in keep):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def read_pooling(source: Path) -> str | None:
    """The pooling that the modules of sentence-transformers in a folder name, as `mean`, `cls` or `max`; None without.

    Raises LighttokenError if more than a pooling and a normalisation follows the model.
    """
    if not (source / "modules.json").is_file():
        return None
    with refusing(f"{source / 'modules.json'} is damaged"):
        entries = json.loads((source / "modules.json").read_bytes())
        paths = {str(entry["type"]).rpartition(".")[2]: str(entry["path"]) for entry in entries}
        settings = json.loads((source / paths.get("Pooling", "") / "config.json").read_bytes())
    if others := sorted(paths.keys() - {"Transformer", "Pooling", "Normalize"}):
        raise LighttokenError(
            f"modules.json of {source} has {others[0]} behind the model, which is not supported; set task.pooling=mean "
            "to score the model without it"
        )
    # Before version 6 of sentence-transformers, the settings had a boolean for every pooling.
    active = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
    old = "+".join(key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for key in active)
    return str(settings.get("pooling_mode") or old) or None


def read_tensors(source: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Tensors of a checkpoint by their stored names. Names that it does not have are left out."""
    tensors: dict[str, Tensor] = {}
    if not names:
        return tensors
    files = sorted(source.glob("*.safetensors"))
    for file in files:
        with safe_open(file, "pt") as shard:
            tensors |= {name: shard.get_tensor(name) for name in set(names) & set(shard.keys())}
    if not files:
        for file in sorted(source.glob("pytorch_model*.bin")):
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
            tensors |= {name: state[name] for name in set(names) & state.keys()}
    return tensors


def read_parameter(source: str, names: Collection[str], shape: torch.Size, **hub: Any) -> Tensor | None:
    """One parameter of a checkpoint in safetensors, in float32, without reading the others.

    `source` is a folder or, with its revision in `hub`, an id of the hub: only the file that holds the parameter is
    downloaded then. None if not exactly one of the names is stored, and for numbers that are no plain floats.
    """
    files = _shards(source, hub)
    stored = [name for name in names if name in files]
    if len(stored) != 1 or (file := cached_file(source, files[stored[0]], **hub)) is None:
        return None
    with safe_open(file, "pt") as shard:
        part = shard.get_slice(stored[0])
        plain = torch.Size(part.get_shape()) == shape and part.get_dtype() in FLOATS
        return shard.get_tensor(stored[0]).float() if plain else None


def _shards(source: str, hub: dict[str, Any]) -> dict[str, str]:
    """The file of every tensor of a checkpoint in safetensors, by its stored name; empty for other checkpoints."""

    def find(filename: str) -> str | None:
        return cached_file(source, filename, _raise_exceptions_for_missing_entries=False, **hub)

    if single := find(SAFE_WEIGHTS_NAME):
        with safe_open(single, "pt") as shard:
            return dict.fromkeys(shard.keys(), SAFE_WEIGHTS_NAME)
    index = find(SAFE_WEIGHTS_INDEX_NAME)
    return json.loads(Path(index).read_bytes())["weight_map"] if index else {}


def read_gguf_table(file: Path) -> Tensor:
    """The token embedding (V, d) of a GGUF file, in float32, without reading the other tensors."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    with refusing(f"{file} is no GGUF file with the tensor token_embd.weight"):
        (table,) = (tensor for tensor in GGUFReader(file).tensors if tensor.name == "token_embd.weight")
    return torch.tensor(dequantize(table.data, table.tensor_type))  # a copy: the file is mapped to be read only


def _files(source: Path) -> Iterator[Path]:
    """The files of a folder and of its folders, without hidden ones."""
    root = source.resolve()
    roots = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]  # the hub's cache
    for path in sorted(source.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(source).parts):
            continue
        if path.is_file() and any(path.resolve().is_relative_to(folder) for folder in roots):
            yield path
        elif path.is_symlink() or not path.is_dir():
            log.warning("left out %s: it is no file or folder inside %s", path, source)
