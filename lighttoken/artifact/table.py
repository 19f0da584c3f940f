"""The compressed table and the artifact, its form on disk.

Every row is a decoded hash code, next to a low-rank part where the codec keeps one:

    row = coefficients(id) @ decoder + bias                    (m)(m, d) + (d)
        + left[id] @ right                                     (k)(k, d)

The coefficients are the bits of the code themselves, or what the trellis code reads from them.
Baselines that have no hash codes have forms of their own (`lighttoken.artifact.forms`), next to the same bias.
`compressed_table.safetensors` holds the tensors, `compressed_table.json` says what they are. Nothing is pickled, and
nothing in the two files depends on the time or the place they were made.
"""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as serialize_safetensors
from torch import Tensor

from lighttoken.artifact.files import make_directory, write_atomically
from lighttoken.artifact.forms import find_form
from lighttoken.artifact.packing import dequantize, unpack_bits
from lighttoken.artifact.trellis import LEAD, MAX_STATE_BITS, make_index, read_coefficients, unpack_steps, unpack_tiers
from lighttoken.errors import LighttokenError
from lighttoken.version import __version__

DAMAGES = (KeyError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError)  # what reading raises
FORMAT_VERSION = 4
TENSORS_FILE = "compressed_table.safetensors"
METADATA_FILE = "compressed_table.json"
INDEX = ("tiers", "blocks", "lengths", "columns", "position", "component", "step", "book")  # of `trellis.make_index`
ROWS_PER_CHUNK = 1024  # rows decoded at a time, so that work space stays small for vocabularies of any size


def hash_table(table: Tensor) -> str:
    """SHA-256, in hex, of a table's float32 values in row order."""
    return hashlib.sha256(table.detach().float().cpu().contiguous().numpy().data).hexdigest()


def decode_rows(ids: Tensor, tensors: Mapping[str, Tensor], dim: int) -> Tensor:
    """Rows (n, dim) of ids (n,) int64: the equation at the top of this file, differentiable in all float matrices.

    `tensors` are those of `CompressedTable.tensors`, with the entries of `CompressedTable.index` next to them.
    """
    if form := find_form(tensors):
        return _matrix(tensors, "bias", dim).view(-1) + form.read(ids, tensors, dim)
    bias, basis = read_basis(tensors, dim)
    return torch.addmm(bias, read_coordinates(ids, tensors), basis)


def read_basis(tensors: Mapping[str, Tensor], dim: int) -> tuple[Tensor, Tensor]:
    """The bias (d,), and the decoder over the right factor, (m + k, d): what all rows share."""
    basis = _matrix(tensors, "decoder", dim)
    if "right" in tensors:
        basis = torch.cat([basis, _matrix(tensors, "right", dim)])
    return _matrix(tensors, "bias", dim).view(-1), basis


