"""SQuAD v1.1: windows over long contexts, and the best span over all windows of a question."""

import json
import logging
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, load_dataset
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.text import SQuAD
from transformers import PreTrainedModel

from lighttoken.artifact.files import write_atomically
from lighttoken.backbone.source import Backbone
from lighttoken.errors import LighttokenError
from lighttoken.tasks.data import TaskData, missing_split
from lighttoken.version import __version__

log = logging.getLogger(__name__)

COLUMNS = ("id", "question", "context", "answers")


class Squad(TaskData):
    """SQuAD v1.1 (Rajpurkar et al., EMNLP 2016): which span of the context answers the question?

    A context that is longer than a window is cut into windows that overlap by `stride` tokens. The label of a window
    that does not hold the whole answer is its first token, as in BERT.
    """

    label_columns = ("answers", "id")

    def __init__(
        self,
        *args: Any,
        data_dir: str | None = None,
        hub_id: str = "rajpurkar/squad",
        stride: int = 128,
        max_question_length: int = 64,
        max_answer_length: int = 30,
        **kwargs: Any,
    ):
        """Lengths are in tokens. Rows come from the folder `data_dir` if it is set, else from `hub_id`.

        The folder has train.parquet and validation.parquet, or JSON in the original layout: train.json and
        validation.json, or train-v1.1.json and dev-v1.1.json. Raises LighttokenError for a tokenizer without offsets
        and for a stride that leaves no room in a window.
        """
        super().__init__(*args, **kwargs)
        self.data_dir, self.hub_id, self.stride = data_dir, hub_id, stride
        self.max_question_length, self.max_answer_length = max_question_length, max_answer_length
        if not self.tokenizer.is_fast:
            raise LighttokenError(
                "task=squad needs the offsets of a fast tokenizer; save tokenizer.json with the model"
            )
        room = self.max_length - max_question_length - self.tokenizer.num_special_tokens_to_add(pair=True)
        if not 0 <= stride < room:
            raise LighttokenError(
                f"task.stride is {stride} and a window has room for {room} tokens of the context; "
                "set a smaller task.stride or a larger task.max_length"
            )
        # Positions of answers are counted from the left, and questions are cut at their end.
        self.tokenizer.padding_side = self.tokenizer.truncation_side = "right"
        self.questions: dict[str, Dataset] = {}  # split -> its rows before they are cut into windows
        self.windows: dict[str, Dataset] = {}  # split -> for every window, the number of its question and its offsets

    def make_model(self, backbone: Backbone) -> PreTrainedModel:
        return backbone.reader()

    def read_splits(self) -> DatasetDict:
        """Splits `train` and `validation` with id, question, context and answers (text, answer_start)."""
        if self.data_dir is None:
            cure = "with no network, set task.data_dir=DIR to a folder with train.parquet and validation.parquet"
            return self.fetch(partial(load_dataset, self.hub_id), self.hub_id, cure)
        folder, splits = Path(self.data_dir), {}
        for split, original in (("train", "train-v1.1"), ("validation", "dev-v1.1")):
            files = [folder / f"{split}.parquet", folder / f"{split}.json", folder / f"{original}.json"]
            file = next((file for file in files if file.is_file()), None)
            if file is None:
                raise missing_split(folder, split)
            splits[split] = self.fetch(partial(_read, file), file, "it must be parquet or JSON in SQuAD's own layout")
        return DatasetDict(splits)

    def _check(self, raw: DatasetDict) -> None:
        """Also raises LighttokenError for questions without an answer. SQuAD 2 has them; the scores cannot."""
        super()._check(raw)
        for split in {"train", *self.validation_splits.values()}:
            rows = raw[split].select_columns(["id", "answers"])
            unanswered = [row["id"] for row in rows if not row["answers"]["text"]]
            if unanswered:
                raise LighttokenError(
                    f"{len(unanswered)} questions of the split {split!r} of task={self.name} have no answer, the first "
                    f"is {unanswered[0]}; use SQuAD v1.1, in which every question has one"
                )

    def encode(self, raw: DatasetDict) -> dict[str, Dataset]:
        # Hold out whole contexts, so that no context is on both sides.
        rows = self._trainable(raw["train"])
        parts = self.hold_out(rows, rows["context"], rows["context"])
        train = parts.pop("train")
        # Keep the questions of the splits to score: their answers come from several windows.
        self.questions = parts | {name: raw[name] for name in self.validation_splits.values()}
        # Cut every question into windows.
        settings = {
            "tokenizer": self.tokenizer,
            "max_length": self.max_length,
            "stride": self.stride,
            "max_question_length": self.max_question_length,
            "version": __version__,
        }
        splits = {}
        for name, rows in (("train", train), *self.questions.items()):
            windows = rows.map(
                _cut,
                batched=True,
                with_indices=True,
                remove_columns=rows.column_names,
                fn_kwargs=settings,
                desc=f"tokenise {self.name} {name}",
            )
            splits[name] = windows.remove_columns(["row", "offsets"])
            if name == "train":
                self.train_texts = [self.train_texts[row] for row in windows["row"]]
            else:
                self.windows[name] = windows.select_columns(["row", "offsets"])
        return splits

    def _trainable(self, rows: Dataset) -> Dataset:
        """The rows whose first answer is where `answer_start` says; the others are counted and left out.

        Raises LighttokenError if none is left.
        """
        pairs = zip(rows["context"], rows["answers"], strict=True)
        whole = [i for i, (context, answers) in enumerate(pairs) if _is_in_place(context, answers)]
        if len(whole) < len(rows):
            first = next(i for i in range(len(rows)) if i not in set(whole))
            message = (
                f"{len(rows) - len(whole)} of {len(rows)} training questions of task={self.name} have an answer that "
                f"is not at its answer_start, the first is {rows[first]['id']}"
            )
            if not whole:
                raise LighttokenError(f"{message}; answer_start counts the characters of the context, from 0")
            log.warning("%s; they are left out", message)
        return rows.select(whole)

    def predict_dataloader(self) -> list[DataLoader]:
        """The validation split: the test set of SQuAD is not public."""
        return [self.loader(self.splits[name], self.eval_batch_size) for name in self.validation_splits.values()]

    def write_answers(self, outputs: list[list[Any]], folder: Path) -> None:
        """Write squad_NAME.json for every validation split in the official scorer's format: id -> answer."""
        for name, batches in zip(self.validation_splits, outputs, strict=True):
            answers = {answer["id"]: answer["prediction_text"] for answer in self.best_answers(name, batches)[0]}
            write_atomically(folder / f"squad_{name}.json", json.dumps(answers, ensure_ascii=False, indent=1).encode())

    def best_answers(
        self, name: str, batches: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Answers and references of the questions of `val` or `dev`, in the form that `SquadScore` takes.

        `batches` have the logits (batch, length) of the starts and of the ends of all windows, in order. An answer is a
        span of at most `max_answer_length` tokens of the context. The best one has the largest sum of its two logits
        over all windows of the question. Raises LighttokenError if the logits of some windows are missing.
        """
        starts, ends = ([window for batch in batches for window in batch[i]] for i in (0, 1))
        split = self.validation_splits.get(name, name)
        questions, windows = self.questions[split], self.windows[split]
        if len(starts) != len(windows):
            raise LighttokenError(
                f"{len(starts)} of {len(windows)} windows of {split} were answered and only whole questions are "
                "scored; shorten the splits with limit_rows instead of trainer.limit_val_batches"
            )
        best = [(-float("inf"), "")] * len(questions)
        contexts = list(questions["context"])
        for window, start, end in zip(windows, starts, ends, strict=True):
            score, first, last = best_span(start, end, window["offsets"], self.max_answer_length)
            # `row` is a column that questions do not have: `map` would cast new values to the old column's type.
            question = window["row"]
            if score > best[question][0]:
                text = contexts[question][window["offsets"][first][0] : window["offsets"][last][1]]
                best[question] = (score, text.strip())
        answers = [{"id": id_, "prediction_text": text} for id_, (_, text) in zip(questions["id"], best, strict=True)]
        references = [
            {"id": id_, "answers": dict(truths)}
            for id_, truths in zip(questions["id"], questions["answers"], strict=True)
        ]
        return answers, references


class SquadScore(SQuAD):
    """Exact match and F1 in percent, as the official scorer of SQuAD v1.1 counts them (evaluate-v1.1.py).

    If answer and reference both consist of articles alone, torchmetrics' own F1 is 1; the official one is 0.
    """

    def update(self, preds: Any, target: Any) -> None:
        """Answers (id, prediction_text) and references (id, answers: text), in the same order."""
        exact, f1 = 0, 0.0
        for answer, reference in zip(preds, target, strict=True):
            words, truths = _words(answer["prediction_text"]), list(map(_words, reference["answers"]["text"]))
            exact += max(words == truth for truth in truths)
            f1 += max(_f1(words, truth) for truth in truths)
        self.exact_match += exact
        self.f1_score += f1
        self.total += len(preds)


def _words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and articles."""
    letters = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", letters).split()


def _f1(words: list[str], truth: list[str]) -> float:
    common = (Counter(words) & Counter(truth)).total()
    return 2 * common / (len(words) + len(truth)) if common else 0.0


def best_span(start: Tensor, end: Tensor, offsets: list[list[int]], max_answer_length: int) -> tuple[float, int, int]:
    """Score, first and last token of the best span of a window, given its logits (length,), which may be padded.

    `offsets` are the first and the last character of every token in the context, plus one; [0, 0] for a token outside
    the context. The score is -inf if no token is in the context.
    """
    length = len(offsets)
    # The score of every pair (first, last), without the padding.
    scores = start[:length].float().unsqueeze(1) + end[:length].float()
    # A span is forwards, not too long, and in the context at both ends.
    allowed = torch.ones(length, length, dtype=torch.bool).triu().tril(max_answer_length - 1)
    inside = torch.tensor([right > left for left, right in offsets])
    allowed &= inside.unsqueeze(1) & inside
    scores = scores.cpu().masked_fill(~allowed, -torch.inf)
    # The position of the best pair in the flattened matrix.
    best = int(scores.argmax())
    return float(scores.flatten()[best]), best // length, best % length


def _read(file: Path) -> Dataset:
    """Rows of a parquet file or of JSON in SQuAD's own layout."""
    if file.suffix == ".parquet":
        return load_dataset("parquet", data_files=str(file), split="train")
    rows: dict[str, list] = {name: [] for name in COLUMNS}
    for article in json.loads(file.read_bytes())["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = {key: [answer[key] for answer in question["answers"]] for key in ("text", "answer_start")}
                row = (question["id"], question["question"], paragraph["context"], answers)
                for name, value in zip(COLUMNS, row, strict=True):
                    rows[name].append(value)
    return Dataset.from_dict(rows)


def _cut(
    rows: Mapping[str, list],
    indices: list[int],
    tokenizer: Any,
    max_length: int,
    stride: int,
    max_question_length: int,
    version: str,
) -> dict[str, list]:
    """Windows of questions and contexts, with the first and last token of the first answer.

    `version` is an argument for the cache of `datasets`, which knows a function by its name and arguments alone.
    """
    # Shorten every question to its first tokens.
    questions = [question.lstrip() for question in rows["question"]]
    shortened = tokenizer(
        questions,
        add_special_tokens=False,
        truncation=True,
        max_length=max_question_length,
        return_offsets_mapping=True,
    )
    ends = [offsets[-1][1] if offsets else 0 for offsets in shortened["offset_mapping"]]
    # Cut question and context into windows.
    encoded = tokenizer(
        [question[:end] for question, end in zip(questions, ends, strict=True)],
        rows["context"],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    owners, all_offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
    windows = dict(encoded) | {"start_positions": [], "end_positions": [], "row": [], "offsets": []}
    for window, (owner, offsets) in enumerate(zip(owners, all_offsets, strict=True)):
        # Keep the offsets of the context alone, and find the answer among them.
        parts = encoded.sequence_ids(window)
        offsets = [list(pair) if part == 1 else [0, 0] for pair, part in zip(offsets, parts, strict=True)]
        answers = rows["answers"][owner]
        found = answers["text"] and _is_in_place(rows["context"][owner], answers)
        first, last = _find_answer(offsets, answers) if found else (0, 0)
        windows["start_positions"].append(first)
        windows["end_positions"].append(last)
        windows["row"].append(indices[owner])
        windows["offsets"].append(offsets)
    return windows | {"length": [len(ids) for ids in windows["input_ids"]]}


def _is_in_place(context: str, answers: Mapping[str, list]) -> bool:
    """Whether the first answer is where it says."""
    text, start = answers["text"][0], answers["answer_start"][0]
    return context[start : start + len(text)] == text


def _find_answer(offsets: list[list[int]], answers: Mapping[str, list]) -> tuple[int, int]:
    """First and last token that overlap the first answer; (0, 0) if the window does not hold all of it."""
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    inside = [token for token, (left, right) in enumerate(offsets) if right > left]
    if not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
        return 0, 0
    overlapping = [token for token in inside if offsets[token][1] > start and offsets[token][0] < end]
    return (overlapping[0], overlapping[-1]) if overlapping else (0, 0)
