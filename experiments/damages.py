"""Damages to the files of an artifact or of a checkpoint, drawn at random: what `damaged_files` loads."""

import contextlib
import hashlib
import json
import random
import shutil
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from lighttoken import load_table
from lighttoken.artifact.table import METADATA_FILE, TENSORS_FILE
from lighttoken.backbone.checkpoint import StoredConfig, read_checkpoint
from lighttoken.backbone.storage import buffer_name

PREFIX = "embeddings.word_embeddings."
DTYPES = (torch.float64, torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.int16, torch.int8, torch.bool)
NUMBERS = (None, True, -1, 0, 1, 2**20, 2**31, 2**40, 2**63, 10**30, 1.5, float("nan"), float("inf"))
VALUES = (*NUMBERS, "x", "\ud800", "a\nb", "matmul", "float64", "trellis", [], {}, [[]], [1, 2, 3], "9" * 5000)
DEEP = "<deep>"  # stands for lists in lists


class Files:
    """The two files of an artifact or of a checkpoint in memory: a JSON and the tensors, each as bytes."""

    def __init__(self, folder: Path):
        self.is_checkpoint = (folder / "config.json").exists()
        names = ("config.json", "model.safetensors") if self.is_checkpoint else (METADATA_FILE, TENSORS_FILE)
        self.names, self.json, self.tensors = names, (folder / names[0]).read_bytes(), (folder / names[1]).read_bytes()
        self.stored = load_file(folder / names[1])
        self.rows = (read_checkpoint if self.is_checkpoint else load_table)(folder).decode()

    def own(self) -> list[str]:
        """Names of the tensors of the compressed table."""
        return [name for name in self.stored if name.startswith(PREFIX) or not self.is_checkpoint]

    def described(self, config: Any) -> Any:
        """The part of the JSON that describes the table."""
        return config["quantization_config"] if self.is_checkpoint else config

    def write(self, folder: Path) -> int:
        """Write both files; returns their bytes."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, content in zip(self.names, (self.json, self.tensors), strict=True):
            (folder / name).write_bytes(content)
        return len(self.json) + len(self.tensors)

    def fit_hash(self, folder: Path) -> None:
        """Make the hash fit, where the files can still be read so far."""
        with contextlib.suppress(Exception):
            config = json.loads(self.json)
            described = self.described(config)
            rest = {name: value for name, value in described.items() if name not in ("sha256", "quant_method")}
            if self.is_checkpoint:
                self.write(folder)
                tensors = {}
                stored = load_file(folder / self.names[1])
                for name, (dtype, shape) in described["tensors"].items():
                    tensor = stored[PREFIX + ("weight" if name == "codes" else buffer_name(name))]
                    tensors[name] = tensor.view(getattr(torch, dtype)).view(shape)
                described["sha256"] = StoredConfig.digest(types.SimpleNamespace(**rest), tensors)  # type: ignore
            else:
                content = self.tensors + json.dumps(rest, separators=(",", ":")).encode()
                described["sha256"] = hashlib.sha256(content).hexdigest()
            self.json = json.dumps(config).encode()


def flip_bits(files: Files, draw: random.Random) -> None:
    name = draw.choice(("json", "tensors"))
    content = bytearray(getattr(files, name))
    for _ in range(draw.choice((1, 1, 8))):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    setattr(files, name, bytes(content))


def truncate(files: Files, draw: random.Random) -> None:
    name = draw.choice(("json", "tensors"))
    content = getattr(files, name)
    setattr(files, name, draw.choice((content[: draw.randrange(len(content))], content + b"\0" * draw.randrange(9))))


def lie_in_header(files: Files, draw: random.Random) -> None:
    """Another length, or another type, shape or place of a tensor, with the same bytes behind the header."""
    length = int.from_bytes(files.tensors[:8], "little")
    header, content = json.loads(files.tensors[8 : 8 + length]), files.tensors[8 + length :]
    entry = header[draw.choice(files.own())]
    lie = draw.randrange(5)
    if lie == 0:
        length = draw.choice((0, 7, 10**8, 2**40, 2**63, 2**64 - 1))
        files.tensors = length.to_bytes(8, "little") + files.tensors[8:]
        return
    if lie == 1:
        entry["dtype"] = draw.choice(("F64", "BF16", "F16", "F32", "I32", "I8", "U8", "BOOL", "F8_E4M3", "F4", "x"))
    elif lie == 2:
        entry["shape"] = draw.choice(([], [0], [2**40, 0], [2**31, 2**31, 4], [1, *entry["shape"]], [-1], 7, ["x"]))
    elif lie == 3:
        entry["data_offsets"] = draw.choice(([0, 2**40], [0, 0], [2**63, 2**64 - 1], [5, 1], None))
    else:
        entry["shape"] = [draw.choice((0, 1, 2**31, 2**62, n + 1, n)) for n in entry["shape"]]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    files.tensors = len(text).to_bytes(8, "little") + text + content


def change_tensors(files: Files, draw: random.Random) -> None:
    """A tensor that is missing, too many, exchanged, or of another type, shape or content."""
    tensors, (name, other) = dict(files.stored), draw.sample(files.own(), 2)
    tensor = tensors[name]
    change = draw.randrange(8)
    if change == 0:
        del tensors[name]
    elif change == 1:
        added = draw.choice(("extra", "core1", "core3", "left", "rotation", "kept", "bias.scale", "a\nb", "codes"))
        tensors[(PREFIX if files.is_checkpoint else "") + added] = draw.choice((tensor, torch.zeros(0), torch.ones(1)))
    elif change == 2:
        tensors[name], tensors[other] = tensors[other], tensor
    elif change == 3:
        tensors[name] = tensor.to(draw.choice(DTYPES))
    elif change == 4:
        shapes = [(-1,), (1, *tensor.shape), tuple(reversed(tensor.shape)), (*tensor.shape, 1)]
        tensors[name] = tensor.reshape(draw.choice(shapes))
    elif change == 5:
        axis = draw.randrange(max(tensor.ndim, 1))
        tensors[name] = draw.choice((tensor[:0], tensor[:-1], torch.cat([tensor, tensor], axis)))
    elif change == 6:
        tensors[name] = torch.randint(256, tensor.shape, generator=torch.Generator().manual_seed(draw.randrange(99)))
        tensors[name] = tensors[name].to(tensor.dtype)
    else:
        flat = tensor.flatten().clone()
        flat.view(torch.uint8)[draw.randrange(flat.view(torch.uint8).numel())] ^= 1 << draw.randrange(8)
        tensors[name] = flat.view(tensor.shape)
    files.tensors = save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, {"format": "pt"})


def break_floats(files: Files, draw: random.Random) -> None:
    """NaN or infinity in a stored matrix or scale; in a checkpoint, floats are stored as integers."""
    floats = [name for name in files.own() if files.stored[name].dtype in (torch.float32, torch.float16, torch.int32)]
    name = draw.choice(floats)
    flat = files.stored[name].flatten().clone()
    values = flat.view(torch.float32) if flat.dtype == torch.int32 else flat
    values[draw.randrange(len(values))] = draw.choice((float("nan"), float("inf"), -float("inf")))
    files.tensors = save(dict(files.stored) | {name: flat.view(files.stored[name].shape)}, {"format": "pt"})


def break_trellis(files: Files, draw: random.Random) -> None:
    """Steps that lead elsewhere, tiers of other rows, tiers that unpack to 200 MB; only the trellis code has them."""
    name = (PREFIX if files.is_checkpoint else "") + draw.choice(("steps", "tiers"))
    if name not in files.stored:
        change_tensors(files, draw)
        return
    tensor = files.stored[name].clone()
    if name.endswith("steps"):
        flat = tensor.view(-1)
        flat[draw.randrange(len(flat))] = draw.choice((0xFF, 0x3F, 0x0F, 0, 0x41, 0xF1, draw.randrange(256)))
    else:
        zeros = draw.choice((0, 1, len(files.rows) // 2, len(files.rows) // 2 + 1, 200_000_000))
        content = zlib.compress(draw.choice((b"\0", b"\x11", b"\xff")) * zeros, 1) + b"x" * draw.randrange(2)
        tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    files.tensors = save(dict(files.stored) | {name: tensor}, {"format": "pt"})


def edit_json(files: Files, draw: random.Random) -> None:
    """A value anywhere in the description replaced, removed or added."""
    config = json.loads(files.json)
    holder: Any = {"all": files.described(config)}
    part, key, depth = holder, "all", draw.randrange(1, 5)
    while isinstance(part[key], (dict, list)) and part[key] and depth:
        part, depth = part[key], depth - 1
        key = draw.choice(list(part) if isinstance(part, dict) else range(len(part)))
    way = draw.random() if part is not holder else 1
    if way < 0.15:
        del part[key]
    elif way < 0.25 and isinstance(part, dict):
        part[draw.choice(("self", "extra", "__class__", "to_dict", "importance", "tier_rows"))] = draw.choice(VALUES)
    else:
        part[key] = draw.choice((*VALUES, DEEP))
    config = config | {"quantization_config": holder["all"]} if files.is_checkpoint else holder["all"]
    files.json = json.dumps(config).replace(json.dumps(DEEP), "[" * 5000 + "]" * 5000).encode()


def enlarge(files: Files, draw: random.Random) -> None:
    """A table of many rows or columns."""
    config = json.loads(files.json)
    described = files.described(config)
    shape = list(described["shape"])
    shape[draw.randrange(2)] = draw.choice((0, -1, True, 1, 2**16, 2**22, 2**22 + 1, 2**31, 2**40, 10**25, 8.0))
    described["shape"] = shape
    if files.is_checkpoint and draw.random() < 0.5:
        config |= {"vocab_size": shape[0], "hidden_size": shape[1]}
    files.json = json.dumps(config).encode()


DAMAGES: tuple[Callable[[Files, random.Random], None], ...] = (
    *(flip_bits, truncate, lie_in_header, change_tensors, break_floats, break_trellis, edit_json, enlarge),
)
