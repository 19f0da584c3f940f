"""Checkpoints: after `import lighttoken`, `from_pretrained` loads a model with a compressed table as any other.

Everything that depends on the inside of transformers' loader is in this file (tried with 5.23). `config.json` gets a
`quantization_config` that describes the artifact; the embedding's tensors lie beside the model's other weights. The
codes are stored, flat, under the name of the dense weight: a transformers without lighttoken, which would skip the
unknown method and draw a random table, stops at their shape instead.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize_safetensors
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightRenaming
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lighttoken.artifact.table import DAMAGES, CompressedTable, check_version
from lighttoken.backbone.embedding import CompressedEmbedding, CompressedHead, Tie
from lighttoken.backbone.replace import replace_embedding
from lighttoken.backbone.storage import buffer_name
from lighttoken.errors import LighttokenError

METHOD = "lighttoken"
REQUIRED = {"codec", "shape", "source_sha256", "settings", "summary", "versions", "tie", "tensors", "sha256"}


@register_quantization_config(METHOD)
class LighttokenConfig(QuantizationConfigMixin):
    """The description of an artifact, the types and shapes of its tensors, and the head's policy; plain JSON values.

    `sha256` is the hash of the description and of the tensors' content.
    """

    tie: Tie
    tensors: dict[str, tuple[str, list[int]]]  # type and shape
    sha256: str

    def __init__(self, **description: Any):
        self.quant_method: Any = METHOD
        for key, value in description.items():
            setattr(self, key, value)

    @classmethod
    def of(cls, compressed: CompressedTable, tie: Tie) -> "LighttokenConfig":
        """The config of a compressed table."""
        types = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in compressed.tensors.items()}
        tensors = {name: [types[name], list(tensor.shape)] for name, tensor in compressed.tensors.items()}
        config = cls(**compressed.describe(), tie=tie, tensors=tensors)
        config.sha256 = config.digest(compressed.tensors)
        return config

    def empty_table(self) -> CompressedTable:
        """The compressed table with tensors that have no content.

        Raises LighttokenError for another format version, or if a part of the description is missing.
        """
        description = vars(self)
        check_version("the checkpoint's table", description.get("format_version", 0))
        if missing := sorted(REQUIRED - description.keys()):
            raise LighttokenError(
                f"quantization_config in config.json lacks {', '.join(missing)}; make the checkpoint again"
            )
        tensors = {
            name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            for name, (dtype, shape) in self.tensors.items()
        }
        return CompressedTable.from_description(description, tensors)

    def digest(self, tensors: dict[str, Tensor]) -> str:
        """SHA-256, in hex, of the description, as transformers writes config.json, and of the tensors' content."""
        description = {name: value for name, value in vars(self).items() if name not in ("sha256", "quant_method")}
        content = serialize_safetensors({name: tensor.contiguous() for name, tensor in tensors.items()})
        return hashlib.sha256(content + json.dumps(description, sort_keys=True).encode()).hexdigest()

    def check(self, compressed: CompressedTable) -> None:
        """Raise LighttokenError unless this is the description of a table as it was when it was saved."""
        if self.digest(compressed.tensors) != self.sha256:
            raise LighttokenError(
                "the checkpoint's compressed table is damaged: it does not have the hash that config.json names; "
                "make it again"
            )


