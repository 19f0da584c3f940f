"""The compressed table and the artifact, which is the compressed table on disk.

`compressed_table.safetensors` holds the tensors; `compressed_table.json` names the codec and the form and describes how
the table was made. Nothing is pickled, and nothing in the two files depends on time or folder.
"""

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32, Int32, Int64
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as serialize_safetensors
from torch import Tensor

from lighttoken.artifact.description import FORMAT_VERSION, check_description, check_version, read_json, refusing
from lighttoken.artifact.files import folder_for_output, write_atomically
from lighttoken.artifact.form import INDEX
from lighttoken.artifact.forms import Form, make_form, read_matrix
from lighttoken.artifact.layout import check_finite, check_layout
from lighttoken.artifact.relations import digest, pack_links, relations_of, unpack_links
from lighttoken.errors import LighttokenError
from lighttoken.version import __version__

TENSORS_FILE = "compressed_table.safetensors"
NEXT_TENSORS_FILE = TENSORS_FILE + ".next"  # while an artifact is replaced
METADATA_FILE = "compressed_table.json"
ERRORS = ("nmse", "weighted_nmse", "rarest_nmse", "cosine")  # of a summary, against the original table
MAX_HEADER = 100_000  # bytes of the names and shapes of tensors, which are a dozen at most
ROWS_PER_CHUNK = 1024  # rows decoded at a time, so that work space stays small for vocabularies of any size


def hash_table(table: Float[Tensor, "V d"]) -> str:
    """SHA-256, in hex, of a table's float32 values in row order."""
    return hashlib.sha256(table.detach().float().cpu().contiguous().numpy().data).hexdigest()


