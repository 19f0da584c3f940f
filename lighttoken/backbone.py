"""Everything that touches a pretrained model: where it comes from, where its table is, how the table is swapped."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lighttoken.artifact import CompressedTable
from lighttoken.embedding import CompressedEmbedding, CompressedHead, SharedEmbedding, Tie
from lighttoken.errors import LighttokenError
from lighttoken.loading import attach

BackbonePrecision = Literal["float32", "float16", "bfloat16", "int8"]


@dataclass(frozen=True)
class Backbone:
    """A pretrained model by its source: a directory, else files inside an installed package, else a hub id.

    `package` reads `module/folder`; `pip` is the line that installs it. Only one of `package` and `hub_id` is set.
    """

    name: str
    path: str | None = None
    package: str | None = None
    pip: str | None = None
    hub_id: str | None = None
    revision: str | None = None

    @property
    def label(self) -> str:
        """The name for records and tables: the directory's own when `path` is set."""
        return Path(self.path).resolve().name if self.path else self.name

    def source(self) -> str:
        """What `from_pretrained` is given. Raises LighttokenError if the directory or the package is not there."""
        if self.path:
            if not (Path(self.path) / "config.json").is_file():
                raise LighttokenError(
                    f"model.path={self.path} is not a transformers checkpoint: no config.json there; "
                    "give the directory that save_pretrained wrote"
                )
            return self.path
        if self.package:
            module, _, folder = self.package.partition("/")
            spec = importlib.util.find_spec(module)
            if spec is None or spec.origin is None:
                raise LighttokenError(f"model={self.name} needs the package {module}; run {self.pip}")
            return str(Path(spec.origin).parent / folder)
        if self.hub_id is None:
            raise LighttokenError(f"model={self.name} has no source; set model.path=DIR to a checkpoint on disk")
        return self.hub_id

    def tokenizer(self, padding: bool = True) -> PreTrainedTokenizerBase:
        """The model's own tokenizer. Raises LighttokenError if it gives ids that the table has no row for.

        With `padding`, also if it cannot pad.
        """
        tokenizer = self._load(AutoTokenizer)
        rows = self._load(AutoConfig).get_text_config().vocab_size
        largest = max(tokenizer.get_vocab().values())
        if not rows / 2 <= largest + 1 <= rows:  # tables are often padded by a few rows, never by as many again
            raise LighttokenError(
                f"the tokenizer of model={self.label} has ids 0 to {largest} and the table has {rows} rows; "
                "use the tokenizer that was saved with this checkpoint"
            )
        if padding and tokenizer.pad_token is None:
            raise LighttokenError(
                f"the tokenizer of model={self.label} has no padding token and sentences are batched; "
                "set tokenizer.pad_token and save it with the checkpoint"
            )
        return tokenizer

    def table(self) -> Tensor:
        """The input embedding matrix (V, d), float32."""
        return find_embedding(self._load_weights(AutoModel)).weight.detach()

    def encoder(self) -> PreTrainedModel:
        """The model without a head, in float32; of an encoder-decoder, the encoder."""
        model = self._load_weights(AutoModel)
        return model.get_encoder() if model.config.is_encoder_decoder else model

    def classifier(self, num_labels: int) -> PreTrainedModel:
        """The model in float32 with a sentence-classification head: for one label, that of a regression.

        The head is that of the checkpoint if it has one of this size, else new, drawn from torch's random state.
        """
        problem = "regression" if num_labels == 1 else "single_label_classification"
        told: dict[str, Any] = {"num_labels": num_labels, "problem_type": problem, "ignore_mismatched_sizes": True}
        if getattr(self._load(AutoConfig), "pad_token_id", 0) is None:
            # Decoders are often trained without one, and look for it to find the last token of each sentence.
            told["pad_token_id"] = self.tokenizer().pad_token_id
        return self._load_weights(AutoModelForSequenceClassification, **told)

    def reader(self) -> PreTrainedModel:
        """The model in float32 with a head that points at spans, as `classifier` has its head."""
        return self._load_weights(AutoModelForQuestionAnswering)

    def save_checkpoint(self, compressed: CompressedTable, directory: Path, tie: Tie) -> tuple[int, int]:
        """Write the model with the compressed table in, heads and precision kept, and its tokenizer.

        A sentence-transformers folder stays one. Returns the bytes of the weights before and after.
        """
        (name,) = self._load(AutoConfig).architectures or ["AutoModel"]
        if not hasattr(transformers, name):
            raise LighttokenError(
                f"transformers has no {name}, which model={self.label} says it is; correct config.json"
            )
        model = self._load_weights(getattr(transformers, name), dtype="auto")
        before = model.get_memory_footprint(return_buffers=False)
        swap_embedding(model, compressed, tie)
        source = Path(self.source())
        if (source / "modules.json").is_file():
            for file in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "README.md"):
                if (source / file).is_file():
                    shutil.copy(source / file, directory)
            for module in json.loads((source / "modules.json").read_text()):
                if not (source / module["path"]).resolve().is_relative_to(source.resolve()):
                    raise LighttokenError(
                        f"{source / 'modules.json'} names {module['path']!r}, which is outside its folder; "
                        "use a checkpoint that you trust"
                    )
                if module["path"] and (source / module["path"]).is_dir():
                    shutil.copytree(source / module["path"], directory / module["path"], dirs_exist_ok=True)
        model.save_pretrained(directory)
        self._load(AutoTokenizer).save_pretrained(directory)
        return before, sum(file.stat().st_size for file in directory.glob("*.safetensors"))

    def _load_weights(self, auto_class: Any, dtype: Any = torch.float32, **kwargs: Any) -> PreTrainedModel:
        """A model whose base has all its weights from the checkpoint; a pooler or head may be new."""
        with no_load_report():  # it lists the new head too, which is meant to be new
            model, report = self._load(auto_class, dtype=dtype, output_loading_info=True, **kwargs)
        prefix = "" if model.base_model is model else model.base_model_prefix
        base = {name for name, _ in model.base_model.named_parameters(prefix=prefix)}
        absent = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
        missing = sorted(key for key in absent if key in base and "pooler" not in key)
        if missing:
            raise LighttokenError(
                f"the checkpoint of model={self.label} lacks {len(missing)} weights of {type(model).__name__}, "
                f"the first {missing[0]}; save it with save_pretrained"
            )
        return model

    def _load(self, auto_class: Any, **kwargs: Any) -> Any:
        source = self.source()
        try:
            return auto_class.from_pretrained(source, revision=self.revision or "main", **kwargs)
        except Exception as error:  # a foreign or broken checkpoint can fail anywhere in transformers, with any type
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            cure = (
                "with no network, set model.path=DIR to a copy on disk or try +experiment=quickstart, which needs none"
                if source == self.hub_id
                else "check that the directory is a complete checkpoint"
            )
            if "tiktoken" in reason or "sentencepiece" in reason:
                cure = "run pip install sentencepiece protobuf, which this tokenizer needs"
            raise LighttokenError(f"cannot load model={self.label} from {source}: {reason}; {cure}") from error


