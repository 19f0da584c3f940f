"""Checkpoints: after `import lighttoken`, `from_pretrained` loads a model with a compressed table as any other.

Everything that depends on the inside of transformers' loader is in this file (tried with 5.23). `config.json` gets a
`quantization_config` that describes the artifact; the embedding's tensors lie beside the model's other weights. The
codes are stored, flat, under the name of the dense weight: a transformers without lighttoken, which would skip the
unknown method and draw a random table, stops at their shape instead.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize_safetensors
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import WeightRenaming
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

import lighttoken.backbone.replace as replacing  # not its names: its own import of transformers may load this module
from lighttoken.artifact.description import check_version, read_json, refusing, shorten
from lighttoken.artifact.layout import Tensors
from lighttoken.artifact.relations import relations_of
from lighttoken.artifact.table import CompressedTable
from lighttoken.backbone.embedding import CompressedEmbedding, CompressedHead, Tie
from lighttoken.backbone.storage import as_integers, buffer_name
from lighttoken.errors import LighttokenError

METHOD = "lighttoken"
REQUIRED = {"codec", "source_sha256", "settings", "summary", "versions", "tie", "tensors", "sha256"}
KNOWN = REQUIRED | {"format_version", "form", "shape", "quant_method", "state_bits"}  # the last one is of format 4
WHERE = "quantization_config in config.json"
MAX_HEADER = 10_000_000  # bytes of the names and shapes of a shard's tensors
TYPES = {name: getattr(torch, name) for name in ("float32", "float16", "int8", "uint8")}  # of stored tensors
_NAMES = {torch.int32: "I32", torch.int8: "I8", torch.uint8: "U8"}  # in safetensors


@register_quantization_config(METHOD)
class StoredConfig(QuantizationConfigMixin):
    """The description of an artifact, the types and shapes of its tensors, and the head's policy; plain JSON values.

    `sha256` is the hash of the description and of the tensors' content.
    """

    tie: Tie
    tensors: dict[str, list[Any]]  # type and shape
    sha256: str

    def __init__(self, /, **description: Any):
        """Raises LighttokenError for another format version, or for what no checkpoint's table has."""
        with refusing(f"{WHERE} is damaged"):
            check_version("the checkpoint's table", description.get("format_version"))
            if unknown := sorted(description.keys() - KNOWN):
                raise ValueError(f"unknown {unknown[0]!r}")
        self.quant_method: Any = METHOD
        for key, value in description.items():
            setattr(self, key, value)

    @classmethod
    def of(cls, compressed: CompressedTable, tie: Tie) -> "StoredConfig":
        """The config of a compressed table."""
        config = cls(**compressed.describe(), tie=tie)
        config.describe(compressed)
        return config

    def describe(self, compressed: CompressedTable) -> None:
        """Describe the tensors of a compressed table, and what is known of their errors."""
        tensors, self.summary = compressed.tensors, compressed.summary
        types = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
        self.tensors = {name: [types[name], list(tensor.shape)] for name, tensor in tensors.items()}
        self.sha256 = self.digest(tensors)

    def empty_table(self) -> CompressedTable:
        """The compressed table with tensors that have no content.

        Raises LighttokenError for another format version, or if the description is that of no table.
        """
        description = vars(self)
        if missing := sorted(REQUIRED - description.keys()):
            raise LighttokenError(f"{WHERE} lacks {', '.join(missing)}; make the checkpoint again")
        with refusing(f"{WHERE} is damaged"):
            if self.tie not in get_args(Tie):
                raise ValueError(f"tie is {self.tie!r} instead of {' or '.join(get_args(Tie))}")
            if type(self.tensors) is not dict:
                raise ValueError(f"tensors is {shorten(repr(self.tensors))} instead of an object")
            tensors = {name: _without_content(name, described) for name, described in self.tensors.items()}
            return CompressedTable.from_description(description, tensors, "the checkpoint's table")

    def digest(self, tensors: Mapping[str, Tensor]) -> str:
        """SHA-256, in hex, of the description, as transformers writes config.json, and of the tensors' content."""
        description = {name: value for name, value in vars(self).items() if name not in ("sha256", "quant_method")}
        content = serialize_safetensors({name: tensor.contiguous() for name, tensor in tensors.items()})
        return hashlib.sha256(content + json.dumps(description, sort_keys=True).encode()).hexdigest()

    def check(self, compressed: CompressedTable) -> None:
        """Raise LighttokenError unless the content is that of a table, as it was when it was saved."""
        if self.digest(compressed.tensors) != self.sha256:
            raise LighttokenError(
                "the checkpoint's compressed table is damaged: it does not have the hash that config.json names; "
                "make it again"
            )
        with refusing("the checkpoint's compressed table is damaged"):
            compressed.check()