@register_quantizer(METHOD)
class LighttokenQuantizer(HfQuantizer):
    """Puts the compressed embedding in before the weights are loaded, and makes what follows from them after."""

    requires_calibration = True  # a dense checkpoint is compressed by `lighttoken.compress`, not while it is loaded
    quantization_config: LighttokenConfig
    rest: Mapping[str, Tensor] = MappingProxyType({})  # tensors of the original checkpoint that the model's class lacks

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        config, compressed = self.quantization_config, self.quantization_config.empty_table()
        shared = replace_embedding(model, compressed, config.tie)
        if config.tie == "compressed" and model.get_output_embeddings() is not None and not shared:
            raise LighttokenError(
                "the checkpoint's head shares the compressed table, as its tie='compressed' says, and "
                "tie_word_embeddings=False contradicts it; leave that out, and set it to true in config.json"
            )
        self._remember(model)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        embedding = _find(model)[1]
        if not embedding.codes.is_meta:  # where it is offloaded, it is read when it is needed
            compressed = embedding.compressed_table()
            self.quantization_config.check(compressed)
            # An earlier format is written as the current one when the model is saved again.
            self.quantization_config = LighttokenConfig.of(compressed, self.quantization_config.tie)
            model.config.quantization_config = self.quantization_config
        embedding.prepare()
        # Else .half() and .float() are refused, which do not reach the stored tensors.
        model.is_quantized = False  # type: ignore[assignment]
        return model

    def _remember(self, model: PreTrainedModel) -> None:
        self._name = _find(model)[0].rpartition(".")[2]  # checkpoints of the body and of its heads differ before it

    def get_weight_conversions(self) -> list[WeightRenaming]:
        return [WeightRenaming(f"{self._name}.weight", f"{self._name}.codes")]

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What `save_pretrained` writes: trained matrices go where they are stored."""
        path, embedding = _find(model)
        if not embedding.codes.is_meta:
            config = self.quantization_config  # the model's config, written after this, holds it
            config.sha256 = config.digest(embedding.compressed_table().tensors)
        if isinstance(model.get_output_embeddings(), CompressedHead):
            model.config.tie_word_embeddings = True  # libraries that compare weights by address take them for two
        state = {name: t for name, t in model.state_dict().items() if not name.startswith(f"{path}.trained.")}
        state |= {f"{path}.{name}": tensor for name, tensor in embedding.stored_buffers().items()}
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
    quantizer = LighttokenQuantizer(LighttokenConfig.of(compressed, tie), pre_quantized=True)
    quantizer._remember(model)
    attributes: Any = model  # that from_pretrained sets
    attributes.hf_quantizer, attributes.quantization_method = quantizer, METHOD
    attributes._weight_conversions = quantizer.get_weight_conversions()
    quantizer.postprocess_model(model)


def read_checkpoint(directory: Path) -> CompressedTable:
    """The compressed table in a checkpoint. Raises LighttokenError if there is none, or if files are damaged."""
    try:
        description = json.loads((directory / "config.json").read_bytes()).get("quantization_config", {})
        if description.get("quant_method") != METHOD:
            raise LighttokenError(f"{directory} has no compressed table; compress it with lighttoken.compress")
        config = LighttokenConfig(**description)
        empty = config.empty_table()
        shards = [safe_open(file, "pt") for file in sorted(directory.glob("*.safetensors"))]
        shard_of = {name: shard for shard in shards for name in shard.keys()}  # noqa: SIM118
        # The embedding is where all of its buffers are, under one prefix.
        names = {name: "weight" if name == "codes" else buffer_name(name) for name in empty.tensors}
        prefixes = [name.removesuffix("bias") for name in shard_of if name.rpartition(".")[2] == "bias"]
        (prefix,) = (prefix for prefix in prefixes if all(prefix + name in shard_of for name in names.values()))
        tensors = {}
        for name, like in empty.tensors.items():
            path = prefix + names[name]
            tensors[name] = shard_of[path].get_tensor(path).view(like.dtype).view(like.shape)
        compressed = replace(empty, tensors=tensors)
        compressed.check()
        config.check(compressed)
    except LighttokenError:
        raise
    except (OSError, *DAMAGES) as error:
        raise LighttokenError(f"{directory} is damaged ({type(error).__name__}: {error}); make it again") from error
    return compressed


def _find(model: PreTrainedModel) -> tuple[str, CompressedEmbedding]:
    """The path of the compressed embedding in a model, and the embedding."""
    embedding: Any = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is embedding), embedding