def library_versions() -> dict[str, str]:
    """The versions that decide an artifact's bytes."""
    return {"lighttoken": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


@dataclass(frozen=True, repr=False)
class CompressedTable:
    """What a codec returns: decodes rows, knows its bytes, saves and loads.

    `form` says what the `tensors` are and how rows are read from them (`artifact.forms`). `summary` is what the codec
    reports of its work (plan, errors), `settings` are its inputs; both are plain JSON values. Of a table that predicts
    rows, `relations` says which are related (`artifact.relations`); no file has them.
    """

    codec: str
    form: Form
    shape: tuple[int, int]  # (V, d)
    tensors: dict[str, Tensor]
    source_sha256: str
    settings: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=library_versions)
    relations: Int32[Tensor, " V"] | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        """What a person wants to know, in three lines."""
        errors = [f"{name} {self.summary[name]:.4g}" for name in ("nmse", "weighted_nmse") if name in self.summary]
        rows, dim = self.shape
        lines = [
            f"CompressedTable: {rows:,} x {dim} by {self.codec}, {self.ratio:.2f}x smaller, {self.nbytes:,} bytes",
            f"  form {self.form.name}, made with lighttoken {self.versions.get('lighttoken', '?')}",
            f"  {', '.join(errors) or 'no errors measured'}" + ("; needs a tokenizer" if self.needs_tokenizer else ""),
        ]
        return "\n".join(lines)

    def matrix(self, name: str) -> Float32[Tensor, "rows columns"]:
        """A stored matrix in float32."""
        columns = len(self.tensors["right"]) if name == "left" else self.shape[1]
        return read_matrix(self.tensors, name, columns)

    def without_errors(self) -> "CompressedTable":
        """The table with a summary that has no errors, as nobody knows them once its matrices were trained."""
        return replace(self, summary={name: entry for name, entry in self.summary.items() if name not in ERRORS})

    @cached_property
    def index(self) -> dict[str, Tensor]:
        """What `form.read` needs besides the stored tensors."""
        with torch.device("cpu"):  # whatever the default is
            index = self.form.index(self.tensors, *self.shape)
            return index | ({f"{INDEX}relations": self._relations()} if "maps" in self.tensors else {})

    @property
    def needs_tokenizer(self) -> bool:
        """Whether only a tokenizer can tell which rows are related, which it did not yet."""
        return "maps" in self.tensors and "links" not in self.tensors and self.relations is None

    def with_tokenizer(self, tokenizer: Any) -> "CompressedTable":
        """The table with the relations of its rows, which a tokenizer tells; itself if it needs none.

        Raises LighttokenError if the tokenizer is not that of the table.
        """
        if not self.needs_tokenizer:
            return self
        if not hasattr(tokenizer, "get_vocab"):
            raise LighttokenError(f"{tokenizer!r} is no tokenizer; pass AutoTokenizer.from_pretrained(...)")
        with torch.device("cpu"):  # not on the meta device of a model that is being loaded
            related = replace(self, relations=relations_of(tokenizer, self.shape[0]))
        if not self.tensors["relations"].is_meta:  # else where the index is made
            related._relations()
        return related

    def with_links(self, wanted: bool = True) -> "CompressedTable":
        """The table with its relations among the tensors, so that it needs no tokenizer, or without them."""
        if "maps" not in self.tensors or ("links" in self.tensors) == wanted:
            return self
        if wanted:
            return replace(self, tensors=self.tensors | {"links": pack_links(self._relations())})
        tensors = {name: tensor for name, tensor in self.tensors.items() if name != "links"}
        return replace(self, tensors=tensors, relations=self._relations())

    def is_related_by(self, relations: Int32[Tensor, " V"]) -> bool:
        """Whether the relations are those that the table was compressed with."""
        return torch.equal(digest(relations), self.tensors["relations"].cpu())

    def _relations(self) -> Int32[Tensor, " V"]:
        if "links" in self.tensors:
            return unpack_links(self.tensors["links"].cpu(), self.shape[0])
        if self.relations is None:
            raise LighttokenError(
                "this table predicts rows from those of related tokens, and the tokenizer says which these are; pass "
                "tokenizer=TOKENIZER to lighttoken.load_table, or to lighttoken.swap_embedding"
            )
        if not self.is_related_by(self.relations):
            raise LighttokenError(
                "the tokenizer is not the one that this table was compressed with: other tokens of its vocabulary are "
                "related; use the tokenizer of the original model"
            )
        return self.relations

    @torch.no_grad()
    def decode(self, ids: Tensor | Sequence | None = None) -> Float32[Tensor, "*ids d"]:
        """Rows for integer ids of any shape; all rows, (V, d), when ids is None.

        Raises LighttokenError for ids that are not integers or not in the table.
        """
        ids = self._check_ids(torch.arange(self.shape[0], device="cpu") if ids is None else ids)
        flat = ids.reshape(-1).cpu()
        rows = torch.empty(flat.numel(), self.shape[1], dtype=torch.float32, device="cpu")
        tensors = {name: tensor.cpu() for name, tensor in (self.tensors | self.index).items()}
        with torch.autocast("cpu", enabled=False), torch.device("cpu"):
            for chunk, chunk_ids in zip(rows.split(ROWS_PER_CHUNK), flat.split(ROWS_PER_CHUNK), strict=True):
                chunk.copy_(self.form.read(chunk_ids, tensors, self.shape[1]))
        return rows.view(*ids.shape, self.shape[1]).to(ids.device)

    def _check_ids(self, ids: Tensor | Sequence) -> Int64[Tensor, "*ids"]:
        try:
            tensor = ids if isinstance(ids, Tensor) else torch.as_tensor(ids, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise LighttokenError(f"ids of type {type(ids).__name__} are no tensor: {error}; pad them first") from error
        if tensor.numel() and (tensor.is_floating_point() or tensor.dtype == torch.bool):
            raise LighttokenError(f"ids are integers, got {tensor.dtype}; convert them with .long()")
        tensor = tensor.long()
        smallest, largest = (int(tensor.min()), int(tensor.max())) if tensor.numel() else (0, 0)
        if not 0 <= smallest <= largest < self.shape[0]:
            raise LighttokenError(
                f"ids from {smallest} to {largest} are not in this table, whose ids are 0 to {self.shape[0] - 1}; "
                "use the tokenizer of the model that the table was made from"
            )
        return tensor

    def check_layout(self) -> None:
        """Raise ValueError if the tensors are not those of a table of this form and shape; reads no numbers."""
        check_layout(self.tensors, self.form.layout(self.tensors, *self.shape))

    def check(self) -> None:
        """Raise ValueError if the tensors are not those of a table of this form and shape, or not finite."""
        self.check_layout()
        check_finite(self.tensors)
        self.form.check(self.tensors, *self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the artifact's files, measured on what `save` writes."""
        return sum(map(len, self._files.values()))

    @property
    def ratio(self) -> float:
        """V * d * 4 bytes over `nbytes`."""
        return self.shape[0] * self.shape[1] * 4 / self.nbytes

    def describe(self) -> dict[str, Any]:
        """Everything but the tensors, as plain JSON values, for the artifact and for a checkpoint's config."""
        return {
            "format_version": FORMAT_VERSION,
            "codec": self.codec,
            "form": self.form.describe(),
            "shape": list(self.shape),
            "source_sha256": self.source_sha256,
            "settings": self.settings,
            "summary": self.summary,
            "versions": self.versions,
        }

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any], tensors: dict[str, Tensor], where: str
    ) -> "CompressedTable":
        """Undo `describe`, of format 4 too, for what is stored at `where`; tensors may be on the meta device.

        Raises LighttokenError for another format version, ValueError or RecursionError for what describes no table.
        """
        described = check_description(where, description, tensors)
        compressed = cls(
            codec=described["codec"],
            form=make_form(described["form"]),
            shape=(described["shape"][0], described["shape"][1]),
            tensors=tensors,
            source_sha256=described["source_sha256"],
            settings=described["settings"],
            summary=described["summary"],
            versions=described["versions"],
        )
        compressed.check_layout()
        return compressed

    @cached_property
    def _files(self) -> dict[str, bytes]:
        tensors = serialize_safetensors({name: tensor.contiguous() for name, tensor in self.tensors.items()})
        metadata = self.describe()
        metadata["sha256"] = _digest(tensors, metadata)
        return {TENSORS_FILE: tensors, METADATA_FILE: _json_bytes(metadata)}

    def save(self, directory: str | Path) -> Path:
        """Write the artifact into `directory`, made if need be. An artifact in it is replaced as a whole.

        Raises LighttokenError if the directory cannot be written; what was there before is there still.
        """
        directory = Path(directory)
        with folder_for_output(directory):
            _finish_save(directory)
            # Once the JSON is new, the tensors are the new ones by either name: a kill between two steps loses nothing.
            write_atomically(directory / NEXT_TENSORS_FILE, self._files[TENSORS_FILE])
            try:
                write_atomically(directory / METADATA_FILE, self._files[METADATA_FILE])
            except LighttokenError:
                (directory / NEXT_TENSORS_FILE).unlink()
                raise
            os.replace(directory / NEXT_TENSORS_FILE, directory / TENSORS_FILE)
        return directory