@register_quantizer(METHOD)
class LighttokenQuantizer(HfQuantizer):
    """Puts the compressed embedding in before the weights are loaded, and makes what follows from them after."""

    quantization_config: Any  # a StoredConfig; of a dense checkpoint, the `lighttoken.LighttokenConfig` of the caller
    rest: Mapping[str, Tensor] = MappingProxyType({})  # tensors of the original checkpoint that the model's class lacks
    links = True  # a table that predicts rows is saved with what a tokenizer tells, see `save_with_tokenizer`

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        if not self.pre_quantized:
            self.quantization_config.prepare(model.config.name_or_path, replacing.find_embedding(model).num_embeddings)
            return
        config, empty = self.quantization_config, self.quantization_config.empty_table()
        if checkpoint_files and all(str(file).endswith(".safetensors") for file in checkpoint_files):
            # Before transformers makes room for them.
            with refusing("the checkpoint's compressed table is damaged"):
                _find_stored([Path(file) for file in checkpoint_files], empty.tensors)
        if empty.needs_tokenizer:
            empty = empty.with_tokenizer(_tokenizer(model.config, checkpoint_files or []))
        shared = replacing.replace_embedding(model, empty, config.tie)
        if config.tie == "compressed" and model.get_output_embeddings() is not None and not shared:
            raise LighttokenError(
                "the checkpoint's head shares the compressed table, as its tie='compressed' says, and "
                "tie_word_embeddings=False contradicts it; leave that out, and set it to true in config.json"
            )
        self._remember(model)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if not self.pre_quantized:
            config = self.quantization_config
            self.remove_quantization_config(model)
            model = config.compress(model)  # which gives the model a quantizer of its own
            model.is_quantized = False  # type: ignore[assignment]
            return model
        embedding = _find(model)[1]
        if embedding.codes.is_meta:
            raise LighttokenError(
                "device_map or offload_buffers=True keeps the compressed table out of memory; "
                "put the embedding on a device"
            )
        with refusing("the checkpoint's compressed table is damaged"):
            compressed = embedding.compressed_table()
        self.quantization_config.check(compressed)
        # An earlier format is written as the current one when the model is saved again.
        self.quantization_config = StoredConfig.of(compressed, self.quantization_config.tie)
        model.config.quantization_config = self.quantization_config
        embedding.prepare()
        # Else .half() and .float() are refused, which do not reach the stored tensors.
        model.is_quantized = False  # type: ignore[assignment]
        return model

    def _remember(self, model: PreTrainedModel) -> None:
        self._name = _find(model)[0].rpartition(".")[2]  # checkpoints of the body and of its heads differ before it

    def get_weight_conversions(self) -> list[WeightRenaming]:
        if not self.pre_quantized:
            return []
        return [WeightRenaming(f"{self._name}.weight", f"{self._name}.codes")]

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What `save_pretrained` writes: trained matrices go where they are stored."""
        path, embedding = _find(model)
        if isinstance(model.get_output_embeddings(), CompressedHead):
            model.config.tie_word_embeddings = True  # libraries that compare weights by address take them for two
        state, own = model.state_dict(), (f"{path}.trained.", f"{path}.links")
        state = {name: tensor for name, tensor in state.items() if not name.startswith(own)}
        if embedding.codes.is_meta:  # offloaded
            return {**self.rest, **state}, {}
        compressed = embedding.compressed_table().with_links(self.links)
        self.quantization_config.describe(compressed)  # the model's config, written after this, holds it
        state |= {f"{path}.{buffer_name(name)}": as_integers(name, t) for name, t in compressed.tensors.items()}
        return {**self.rest, **state}, {}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:  # transformers' Trainer reads it
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def attach(model: PreTrainedModel, compressed: CompressedTable, tie: Tie) -> None:
    """Make `save_pretrained` write a model whose embedding was swapped as a checkpoint that loads again."""
    quantizer = LighttokenQuantizer(StoredConfig.of(compressed, tie), pre_quantized=True)
    quantizer._remember(model)
    attributes: Any = model  # that from_pretrained sets
    attributes.hf_quantizer, attributes.quantization_method = quantizer, METHOD
    attributes._weight_conversions = quantizer.get_weight_conversions()
    quantizer.postprocess_model(model)


def save_with_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write a model and its tokenizer. A compressed table that predicts rows is saved as in the artifact.

    `save_pretrained` alone adds the relations to it, in about 1.5 bytes a row, so that the folder needs no tokenizer.
    """
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if isinstance(quantizer, LighttokenQuantizer):
        compressed = _find(model)[1].compressed_table()
        rows = compressed.shape[0]
        quantizer.links = "maps" in compressed.tensors and not compressed.is_related_by(relations_of(tokenizer, rows))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if isinstance(quantizer, LighttokenQuantizer):
        quantizer.links = True


