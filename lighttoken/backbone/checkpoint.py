"""Checkpoints: after `import lighttoken`, `from_pretrained` loads a model with a compressed table as any other.

All that leans on the inside of transformers' loader is in this file (tried with 5.23). `config.json` gets a
`quantization_config` that describes the artifact; the embedding's tensors lie next to the model's other weights. The
codes are stored, flat, under the name of the dense weight: a transformers without lighttoken, which would skip the
method it does not know and draw a random table, stops at their shape instead.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize_safetensors
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightRenaming
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lighttoken.artifact.table import DAMAGES, FORMAT_VERSION, CompressedTable, check_version
from lighttoken.backbone.embedding import CompressedEmbedding, Tie, buffer_name
from lighttoken.errors import LighttokenError

METHOD = "lighttoken"


@register_quantization_config(METHOD)
class LighttokenConfig(QuantizationConfigMixin):
    """What an artifact says next to its tensors, their types and shapes, and the head's policy; plain JSON values.

    `sha256` is of all of it, and of what the tensors hold.
    """

    format_version: int
    codec: str
    shape: list[int]
    state_bits: int
    tie: Tie
    source_sha256: str
    settings: dict[str, Any]
    summary: dict[str, Any]
    versions: dict[str, str]
    tensors: dict[str, tuple[str, list[int]]]  # type and shape
    sha256: str

    def __init__(self, **described: Any):
        self.quant_method: Any = METHOD
        for key, value in described.items():
            setattr(self, key, value)

    @classmethod
    def of(cls, compressed: CompressedTable, tie: Tie) -> "LighttokenConfig":
        told: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "codec": compressed.codec,
            "shape": list(compressed.shape),
            "state_bits": compressed.state_bits,
            "tie": tie,
            "source_sha256": compressed.source_sha256,
            "settings": compressed.settings,
            "summary": compressed.summary,
            "versions": compressed.versions,
            "tensors": {
                name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
                for name, tensor in compressed.tensors.items()
            },
        }
        held = serialize_safetensors({name: each.contiguous() for name, each in compressed.tensors.items()})
        described = json.dumps(told, sort_keys=True).encode()  # as transformers writes config.json
        return cls(**told, sha256=hashlib.sha256(held + described).hexdigest())

    def empty_table(self) -> CompressedTable:
        """The compressed table without what its tensors hold.

        Raises LighttokenError for another format version, or if something is not told.
        """
        told = vars(self)
        check_version("the checkpoint's table", told.get("format_version", 0))
        if missing := sorted(set(get_type_hints(LighttokenConfig)) - told.keys() - {"quant_method"}):
            raise LighttokenError(
                f"quantization_config in config.json lacks {', '.join(missing)}; make the checkpoint again"
            )
        return CompressedTable(
            codec=self.codec,
            shape=(self.shape[0], self.shape[1]),
            tensors={
                name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
                for name, (dtype, shape) in self.tensors.items()
            },
            source_sha256=self.source_sha256,
            state_bits=self.state_bits,
            settings=self.settings,
            summary=self.summary,
            versions=self.versions,
        )

    def check(self, compressed: CompressedTable) -> None:
        """Raise LighttokenError unless this is what was told of a table when it was saved."""
        if LighttokenConfig.of(compressed, self.tie).sha256 != self.sha256:
            raise LighttokenError(
                "the checkpoint's compressed table is damaged: its hash is not the one told in config.json; "
                "make it again"
            )


@register_quantizer(METHOD)
class LighttokenQuantizer(HfQuantizer):
    """Puts the compressed embedding in before the weights are loaded, and makes what follows from them after."""

    requires_calibration = True  # a dense checkpoint is compressed by `lighttoken.compress`, not while it is loaded
    quantization_config: LighttokenConfig

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        from lighttoken.backbone.swap import replace_embedding

        replace_embedding(model, self.quantization_config.empty_table(), self.quantization_config.tie)
        self._remember(model)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        embedding = _find(model)[1]
        if not embedding.codes.is_meta:  # where it is offloaded, it is read when it is needed
            self.quantization_config.check(embedding.compressed_table())
        embedding.prepare()
        # Else .half() and .float() are refused, from which what is stored is safe.
        model.is_quantized = False  # type: ignore[assignment]
        return model

    def _remember(self, model: PreTrainedModel) -> None:
        self._name = _find(model)[0].rpartition(".")[2]  # checkpoints of the body and of its heads differ before it

    def get_weight_conversions(self) -> list[WeightRenaming]:
        return [WeightRenaming(f"{self._name}.weight", f"{self._name}.codes")]

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What `save_pretrained` writes: what was trained goes where it is stored."""
        path, embedding = _find(model)
        if not embedding.codes.is_meta:
            told = self.quantization_config  # which the model's config, written after this, holds
            told.sha256 = LighttokenConfig.of(embedding.compressed_table(), told.tie).sha256
        state = {name: each for name, each in model.state_dict().items() if not name.startswith(f"{path}.trained.")}
        return state | {f"{path}.{name}": each for name, each in embedding.stored_buffers().items()}, {}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:  # what transformers' Trainer asks besides
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def attach(model: PreTrainedModel, compressed: CompressedTable, tie: Tie) -> None:
    """Make `save_pretrained` write a model whose embedding was swapped as a checkpoint that loads again."""
    quantizer = LighttokenQuantizer(LighttokenConfig.of(compressed, tie), pre_quantized=True)
    quantizer._remember(model)
    loaded: Any = model  # what from_pretrained sets
    loaded.hf_quantizer, loaded.quantization_method = quantizer, METHOD
    loaded._weight_conversions = quantizer.get_weight_conversions()
    quantizer.postprocess_model(model)


def read_checkpoint(directory: Path) -> CompressedTable:
    """The compressed table in a checkpoint. Raises LighttokenError if there is none, or if files are damaged."""
    try:
        described = json.loads((directory / "config.json").read_bytes()).get("quantization_config", {})
        if described.get("quant_method") != METHOD:
            raise LighttokenError(f"{directory} has no compressed table; compress it with lighttoken.compress")
        config = LighttokenConfig(**described)
        empty = config.empty_table()
        shards = [safe_open(file, "pt") for file in sorted(directory.glob("*.safetensors"))]
        places = {name: shard for shard in shards for name in shard.keys()}  # noqa: SIM118
        names = {name: "weight" if name == "codes" else buffer_name(name) for name in empty.tensors}
        prefixes = (name.removesuffix("bias") for name in places if name.rpartition(".")[2] == "bias")
        (prefix,) = (each for each in prefixes if all(each + name in places for name in names.values()))
        tensors = {
            name: places[prefix + names[name]].get_tensor(prefix + names[name]).view(meant.dtype).view(meant.shape)
            for name, meant in empty.tensors.items()
        }
        compressed = replace(empty, tensors=tensors)
        compressed.check()
        config.check(compressed)
    except LighttokenError:
        raise
    except (OSError, *DAMAGES) as error:
        raise LighttokenError(f"{directory} is damaged ({type(error).__name__}: {error}); make it again") from error
    return compressed


def _find(model: PreTrainedModel) -> tuple[str, CompressedEmbedding]:
    """Where the compressed embedding is in a model, and itself."""
    embedding: Any = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is embedding), embedding
