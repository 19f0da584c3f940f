"""Everything that touches a pretrained model: where it comes from, where its table is, how the table is swapped."""

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lighttoken.artifact import CompressedTable
from lighttoken.embedding import CompressedEmbedding
from lighttoken.errors import LighttokenError


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

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own tokenizer. Raises LighttokenError if it gives ids that the table has no row for."""
        tokenizer = self._load(AutoTokenizer)
        rows = self._load(AutoConfig).get_text_config().vocab_size
        largest = max(tokenizer.get_vocab().values())
        if largest >= rows:
            raise LighttokenError(
                f"the tokenizer of model={self.label} gives ids up to {largest} and the table has {rows} rows; "
                "use the tokenizer that was saved with this checkpoint"
            )
        return tokenizer

    def table(self) -> Tensor:
        """The input embedding matrix (V, d), float32."""
        return find_embedding(self._load(AutoModel, dtype=torch.float32)).weight.detach()

    def classifier(self, num_labels: int) -> PreTrainedModel:
        """The model in float32 with a new sentence-classification head, drawn from torch's random state."""
        verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()  # a new head is the point, not a finding
        try:
            return self._load(AutoModelForSequenceClassification, num_labels=num_labels, dtype=torch.float32)
        finally:
            transformers.logging.set_verbosity(verbosity)

    def _load(self, auto_class: Any, **kwargs: Any) -> Any:
        source = self.source()
        try:
            return auto_class.from_pretrained(source, revision=self.revision or "main", **kwargs)
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            cure = (
                "with no network, set model.path=DIR to a copy on disk or try +experiment=quickstart, which needs none"
                if source == self.hub_id
                else "check that the directory is a complete checkpoint"
            )
            raise LighttokenError(f"cannot load model={self.label} from {source}: {reason}; {cure}") from error


def find_embedding(model: nn.Module) -> nn.Embedding:
    """The token embedding of any transformers model. Raises LighttokenError if it has none, or not a dense one."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    if not isinstance(embedding, nn.Embedding):
        raise LighttokenError(
            f"{type(model).__name__} has {type(embedding).__name__} as its token embedding, not nn.Embedding; "
            "load the original, uncompressed checkpoint"
        )
    return embedding


def swap_embedding(model: PreTrainedModel, compressed: CompressedTable) -> PreTrainedModel:
    """Replace the token embedding of a transformers model by a compressed one, in place; returns the model.

    A head tied to the table keeps the original weights, dense and on its own, and a warning says so. Raises
    LighttokenError if the compressed table has another shape than the model's.
    """
    old = find_embedding(model)
    if tuple(old.weight.shape) != compressed.shape:
        raise LighttokenError(
            f"the compressed table is {compressed.shape[0]} x {compressed.shape[1]} and the model's is "
            f"{old.weight.shape[0]} x {old.weight.shape[1]}; compress the table of this model"
        )
    head = model.get_output_embeddings()
    if head is not None and head.weight is old.weight:
        head.weight = nn.Parameter(old.weight.detach().clone(), requires_grad=old.weight.requires_grad)
        model.config.tie_word_embeddings = False
        warnings.warn(f"the head of {type(model).__name__} was tied to the table; it keeps dense weights", stacklevel=2)
    new = CompressedEmbedding(compressed, padding_idx=old.padding_idx).to(old.weight.device)
    model.set_input_embeddings(new)
    return model