def read_checkpoint(directory: Path) -> CompressedTable:
    """The compressed table in a checkpoint. Raises LighttokenError if there is none, or if files are damaged."""
    with refusing(f"{directory} is damaged"):
        description = read_json(directory / "config.json").get("quantization_config")
        if not isinstance(description, dict) or description.get("quant_method") != METHOD:
            raise LighttokenError(f"{directory} has no compressed table; compress it with lighttoken.compress")
        config = StoredConfig(**description)
        empty = config.empty_table()
        stored = _find_stored(sorted(directory.glob("*.safetensors")), empty.tensors)
        tensors = {name: shard.get_tensor(path) for name, (shard, path) in stored.items()}
        tensors = {name: tensor.view(empty.tensors[name].dtype) for name, tensor in tensors.items()}
        tensors = {name: tensor.view(empty.tensors[name].shape) for name, tensor in tensors.items()}
        compressed = replace(empty, tensors=tensors)
        config.check(compressed)
    return compressed


def _tokenizer(config: Any, files: Sequence[str]) -> PreTrainedTokenizerBase:
    """The tokenizer beside the weights of a checkpoint, or else of the folder or the hub that its config is from."""
    from transformers import AutoTokenizer

    source, revision = config.name_or_path, getattr(config, "_commit_hash", None)
    folder = Path(files[0]).parent if files else Path(source)
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
        source, revision = str(folder), None
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision)
    except Exception as error:  # of any type, as in Backbone._call
        raise LighttokenError(
            f"{source} has no tokenizer, and its compressed table needs it, to know which rows are related; save it "
            "there with tokenizer.save_pretrained"
        ) from error


def _without_content(name: str, described: Any) -> Tensor:
    """A tensor on the meta device. Raises ValueError unless `described` is [type, shape] of a stored tensor."""
    if type(described) is list and len(described) == 2:
        dtype, shape = described
        if dtype in list(TYPES) and type(shape) is list and all(type(n) is int and n >= 0 for n in shape):
            return torch.empty(shape, dtype=TYPES[dtype], device="meta")
    raise ValueError(f"{shorten(name)} is {shorten(repr(described))} instead of [type, shape]")


def _find_stored(shards: Sequence[Path], like: Tensors) -> dict[str, tuple[Any, str]]:
    """Where the tensors of a compressed table lie: name -> open shard and name in it; `like` has no content.

    Raises ValueError unless there is one embedding that has them all, in the shapes and types of `storage`.
    """
    for path in shards:
        with path.open("rb") as file:
            if (header := int.from_bytes(file.read(8), "little")) > MAX_HEADER:
                raise ValueError(f"the header of {path.name} has {header} bytes instead of at most {MAX_HEADER}")
    shard_of = {name: shard for shard in (safe_open(path, "pt") for path in shards) for name in shard.keys()}  # noqa: SIM118
    # The embedding is where all of its buffers are, under one prefix.
    names = {name: "weight" if name == "codes" else buffer_name(name) for name in like}
    prefixes = [name.removesuffix("bias") for name in shard_of if name.rpartition(".")[2] == "bias"]
    prefixes = [prefix for prefix in prefixes if all(prefix + name in shard_of for name in names.values())]
    if len(prefixes) != 1:
        raise ValueError(f"{len(prefixes)} embeddings instead of one have the tensors {', '.join(names.values())}")
    stored = {name: (shard_of[prefixes[0] + own], prefixes[0] + own) for name, own in names.items()}
    for name, (shard, full_name) in stored.items():
        part, integers = shard.get_slice(full_name), as_integers(name, like[name])
        found, expected = (part.get_dtype(), part.get_shape()), (_NAMES[integers.dtype], list(integers.shape))
        if found != expected:
            raise ValueError(f"{full_name} has {found} instead of {expected}")
    return stored


def _find(model: PreTrainedModel) -> tuple[str, CompressedEmbedding]:
    """The path of the compressed embedding in a model, and the embedding."""
    embedding: Any = model.get_input_embeddings()
    if not isinstance(embedding, CompressedEmbedding):
        raise LighttokenError(
            f"the model's embedding is a {type(embedding).__name__}; put the CompressedEmbedding back with "
            "model.set_input_embeddings(...) before you save it"
        )
    return next(name for name, module in model.named_modules() if module is embedding), embedding
