"""The files of a checkpoint: what a compressed checkpoint takes over from the original one."""

import json
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

# Files that hold the weights of the original model, in any framework.
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".gguf")
WEIGHTS += (".index.json", ".mlmodel", ".tflite")


def copy_rest(source: Path, target: Path) -> None:
    """Copy all files of a checkpoint but its weights. The folders of sentence-transformers' modules keep theirs.

    A link that leads out of the folder is left out, unless it leads to the blobs of the hub's cache.
    """
    modules = source / "modules.json"
    named = [entry["path"] for entry in json.loads(modules.read_bytes())] if modules.is_file() else []
    keep = [(source / name).resolve() for name in named if name]
    for file in _files(source):
        if not file.name.endswith(WEIGHTS) or any(file.parent.resolve().is_relative_to(folder) for folder in keep):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


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
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            tensors |= {name: state[name] for name in set(names) & state.keys()}
    return tensors


def _files(source: Path) -> Iterator[Path]:
    inside = [source.resolve()]
    if source.resolve().parent.name == "snapshots":
        inside.append(source.resolve().parents[1] / "blobs")
    for file in sorted(source.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(source).parts)
        if file.is_file() and not hidden and any(file.resolve().is_relative_to(folder) for folder in inside):
            yield file