def read_coordinates(ids: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """What rows of ids (n,) have of each row of the basis: the coefficients, then the left factor, (n, m + k)."""
    if "steps" in tensors:
        index = {name: tensors[f"index.{name}"] for name in INDEX}
        gain = _matrix(tensors, "gain", tensors["steps"].shape[1])
        coordinates = read_coefficients(ids, tensors["codes"], gain, **index)
    else:
        coordinates = unpack_bits(tensors["codes"][ids], len(tensors["decoder"])).float()
    if "left" in tensors:
        left = torch.nn.functional.embedding(ids, tensors["left"])
        left = dequantize(left, tensors.get("left.scale"), len(tensors["right"]))
        coordinates = torch.cat([coordinates, left], 1)
    return coordinates


def _matrix(tensors: Mapping[str, Tensor], name: str, columns: int) -> Tensor:
    return dequantize(tensors[name], tensors.get(f"{name}.scale"), columns)


@dataclass(frozen=True)
class CompressedTable:
    """What a codec returns: decodes rows, knows its bytes, saves and loads.

    `tensors` are those on disk; `forms` tells of those without hash codes. `decoder` (m, d) and `bias`, and
    the `left` (V, k) and `right` (k, d) of a low-rank part, are in a float precision or integers with their `.scale`.
    `codes` are (V, m/8) uint8, or, with `state_bits` above 0, the stream of a trellis code, (N,) uint8; then `tiers`
    holds the tier of each row, packed, and `steps` and `gain` (T, n) what each tier's bits mean. `summary` is what the
    codec reports about its work (plan, errors), `settings` what it was told; both are plain JSON values.
    """

    codec: str
    shape: tuple[int, int]  # (V, d)
    tensors: dict[str, Tensor]
    source_sha256: str
    state_bits: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: library_versions())

    def matrix(self, name: str) -> Tensor:
        """A stored matrix in float32."""
        columns = {"left": self.rank, "gain": self.tensors["steps"].shape[1] if self.state_bits else 0}
        return _matrix(self.tensors, name, columns.get(name, self.shape[1]))

    @property
    def rank(self) -> int:
        """Columns of the low-rank part."""
        return self.tensors["right"].shape[0] if "right" in self.tensors else 0

    @cached_property
    def index(self) -> dict[str, Tensor]:
        """What `decode_rows` needs next to the tensors to find its way in them."""
        with torch.device("cpu"):  # whatever the default is
            if form := find_form(self.tensors):
                return form.index(self.tensors, self.shape[0])
            if not self.state_bits:
                return {}
            tiers, steps = unpack_tiers(self.tensors["tiers"].cpu(), self.shape[0]), self.tensors["steps"].cpu()
            index = make_index(tiers, steps, self.state_bits, len(self.tensors["decoder"]))
        return {f"index.{name}": index[name] for name in INDEX}

    @torch.no_grad()
    def decode(self, ids: Tensor | Sequence | None = None) -> Tensor:
        """Rows as float32, (*ids.shape, d) for integer ids of any shape; all rows, (V, d), when ids is None.

        Raises LighttokenError for ids that are not integers or not in the table.
        """
        try:
            ids = range(self.shape[0]) if ids is None else ids
            ids = ids if isinstance(ids, Tensor) else torch.as_tensor(ids, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise LighttokenError(f"ids of type {type(ids).__name__} are no tensor: {error}; pad them first") from error
        flat = ids.reshape(-1).cpu()
        if flat.numel() and (flat.is_floating_point() or flat.dtype == torch.bool):
            raise LighttokenError(f"ids are integers, got {flat.dtype}; convert them with .long()")
        flat = flat.long()
        if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < self.shape[0]:
            raise LighttokenError(
                f"ids from {int(flat.min())} to {int(flat.max())} asked of a table with ids 0 to {self.shape[0] - 1}"
            )
        rows = torch.empty(flat.numel(), self.shape[1], dtype=torch.float32, device="cpu")
        tensors = {name: tensor.cpu() for name, tensor in (self.tensors | self.index).items()}
        with torch.autocast("cpu", enabled=False), torch.device("cpu"):
            for chunk, ids_of_chunk in zip(rows.split(ROWS_PER_CHUNK), flat.split(ROWS_PER_CHUNK), strict=True):
                chunk.copy_(decode_rows(ids_of_chunk, tensors, self.shape[1]))
        return rows.view(*ids.shape, self.shape[1]).to(ids.device)

    def check(self) -> None:
        """Raise ValueError if the tensors are not those of a table of this shape: names, types and sizes."""
        stored, (vocab_size, dim) = self.tensors, self.shape
        form = find_form(stored)
        needed = ["codes", "bias"] + ([] if form else ["decoder"])
        needed += ["tiers", "steps", "gain", "gain.scale"] if self.state_bits else []
        needed += ["row_scale"] if "levels" in stored else []
        for name in needed:
            if name not in stored:
                raise ValueError(f"no tensor {name!r}")
        for name in ("decoder", "left", "right"):
            if name in stored and not stored[name].is_floating_point() and f"{name}.scale" not in stored:
                raise ValueError(f"no tensor '{name}.scale'")
        m = 0 if form else stored["decoder"].shape[0]
        shapes: dict[str, tuple[int, ...]] = {}
        for name, rows in (("decoder", m), ("right", self.rank), ("bias", 1)):
            packed = name in stored and stored[name].dtype == torch.uint8  # int4, two to a byte
            shapes |= {name: (rows, -(-dim // 2) if packed else dim), f"{name}.scale": (rows, 1)}
        if "left" in stored:
            half = stored["left"].dtype == torch.uint8
            shapes |= {"left": (vocab_size, -(-self.rank // 2) if half else self.rank), "left.scale": (1, self.rank)}
        if stored["bias"].ndim == 1:
            shapes["bias"] = (dim,)
        if form:
            shapes |= form.shapes(stored, vocab_size, dim)
        elif self.state_bits:
            if not 1 <= self.state_bits <= MAX_STATE_BITS:
                raise ValueError(f"state_bits is {self.state_bits}")
            steps, tiers = stored["steps"], unpack_tiers(stored["tiers"], vocab_size)
            if steps.ndim != 2 or int(tiers.max()) >= len(steps):
                raise ValueError(f"rows of tier {int(tiers.max())} and steps of shape {tuple(steps.shape)}")
            shapes |= {"gain": tuple(steps.shape), "gain.scale": (len(steps), 1), "steps": tuple(steps.shape)}
            vectors, bits = unpack_steps(steps)
            if int((vectors.cumsum(1) * (bits > 0)).max()) > m:
                raise ValueError(f"steps lead beyond the decoder's {m} rows")
            length = int(bits.sum(1)[tiers.long()].sum())
            shapes |= {"codes": (LEAD + -(-length // 8),), "tiers": tuple(stored["tiers"].shape)}
        else:
            shapes["codes"] = (vocab_size, -(-m // 8))
        for name, tensor in stored.items():
            if tuple(tensor.shape) != shapes.get(name):
                raise ValueError(f"{name} has shape {tuple(tensor.shape)} instead of {shapes.get(name)}")

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
            "state_bits": self.state_bits,
            "source_sha256": self.source_sha256,
            "settings": self.settings,
            "summary": self.summary,
            "versions": self.versions,
        }
        metadata["sha256"] = _digest(tensors, metadata)
        return {TENSORS_FILE: tensors, METADATA_FILE: _plain(metadata)}

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
        check_version(str(metadata_path), metadata["format_version"])
        content = tensors_path.read_bytes()
        if metadata.pop("sha256") != _digest(content, metadata):
            raise LighttokenError(
                f"{tensors_path} or {metadata_path} is damaged: their hash is not the one told there; make it again"
            )
        compressed = CompressedTable(
            codec=str(metadata["codec"]),
            shape=(int(metadata["vocab_size"]), int(metadata["dim"])),
            tensors=parse_safetensors(content),
            source_sha256=metadata["source_sha256"],
            state_bits=int(metadata["state_bits"]),
            settings=dict(metadata["settings"]),
            summary=dict(metadata["summary"]),
            versions=dict(metadata["versions"]),
        )
        compressed.check()
    except LighttokenError:
        raise
    except OSError as error:
        raise LighttokenError(f"cannot read {error.filename}: {error.strerror}; check who may read it") from error
    except DAMAGES as error:
        raise LighttokenError(
            f"{metadata_path} is damaged or no lighttoken artifact ({type(error).__name__}: {error}); make it again"
        ) from error
    return compressed


def _plain(metadata: Mapping[str, Any]) -> bytes:
    return json.dumps(metadata, separators=(",", ":")).encode()


def _digest(tensors: bytes, metadata: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of all that an artifact's files hold but for this hash."""
    return hashlib.sha256(tensors + _plain(metadata)).hexdigest()


def check_version(where: str, version: int) -> None:
    """Raise LighttokenError if what is stored at `where` has another format version than this code reads."""
    if version != FORMAT_VERSION:
        cure = "update lighttoken" if version > FORMAT_VERSION else "compress the table again"
        raise LighttokenError(f"{where} has format version {version}, this lighttoken reads {FORMAT_VERSION}; {cure}")


def library_versions() -> dict[str, str]:
    """The versions that decide an artifact's bytes."""
    return {"lighttoken": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
