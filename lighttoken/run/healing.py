"""Healing: before any task, a backbone learns to give its original hidden states with the compressed table in."""

import hashlib
import json
import logging
import time
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import lightning as L
import torch
from filelock import FileLock
from lightning.pytorch.loggers import Logger
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedModel

from lighttoken.artifact.files import make_directory, write_atomically
from lighttoken.artifact.table import CompressedTable
from lighttoken.backbone.language_model import is_masked
from lighttoken.backbone.replace import position_count
from lighttoken.backbone.swap import swap_embedding
from lighttoken.codec.corpus import TextFile, text_pieces
from lighttoken.codec.prior import WordFrequency, special_tokens
from lighttoken.codec.texts import Texts
from lighttoken.errors import LighttokenError
from lighttoken.run.artifacts import code_hash
from lighttoken.tasks.data import EpochSampler, held_out_texts
from lighttoken.tasks.healer import Healer

if TYPE_CHECKING:
    from lighttoken.backbone.loaded import LoadedBackbone
    from lighttoken.backbone.source import Backbone
    from lighttoken.tasks.data import TaskData

log = logging.getLogger(__name__)
Loaders = tuple[DataLoader, DataLoader]
TextSource = Literal["prior", "model", "corpus", "task"]

HEALER = "lighttoken.run.healing"
HELD_OUT = 128  # texts that are not trained on: the cosine of their hidden states is reported, before and after


