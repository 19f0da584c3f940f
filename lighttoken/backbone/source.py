"""Where a pretrained model comes from: its table, its tokenizer, the model with the head of a task."""

import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from lighttoken.artifact.files import write_atomically, write_folder
from lighttoken.artifact.table import METADATA_FILE, TENSORS_FILE, CompressedTable
from lighttoken.backbone.card import CARD_FILE, model_card
from lighttoken.backbone.checkpoint import save_with_tokenizer
from lighttoken.backbone.classes import order_classes
from lighttoken.backbone.embedding import Tie
from lighttoken.backbone.folder import WEIGHTS, copy_rest, read_gguf_table, read_parameter, read_pooling, read_tensors
from lighttoken.backbone.language_model import is_masked, predicts_tokens
from lighttoken.backbone.loaded import check_tokenizer
from lighttoken.backbone.replace import find_embedding
from lighttoken.backbone.swap import swap_embedding
from lighttoken.errors import LighttokenError

# Files that a checkpoint would be read with, or shadowed by, after it has replaced another or an artifact.
OF_EARLIER_CHECKPOINTS = (METADATA_FILE, TENSORS_FILE, "model.safetensors*", "model-*-of-*.safetensors")


@dataclass(frozen=True)
class Backbone:
    """A pretrained model by its source: a directory, else a hub id, else files inside an installed package.

    `package` reads `module/folder`; `pip` is the line that installs it. `gguf_file` names a GGUF file in the directory
    or in the repository of the hub: transformers reads config, tokenizer and weights from it, dequantized.
    """

    name: str
    path: str | None = None
    hub_id: str | None = None
    package: str | None = None
    pip: str | None = None
    revision: str | None = None
    gguf_file: str | None = None

    @property
    def label(self) -> str:
        """The name in records and tables: that of the directory or of the hub's checkpoint, where one is set."""
        return Path(self.path).resolve().name if self.path else (self.hub_id or self.name).rpartition("/")[2]

    def source(self) -> str:
        """The argument of `from_pretrained`. Raises LighttokenError if the directory or a package is not there."""
        if self.gguf_file:
            self._check_gguf()
        if self.path:
            if not self.gguf_file and not (Path(self.path) / "config.json").is_file():
                raise LighttokenError(
                    f"model.path={self.path} is not a transformers checkpoint: no config.json there; give the "
                    "directory that save_pretrained wrote, or model.hub_id=ID for a checkpoint of the hub"
                )
            return self.path
        if self.hub_id:
            return self.hub_id
        if self.package:
            module, _, folder = self.package.partition("/")
            spec = importlib.util.find_spec(module)
            if spec is None or spec.origin is None:
                raise LighttokenError(f"model={self.name} needs the package {module}; run {self.pip}")
            return str(Path(spec.origin).parent / folder)
        raise LighttokenError(f"model={self.name} has no source; set model.path=DIR to a checkpoint on disk")

    def fingerprint(self) -> list[Any]:
        """Plain values that change when the checkpoint does: of a folder, they have the size and time of every file."""
        source = self.source()
        files = sorted(file for file in Path(source).iterdir() if file.is_file()) if Path(source).is_dir() else []
        # The name of a branch stays the same when the hub has a new commit of it.
        commit = self.revision if Path(source).is_dir() else getattr(self._load(AutoConfig), "_commit_hash", None)
        return [
            source,
            self.gguf_file,
            commit,
            [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files],
        ]

    def _check_gguf(self) -> None:
        """Raise LighttokenError if the GGUF file, or a package that reads it, is not there."""
        if not (self.path or self.hub_id):
            raise LighttokenError(
                f"model.gguf_file={self.gguf_file} is in no folder; set model.path=DIR, or model.hub_id=ID"
            )
        if self.path and not (Path(self.path) / str(self.gguf_file)).is_file():
            raise LighttokenError(
                f"model.gguf_file={self.gguf_file} is no file in model.path={self.path}; name a GGUF file there"
            )
        if missing := [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]:
            raise LighttokenError(
                f"model.gguf_file={self.gguf_file} needs the package {missing[0]}; run pip install 'lighttoken[gguf]'"
            )

    def tokenizer(self, padding: bool = True) -> PreTrainedTokenizerBase:
        """The model's own tokenizer. Raises LighttokenError if the table has no row for some of its ids.

        With `padding`, also if it cannot pad.
        """
        rows = self._load(AutoConfig).get_text_config().vocab_size
        return check_tokenizer(self._load(AutoTokenizer), rows, self.label, padding)

    def table(self) -> Tensor:
        """The input embedding matrix (V, d), float32. The rest of the model is not read, where its files allow that."""
        table = self._table_alone()
        return find_embedding(self._load_weights(AutoModel)[0]).weight.detach() if table is None else table

    def _table_alone(self) -> Tensor | None:
        """The table from its own tensor; None where only the loaded model shows which one that is."""
        hub = {"revision": self.revision or "main"}
        if self.gguf_file:
            return read_gguf_table(self._call(cached_file, self.source(), filename=self.gguf_file, **hub))
        config = self._load(AutoConfig)
        try:
            with torch.device("meta"):  # a model of the same names and shapes, without numbers
                model = AutoModel.from_config(config, trust_remote_code=False)
        except Exception:  # loading will say what is wrong
            return None
        embedding = find_embedding(model)
        name = next(name for name, module in model.named_modules() if module is embedding) + ".weight"
        names = [name, f"{model.base_model_prefix}.{name}"]  # without a head, and with one
        return self._call(read_parameter, self.source(), names=names, shape=embedding.weight.shape, **hub)

    def encoder(self) -> PreTrainedModel:
        """The model without a head, in float32; of an encoder-decoder, the encoder."""
        model, _ = self._load_weights(AutoModel)
        return model.get_encoder() if model.config.is_encoder_decoder else model

    def classifier(self, num_labels: int, class_names: Sequence[str] | None = None) -> PreTrainedModel:
        """The model in float32 with a sentence-classification head: for one label, that of a regression.

        A head of this size in the checkpoint is kept, its classes in the order of `class_names`, which are written to
        the model's config; else the head is new, drawn from torch's random state. Raises LighttokenError if the
        checkpoint's classes have other names.
        """
        problem = "regression" if num_labels == 1 else "single_label_classification"
        settings: dict[str, Any] = {"num_labels": num_labels, "problem_type": problem, "ignore_mismatched_sizes": True}
        config = self._load(AutoConfig)
        if class_names:
            settings["id2label"] = dict(enumerate(class_names))
            settings["label2id"] = {name: i for i, name in enumerate(class_names)}
        if getattr(config, "pad_token_id", 0) is None:
            # Decoders are often trained without one; their classifiers need it to find the last token of a sentence.
            settings["pad_token_id"] = self.tokenizer().pad_token_id
        model, report = self._load_weights(AutoModelForSequenceClassification, **settings)
        if class_names:
            order_classes(model, config.id2label, class_names, report.new, self.label)
        return model

    def reader(self) -> PreTrainedModel:
        """The model in float32 with a head that points at spans, kept or new as that of `classifier`."""
        return self._load_weights(AutoModelForQuestionAnswering)[0]

    def language_model(self) -> PreTrainedModel:
        """The model in float32 with the head that predicts tokens: the next one, or masked ones.

        Raises LighttokenError for an encoder-decoder, and if the checkpoint lacks the head.
        """
        if self.is_encoder_decoder:
            raise LighttokenError(
                f"model={self.label} is an encoder-decoder; perplexity needs a decoder or a masked model"
            )
        auto_class = AutoModelForMaskedLM if is_masked(self._load(AutoConfig)) else AutoModelForCausalLM
        model, report = self._load_weights(auto_class)
        if report.new:
            raise LighttokenError(
                f"the checkpoint of model={self.label} has no head that predicts tokens: it lacks {min(report.new)} of "
                f"{type(model).__name__}; use a checkpoint that was saved with its head"
            )
        return model

    def predicts_tokens(self) -> bool:
        """Whether the checkpoint is a decoder, or a masked model that has its head.

        Encoders of sentence-transformers often name a class with a head that was not saved.
        """
        config = self._load(AutoConfig)
        if config.is_encoder_decoder or not predicts_tokens((config.architectures or [""])[0]):
            return False
        return not is_masked(config) or not self._load_weights(AutoModelForMaskedLM)[1].new

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the model reads with one part and writes with another, as T5."""
        return self._load(AutoConfig).is_encoder_decoder

    def pooling(self) -> str | None:
        """How sentence-transformers would pool this checkpoint's hidden states; None if its folder does not say."""
        return read_pooling(self._folder())

    def save_checkpoint(
        self,
        compressed: CompressedTable,
        directory: Path,
        tie: Tie,
        change: Callable[[PreTrainedModel], None] | None = None,
        command: str | None = None,
    ) -> tuple[int, int]:
        """Write the model with the compressed table, all other files of its checkpoint, and a model card.

        `change` is called with the model before it is written; the card names the `command`.

        Heads and precision stay the same; a head that the checkpoint lacks is not made up. Weights that the model's
        class does not have, as the pooler of a BERT that is saved as a masked language model, are written as they are.
        A checkpoint or an artifact in the folder is replaced as a whole, or not at all after an error. Returns the
        bytes of the weights before and after. Raises LighttokenError if the folder cannot be written.
        """
        names = self._load(AutoConfig).architectures or ["AutoModelForCausalLM" if self.gguf_file else "AutoModel"]
        if not hasattr(transformers, names[0]):
            raise LighttokenError(
                f"transformers has no {names[0]}, which model={self.label} says it is; correct config.json"
            )
        model, report = self._load_weights(getattr(transformers, names[0]), dtype="auto")
        body = f"{model.base_model_prefix}."
        if model.base_model is not model and not all(name.startswith(body) for name in report.new):
            model, report = self._load_weights(AutoModel, dtype="auto")  # the head was not saved
        source = self._folder()
        rest = read_tensors(source, report.unused)
        before = model.get_memory_footprint(return_buffers=False) + sum(tensor.nbytes for tensor in rest.values())
        swap_embedding(model, compressed, tie)
        if change is not None:
            change(model)
        quantizer: Any = model.hf_quantizer
        quantizer.rest = rest
        with write_folder(directory, OF_EARLIER_CHECKPOINTS) as folder:
            copy_rest(source, folder)
            save_with_tokenizer(model, self._load(AutoTokenizer), folder)
            healing = getattr(model.config, "healing", None)
            card = model_card(self.label, type(model).__name__, compressed, folder, self.hub_id, command, healing)
            write_atomically(folder / CARD_FILE, card.encode())
        return before, sum(file.stat().st_size for file in directory.glob("*.safetensors"))

    def _folder(self) -> Path:
        """The folder of the checkpoint's files; of a checkpoint of the hub, all but weights are downloaded first."""
        source = self.source()
        if source != self.hub_id:
            return Path(source)
        kwargs = {"revision": self.revision or "main", "ignore_patterns": [f"*{suffix}" for suffix in WEIGHTS]}
        return Path(self._call(huggingface_hub.snapshot_download, source, **kwargs))

    def _load_weights(
        self, auto_class: Any, dtype: Any = torch.float32, **kwargs: Any
    ) -> tuple[PreTrainedModel, "LoadReport"]:
        """A model whose base has all its weights from the checkpoint; a pooler or head may be new."""
        with no_load_report():  # it lists new heads too
            model, report = self._load(auto_class, dtype=dtype, output_loading_info=True, **kwargs)
        prefix = "" if model.base_model is model else model.base_model_prefix
        base = {name for name, _ in model.base_model.named_parameters(prefix=prefix)}
        new = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
        computed = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()  # as Marian's sines of positions
        missing = sorted(
            key for key in new & base if "pooler" not in key and not any(name.endswith(key) for name in computed)
        )
        if missing:
            raise LighttokenError(
                f"the checkpoint of model={self.label} lacks {len(missing)} weights of {type(model).__name__}, "
                f"the first {missing[0]}; save it with save_pretrained"
            )
        return model, LoadReport(new, set(report["unexpected_keys"]))

    def _load(self, auto_class: Any, **kwargs: Any) -> Any:
        # Without trust_remote_code, transformers would ask a question on the terminal, and wait.
        settings: dict[str, Any] = {"revision": self.revision or "main", "trust_remote_code": False}
        if self.gguf_file:
            settings["gguf_file"] = self.gguf_file
            if auto_class not in (AutoConfig, AutoTokenizer):  # weights as they are computed with, not packed
                settings["quantization_config"] = GgufConfig(dequantize=True)
        return self._call(auto_class.from_pretrained, self.source(), **settings, **kwargs)

    def _call(self, load: Any, source: str, **kwargs: Any) -> Any:
        try:
            return load(source, **kwargs)
        except Exception as error:  # a foreign or broken checkpoint can fail anywhere in transformers, with any type
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            cure = (
                "with no network, set model.path=DIR to a copy on disk or try +experiment=quickstart, which needs none"
                if source == self.hub_id
                else "check that the directory is a complete checkpoint"
            )
            if match := re.match(r"Unrecognized configuration class <class '.*\.(\w+)'>", reason):  # as BERT2BERT's
                reason, cure = f"transformers has no {load.__self__.__name__} for {match[1]}", "compress a part of it"
            if "tiktoken" in reason or "sentencepiece" in reason:
                cure = "run pip install sentencepiece protobuf, which this tokenizer needs"
            raise LighttokenError(f"cannot load model={self.label} from {source}: {reason}; {cure}") from error


@dataclass(frozen=True)
class LoadReport:
    """Names of parameters: those of the model that were not in the checkpoint, and the other way round."""

    new: set[str]
    unused: set[str]


@contextmanager
def no_load_report() -> Iterator[None]:
    """Inside, transformers does not print which weights it found and which not."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