@contextmanager
def no_load_report() -> Iterator[None]:
    """Inside, transformers does not print which weights it found and which not."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def find_embedding(model: nn.Module) -> nn.Embedding:
    """The token embedding of any transformers model. Raises LighttokenError if it is not a dense one."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    scaled = hasattr(embedding, "embed_scale")  # as BART's and Gemma's
    if not isinstance(embedding, nn.Embedding) or not (type(embedding) is nn.Embedding or scaled):
        raise LighttokenError(
            f"{type(model).__name__} has {type(embedding).__name__} as its token embedding, not nn.Embedding; "
            "load the original, uncompressed checkpoint"
        )
    return embedding


def position_count(model: PreTrainedModel) -> int | None:
    """How many tokens a model takes that adds a learned vector to each place, and None for others."""
    for name, module in model.named_modules():
        # As BERT's, GPT-2's and BART's are called.
        if name.endswith(("position_embeddings", "wpe", "embed_positions")) and isinstance(module, nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - max(unused, getattr(module, "offset", 0))
    return None


def swap_embedding(model: PreTrainedModel, compressed: CompressedTable, tie: Tie = "compressed") -> PreTrainedModel:
    """Replace the token embedding of a transformers model by a compressed one, in place; returns the model.

    `tie` says what becomes of an output head that shares the table: `compressed`, and its logits are computed from the
    compressed table as well, without decoding it; `untie`, and it keeps the original weights, dense and on its own.
    `save_pretrained` then writes a checkpoint that every Auto class loads once lighttoken is imported. Raises
    LighttokenError if the compressed table has another shape than the model's, or for another `tie`.
    """
    if tie not in get_args(Tie):
        raise LighttokenError(f"unknown tie={tie!r}; choose one of {', '.join(get_args(Tie))}")
    shared = replace_embedding(model, compressed, tie)
    own_head = model.get_output_embeddings() is not None and not shared
    attach(model, compressed, "untie" if own_head else tie)
    return model


def check_precision(precision: str) -> None:
    """Raise LighttokenError for a precision that `reduce_precision` does not know or cannot make here."""
    if precision not in get_args(BackbonePrecision):
        choices = ", ".join(get_args(BackbonePrecision))
        raise LighttokenError(f"unknown backbone_precision={precision!r}; choose one of {choices}")
    if precision == "int8" and importlib.util.find_spec("torchao") is None:
        raise LighttokenError("backbone_precision=int8 needs torchao; run pip install 'lighttoken[int8]'")


def reduce_precision(model: nn.Module, precision: BackbonePrecision) -> None:
    """Store the weights around the token embedding in a smaller precision, in place.

    `float16` and `bfloat16` cast all of them, and the rows that a compressed table decodes to. `int8` quantizes the
    linear layers, weights by output channel and activations by token as they come (torchao), not the rest. Raises
    LighttokenError as `check_precision` does.
    """
    check_precision(precision)
    if precision == "int8":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig())
    else:
        model.to(getattr(torch, precision))