def _finish_save(directory: Path) -> None:
    """Do the last step of a save that was killed before it, as the next save overwrites what lies under that name."""
    following, metadata_path = directory / NEXT_TENSORS_FILE, directory / METADATA_FILE
    if following.is_file() and metadata_path.is_file():
        with contextlib.suppress(ValueError, LighttokenError):  # a damaged JSON names nothing
            metadata = read_json(metadata_path)
            if metadata.pop("sha256", None) == _digest(following.read_bytes(), metadata):
                os.replace(following, directory / TENSORS_FILE)


def load_table(directory: str | Path, tokenizer: Any = None) -> CompressedTable:
    """Read an artifact. Raises LighttokenError, naming the file, if it is missing, damaged, foreign or newer.

    A table that predicts rows from related ones needs the `tokenizer` of its model before it decodes a row. Raises
    LighttokenError for the one of another vocabulary.
    """
    tensors_path, metadata_path = Path(directory) / TENSORS_FILE, Path(directory) / METADATA_FILE
    for path in (metadata_path, tensors_path):
        if not path.is_file() and (Path(directory) / "config.json").is_file():
            raise LighttokenError(
                f"{directory} is a checkpoint, not an artifact; load it with from_pretrained, with lighttoken imported"
            )
        if not path.is_file():
            raise LighttokenError(f"no artifact at {directory}: {path} is missing; make one with lighttoken.compress")
    with refusing(f"{metadata_path} is damaged or no lighttoken artifact"):
        metadata = read_json(metadata_path)
        check_version(str(metadata_path), metadata.get("format_version"))
        content, digest = tensors_path.read_bytes(), metadata.pop("sha256", None)
        if digest != _digest(content, metadata) and (Path(directory) / NEXT_TENSORS_FILE).is_file():
            content = (Path(directory) / NEXT_TENSORS_FILE).read_bytes()
        if digest != _digest(content, metadata):
            raise LighttokenError(
                f"{tensors_path} or {metadata_path} is damaged: the files do not have the hash that the JSON names; "
                "make it again"
            )
        compressed = CompressedTable.from_description(metadata, _parse_tensors(content), str(metadata_path))
        compressed.check()
    return compressed if tokenizer is None else compressed.with_tokenizer(tokenizer)


def _parse_tensors(content: bytes) -> dict[str, Tensor]:
    header = int.from_bytes(content[:8], "little")
    if header > MAX_HEADER:
        raise ValueError(f"the header of {TENSORS_FILE} has {header} bytes instead of at most {MAX_HEADER}")
    return parse_safetensors(content)


def _json_bytes(metadata: Mapping[str, Any]) -> bytes:
    return json.dumps(metadata, separators=(",", ":")).encode()


def _digest(tensors: bytes, metadata: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of everything in an artifact's files except this hash."""
    digest = hashlib.sha256(tensors)
    digest.update(_json_bytes(metadata))
    return digest.hexdigest()