@dataclass(frozen=True)
class Healing:
    """The texts that a backbone is healed on, and the training. No label is read.

    `texts` are drawn from word frequencies (`prior`), sampled from the model (`model`), those of a file (`corpus`), or
    the training rows of the run's task (`task`). All but the last have at most `length` tokens between special tokens:
    a longer text of a file is several. There are at most `count` of them, and they are read again once all were seen.
    `warmup_ratio` is a share of the steps. Raises LighttokenError for a number out of range and a file that is not
    there.
    """

    texts: TextSource
    file: str | None = None
    column: str = "text"
    count: int = 32_768
    length: int = 32
    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 1e-4
    warmup_ratio: float = 0.1

    def __post_init__(self) -> None:
        for name in ("count", "length", "steps", "batch_size"):
            if (number := getattr(self, name)) < 1:
                raise LighttokenError(f"heal.{name} is {number}; it must be 1 or above")
        if self.texts not in get_args(TextSource):
            raise LighttokenError(f"unknown texts={self.texts!r}; choose one of {', '.join(get_args(TextSource))}")
        if self.texts == "corpus":
            self._corpus()

    def settings(self) -> dict[str, Any]:
        """Plain JSON values that say all about it; a corpus by its name and hash."""
        unused = {"task": ("file", "column", "count", "length"), "corpus": ()}.get(self.texts, ("file", "column"))
        used = {name: value for name, value in asdict(self).items() if name not in unused}
        if self.texts == "corpus":
            path = Path(str(self.file))
            used |= {"file": path.name, "file_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        return used

    def _corpus(self) -> TextFile:
        return TextFile(str(self.file), self.column, key="heal")

    def loaders(self, backbone: "Backbone | LoadedBackbone", data: "TaskData | None", seed: int) -> Loaders:
        """Batches of the texts to train on, and of `HELD_OUT` texts that are held out."""
        if self.texts == "task":
            assert data is not None
            return data.text_loaders(self.batch_size, HELD_OUT, seed)
        rows, texts = self._make_texts(backbone, seed)
        held, rest = held_out_texts(texts, HELD_OUT, seed)
        if not held:
            raise LighttokenError(f"heal.file={self.file} has {len(set(texts))} texts; use a larger corpus")
        sampler = EpochSampler(self.batch_size, [len(rows[i]) for i in rest], seed)
        settings: dict[str, Any] = {"batch_size": self.batch_size, "collate_fn": _padded}
        return DataLoader(Subset(rows, rest), sampler=sampler, **settings), DataLoader(Subset(rows, held), **settings)

    def _make_texts(self, backbone: "Backbone | LoadedBackbone", seed: int) -> tuple[Any, Sequence[Hashable]]:
        """Token ids (L,) of pieces of text, special tokens included, and which text a piece is of."""
        tokenizer: Any = backbone.tokenizer(padding=False)
        model: Any = backbone.language_model() if self.texts == "model" else backbone.encoder()
        before, after = special_tokens(tokenizer)
        size = len(before) + self.length + len(after)
        if (limit := position_count(model)) and size > limit:
            raise LighttokenError(
                f"heal.length={self.length} makes texts of {size} tokens and {type(model).__name__} takes {limit}; set "
                f"heal.length={limit - size + self.length}"
            )
        count = min(self.count, self.steps * self.batch_size) + HELD_OUT
        if self.texts == "corpus":
            texts = self._corpus().texts()
            all_pieces = ((text, piece) for text in texts for piece in text_pieces(tokenizer, [text], self.length))
            pieces = list(islice(all_pieces, count))
            return [torch.tensor([*before, *piece, *after]) for _, piece in pieces], [text for text, _ in pieces]
        mask = tokenizer.mask_token_id if self.texts == "model" and is_masked(model.config) else None
        rows = model.get_input_embeddings().num_embeddings
        frequencies = WordFrequency().resolved(tokenizer).frequencies(tokenizer, rows)
        made = Texts(model, tokenizer, mask, count, self.length, seed).make(self.texts, frequencies, None)
        return made.unbind(), range(len(made))


def _padded(rows: list[Tensor]) -> dict[str, Tensor]:
    """A batch. What stands in the place of padding does not matter: nothing attends to it."""
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": pad_sequence(rows, batch_first=True), "attention_mask": mask}


@dataclass(frozen=True)
class Healed:
    """The parameters of a body that healing has changed, by name, and a summary of plain JSON values."""

    parameters: dict[str, Tensor]
    summary: dict[str, Any]

    def put_into(self, model: PreTrainedModel) -> None:
        """Copy the parameters into the body of a model, which may have a head, and note in its config what was done."""
        body = dict(model.base_model.named_parameters())
        with torch.no_grad():
            for name, value in self.parameters.items():
                if name in body:  # a body without a pooler, for example
                    body[name].copy_(value)
        model.config.healing = self.summary  # config.json says it, whoever saves the model


def check_healing(healing: Any, backbone: "Backbone | LoadedBackbone", data: "TaskData | None" = None) -> None:
    """Raise LighttokenError, before any work, for what `heal` cannot do: an encoder-decoder, or a task without rows."""
    if not isinstance(healing, Healing):
        raise LighttokenError(f"healing={healing!r} is no Healing; pass lighttoken.Healing('prior'), or None")
    if backbone.is_encoder_decoder:
        raise LighttokenError("an encoder-decoder cannot be healed yet; leave out heal=")
    if healing.texts == "task" and (data is None or not data.trains):
        name = "this command" if data is None else f"task={data.name}"
        raise LighttokenError(f"heal=task reads training rows and {name} has none; set heal=corpus heal.file=F")


def heal(
    backbone: "Backbone | LoadedBackbone",
    compressed: CompressedTable,
    healing: Healing,
    data: "TaskData | None" = None,
    seed: int = 0,
    loggers: Sequence[Logger] = (),
    progress: bool = False,
    accelerator: str = "auto",
    precision: Any = "32-true",
) -> Healed:
    """Adapt a copy of the backbone's body to a compressed table, which stays as it is.

    `accelerator` and `precision` are those of Lightning's trainer.

    `data` has the rows of `heal=task`. Raises LighttokenError as `check_healing`, and for texts that are not there.
    """
    check_healing(healing, backbone, data)
    start = time.perf_counter()
    texts, held_out = healing.loaders(backbone, data, seed)
    model, original = swap_embedding(backbone.encoder(), compressed), backbone.encoder()
    healer = Healer(model, original, healing.learning_rate, healing.warmup_ratio)
    trainer = L.Trainer(
        accelerator=accelerator,
        precision=precision,
        devices=1,
        max_epochs=-(-healing.steps // len(texts)),
        max_steps=healing.steps,
        logger=list(loggers),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
    )

    def cosine() -> float:
        trainer.validate(healer, held_out, verbose=False)
        return round(float(trainer.callback_metrics["heal/cosine"]), 6)

    before = cosine()
    with warnings.catch_warnings():  # there is no dropout, and what is held out is scored before and after, not within
        warnings.filterwarnings("ignore", message=".*(in eval mode at the start of training|no `val_dataloader`)")
        trainer.fit(healer, texts)
    after = cosine()
    unchanged = {name: parameter.cpu() for name, parameter in original.named_parameters()}
    parameters = {name: parameter.detach().cpu() for name, parameter in model.named_parameters() if name in unchanged}
    changed = {name: value for name, value in parameters.items() if not torch.equal(value, unchanged[name])}
    seconds = round(time.perf_counter() - start, 1)
    return Healed(changed, healing.settings() | {"cosine_before": before, "cosine": after, "seconds": seconds})


def heal_once(
    output_dir: Path,
    artifact: Path,
    backbone: "Backbone | LoadedBackbone",
    compressed: CompressedTable,
    healing: Healing,
    data: "TaskData",
    seed: int,
    loggers: Sequence[Logger] = (),
    progress: bool = False,
    **settings: Any,
) -> Healed:
    """As `heal`, but what an earlier run under `output_dir` has healed, with the same inputs and code, is read.

    `settings` are the accelerator and the precision.
    """
    rows = data.splits["train"]["input_ids"][:] if healing.texts == "task" and data.trains else None
    inputs = [code_hash(HEALER), artifact.name, healing.settings(), rows, seed, settings]
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    file = output_dir / "healed" / f"{artifact.name}_{healing.texts}_{key}.safetensors"
    for folder in (file.parent, output_dir / "locks"):
        make_directory(folder)
    with FileLock(output_dir / "locks" / f"{file.name}.lock"):
        if file.is_file():
            try:
                with safe_open(file, "pt") as stored:
                    parameters = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                    summary = json.loads(stored.metadata()["healing"])
                log.info("reusing the healed backbone %s", file)
                return Healed(parameters, summary)
            except (SafetensorError, OSError) as error:
                log.warning("healing again: %s is damaged: %s", file, error)
        healed = heal(backbone, compressed, healing, data, seed, loggers, progress, **settings)
        write_atomically(file, save(healed.parameters, {"healing": json.dumps(healed.summary)}))
        return healed