def model_bytes(model: nn.Module) -> int:
    """Bytes of all that a checkpoint of the model holds; of a quantized weight, of all its parts."""
    state = {name: each for name, each in model.state_dict(keep_vars=True).items() if ".trained." not in name}
    total = 0
    for tensor in {id(each): each for each in state.values()}.values():  # what is tied counts once
        parts = [tensor]
        if is_traceable_wrapper_subclass(tensor):
            parts = [getattr(tensor, part) for part in tensor.__tensor_flatten__()[0]]
        total += sum(part.numel() * part.element_size() for part in parts)
    return total


def replace_embedding(model: PreTrainedModel, compressed: CompressedTable, tie: Tie) -> bool:
    """Put a compressed embedding where the dense one was, on its device and in its precision.

    Returns whether the output head shared the table.
    """
    old = find_embedding(model)
    head: Any = model.get_output_embeddings()
    if tuple(old.weight.shape) != compressed.shape:
        raise LighttokenError(
            f"the compressed table is {compressed.shape[0]} x {compressed.shape[1]} and the model's is "
            f"{old.weight.shape[0]} x {old.weight.shape[1]}; compress the table of this model"
        )
    scale = getattr(old, "embed_scale", 1.0)
    round_scale = isinstance(scale, Tensor)  # then the number is next to it, as the tensor is empty while one loads
    number = float(getattr(old, "scalar_embed_scale", 1.0) if round_scale else scale)
    new = CompressedEmbedding(compressed, padding_idx=old.padding_idx, scale=number, round_scale=round_scale)
    new = new.to(old.weight.device, old.weight.dtype)
    sharers: dict[str, Any] = {
        target.removesuffix(".weight"): model.get_submodule(target.removesuffix(".weight"))
        for target in _forget_ties(model, old)
    }
    model.set_input_embeddings(new)
    for path, module in sharers.items():
        if module is not head:
            model.set_submodule(path, SharedEmbedding(new))
        elif tie == "compressed":
            model.set_submodule(path, CompressedHead(new, head.bias))
        else:
            head.weight = nn.Parameter(old.weight.detach().clone(), requires_grad=old.weight.requires_grad)
    return head in sharers.values()


def _forget_ties(model: PreTrainedModel, embedding: nn.Embedding) -> list[str]:
    """Make transformers forget which weights it ties to the table; their names.

    Raises LighttokenError if the table is itself tied to another.
    """
    source = next(name for name, module in model.named_modules() if module is embedding) + ".weight"
    if source in model.all_tied_weights_keys:  # as Marian's encoder, whose own embedding the model calls its input
        raise LighttokenError(
            f"{type(model).__name__} ties its input embedding {source} to {model.all_tied_weights_keys[source]}, which "
            "cannot be swapped yet; models that share it the other way round, as Bart and T5, can"
        )
    tied = [target for target, each in model.all_tied_weights_keys.items() if each == source]
    for prefix, part in model.named_modules():
        if isinstance(part, PreTrainedModel):
            for keys in ("_tied_weights_keys", "all_tied_weights_keys"):
                kept = {
                    target: each
                    for target, each in (getattr(part, keys, None) or {}).items()
                    if f"{prefix}.{each}".lstrip(".") != source
                }
                setattr(part, keys, kept)
    return tied
