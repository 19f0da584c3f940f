"""The compressed table and the artifact, its form on disk.

Every row is a low-rank part plus a decoded hash code:

    row = left[id] @ right + bits[id] @ decoder + bias        (k)(k, d) + (m)(m, d) + (d)

`compressed_table.safetensors` holds the tensors, `compressed_table.json` says what they are. Nothing is pickled, and
nothing in the two files depends on the time or the place they were made.
"""

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as serialize_safetensors
from torch import Tensor

from lighttoken.errors import LighttokenError
from lighttoken.packing import dequantize, unpack_bits

FORMAT_VERSION = 1
TENSORS_FILE = "compressed_table.safetensors"
METADATA_FILE = "compressed_table.json"
ROWS_PER_CHUNK = 65536  # rows decoded at a time, so that work space stays small for vocabularies of any size


def hash_table(table: Tensor) -> str:
    """SHA-256, in hex, of a table's float32 values in row order."""
    return hashlib.sha256(table.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def decode_rows(ids: Tensor, codes: Tensor, left: Tensor, right: Tensor, decoder: Tensor, bias: Tensor) -> Tensor:
    """Rows (n, d) of ids (n,) int64: the equation at the top of this file, differentiable in all but the codes."""
    rows = torch.addmm(bias, torch.nn.functional.embedding(ids, left), right)
    return torch.addmm(rows, unpack_bits(codes[ids], decoder.shape[0]).to(decoder.dtype), decoder)


@dataclass(frozen=True)
class CompressedTable:
    """What a codec returns: decodes rows, knows its bytes, saves and loads.

    `tensors` are those on disk: `codes` (V, m/8) uint8; `left` (V, k), `right` (k, d) and `decoder` (m, d) in a float
    precision or as integers with their `.scale`; `bias` (d,) float32. `summary` is what the codec reports about
    its work (plan, errors), `settings` what it was told; both are plain JSON values.
    """

    codec: str
    shape: tuple[int, int]  # (V, d)
    tensors: dict[str, Tensor]
    source_sha256: str
    settings: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: library_versions())

    def parts(self, rows: Tensor | slice = slice(None)) -> dict[str, Tensor]:
        """The arguments of `decode_rows` after the ids, for some rows or all: codes as stored, the rest as float32."""
        stored, d = self.tensors, self.shape[1]
        left, rank = stored["left"][rows], stored["right"].shape[0]
        return {
            "codes": stored["codes"][rows],
            "left": dequantize(left, stored.get("left.scale"), rank),
            "right": dequantize(stored["right"], stored.get("right.scale"), d),
            "decoder": dequantize(stored["decoder"], stored.get("decoder.scale"), d),
            "bias": stored["bias"],
        }

    @torch.no_grad()
    def decode(self, ids: Tensor | Sequence | None = None) -> Tensor:
        """Rows as float32, (*ids.shape, d) for integer ids of any shape; all rows, (V, d), when ids is None.

        Raises LighttokenError for ids that are not integers or not in the table.
        """
        ids = torch.arange(self.shape[0]) if ids is None else torch.as_tensor(ids)
        flat = ids.reshape(-1).cpu()
        if flat.numel() and (flat.is_floating_point() or flat.dtype == torch.bool):
            raise LighttokenError(f"ids are integers, got {flat.dtype}; convert them with .long()")
        if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < self.shape[0]:
            raise LighttokenError(
                f"ids from {int(flat.min())} to {int(flat.max())} asked of a table with ids 0 to {self.shape[0] - 1}"
            )
        rows = torch.cat(
            [decode_rows(torch.arange(len(chunk)), **self.parts(chunk)) for chunk in flat.long().split(ROWS_PER_CHUNK)]
        )
        return rows.view(*ids.shape, self.shape[1]).to(ids.device)

    def check(self) -> None:
        """Raise ValueError if the tensors are not those of a table of this shape: names, types and sizes."""
        vocab_size, dim = self.shape
        rank, m = self.tensors["right"].shape[0], self.tensors["decoder"].shape[0]
        half = self.tensors["left"].dtype == torch.uint8  # int4, two to a byte
        shapes = {
            "codes": (vocab_size, -(-m // 8)),
            "left": (vocab_size, -(-rank // 2) if half else rank),
            "left.scale": (1, rank),
            "right": (rank, dim),
            "right.scale": (rank, 1),
            "decoder": (m, dim),
            "decoder.scale": (m, 1),
            "bias": (dim,),
        }
        for name in ("codes", "left", "right", "decoder", "bias"):
            if name not in self.tensors:
                raise ValueError(f"no tensor {name!r}")
        for name, tensor in self.tensors.items():
            packed = tensor.dtype == torch.uint8 and name in ("right", "decoder")
            expected = (shapes[name][0], -(-dim // 2)) if packed else shapes[name]
            if tuple(tensor.shape) != expected:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)} instead of {expected}")

    @property
    def nbytes(self) -> int:
        """Bytes of the artifact's files, measured on what `save` writes."""
        return sum(map(len, self._files.values()))

    @property
    def ratio(self) -> float:
        """V * d * 4 bytes over `nbytes`."""
        return self.shape[0] * self.shape[1] * 4 / self.nbytes

    @cached_property
    def _files(self) -> dict[str, bytes]:
        tensors = serialize_safetensors({name: tensor.contiguous() for name, tensor in self.tensors.items()})
        metadata = {
            "format_version": FORMAT_VERSION,
            "codec": self.codec,
            "vocab_size": self.shape[0],
            "dim": self.shape[1],
            "source_sha256": self.source_sha256,
            "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
            "settings": self.settings,
            "summary": self.summary,
            "versions": self.versions,
        }
        return {TENSORS_FILE: tensors, METADATA_FILE: json.dumps(metadata, separators=(",", ":")).encode()}

    def save(self, directory: str | Path) -> Path:
        """Write the artifact into `directory`, made if need be; each file appears whole or not at all.

        Raises LighttokenError if the directory cannot be written.
        """
        directory = Path(directory)
        make_directory(directory)
        for name, content in self._files.items():
            write_atomically(directory / name, content)
        return directory


def load_table(directory: str | Path) -> CompressedTable:
    """Read an artifact. Raises LighttokenError, naming the file, if it is missing, damaged, foreign or newer."""
    tensors_path, metadata_path = Path(directory) / TENSORS_FILE, Path(directory) / METADATA_FILE
    for path in (metadata_path, tensors_path):
        if not path.is_file():
            raise LighttokenError(f"no artifact at {directory}: {path} is missing; make one with lighttoken.compress")
    try:
        metadata = json.loads(metadata_path.read_bytes())
        version = metadata["format_version"]
        if version != FORMAT_VERSION:
            raise LighttokenError(
                f"{metadata_path} has format version {version}, this lighttoken reads {FORMAT_VERSION}; "
                + ("update lighttoken" if version > FORMAT_VERSION else "compress the table again")
            )
        content = tensors_path.read_bytes()
        if hashlib.sha256(content).hexdigest() != metadata["tensors_sha256"]:
            raise LighttokenError(
                f"{tensors_path} is damaged: its hash is not the one in {METADATA_FILE}; make it again"
            )
        compressed = CompressedTable(
            codec=str(metadata["codec"]),
            shape=(int(metadata["vocab_size"]), int(metadata["dim"])),
            tensors=parse_safetensors(content),
            source_sha256=metadata["source_sha256"],
            settings=dict(metadata["settings"]),
            summary=dict(metadata["summary"]),
            versions=dict(metadata["versions"]),
        )
        compressed.check()
    except LighttokenError:
        raise
    except OSError as error:
        raise LighttokenError(f"cannot read {error.filename}: {error.strerror}; check who may read it") from error
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise LighttokenError(
            f"{metadata_path} is damaged or no lighttoken artifact ({type(error).__name__}: {error}); make it again"
        ) from error
    return compressed


def make_directory(directory: Path) -> None:
    """Make a folder, and those above it, if it is not there. Raises LighttokenError if that cannot be."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LighttokenError(f"cannot make the folder {directory}: {error.strerror}; choose another one") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, never sees half of it.

    Raises LighttokenError, and leaves no debris, if the disk is full or the folder read-only.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise LighttokenError(
            f"cannot write {path}: {error.strerror}; free space there or choose another folder"
        ) from error


def library_versions() -> dict[str, str]:
    """The versions that decide an artifact's bytes."""
    from lighttoken import __version__

    return {"lighttoken": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
