"""SQuAD v1.1: windows over long contexts, and the best span of all windows of a question."""

import json
import re
import string
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, load_dataset
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import Metric
from transformers import PreTrainedModel

from lighttoken.artifact.files import write_atomically
from lighttoken.backbone.source import Backbone
from lighttoken.errors import LighttokenError
from lighttoken.tasks.data import TaskData, missing_split
from lighttoken.version import __version__

COLUMNS = ("id", "question", "context", "answers")


class Squad(TaskData):
    """SQuAD v1.1 (Rajpurkar et al., EMNLP 2016): which span of the context answers the question?

    A context longer than a window is cut into windows that overlap by `stride` tokens. Those that do not hold the
    whole answer are trained to point at their first token.
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
        """Lengths are in tokens.

        `data_dir` holds train.parquet and validation.parquet, or JSON in the original layout: train.json and
        validation.json, or train-v1.1.json and dev-v1.1.json.
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
        self.tokenizer.padding_side = "right"  # places of answers are counted from the left
        self.rows: dict[str, Dataset] = {}  # questions as they are told
        self.windows: dict[str, Dataset] = {}  # of each split to score: the row and the offsets of every window

    def make_model(self, backbone: Backbone) -> PreTrainedModel:
        return backbone.reader()

    def read_splits(self) -> DatasetDict:
        """Splits `train` and `validation` with id, question, context and answers (text, answer_start)."""
        if self.data_dir is None:
            cure = "with no network, set task.data_dir=DIR to a folder with train.parquet and validation.parquet"
            return self.get(partial(load_dataset, self.hub_id), self.hub_id, cure)
        folder, splits = Path(self.data_dir), {}
        for split, original in (("train", "train-v1.1"), ("validation", "dev-v1.1")):
            files = [folder / f"{split}.parquet", folder / f"{split}.json", folder / f"{original}.json"]
            file = next((file for file in files if file.is_file()), None)
            if file is None:
                raise missing_split(folder, split)
            splits[split] = self.get(partial(_read, file), file, "it must be parquet or JSON in SQuAD's own layout")
        return DatasetDict(splits)

    def _checked(self, raw: DatasetDict) -> DatasetDict:
        """Raises LighttokenError, besides, for questions without an answer, which SQuAD 2 has and the scores do not."""
        raw = super()._checked(raw)
        for split in {"train", *self.validation_splits.values()}:
            without = [row["id"] for row in raw[split].select_columns(["id", "answers"]) if not row["answers"]["text"]]
            if without:
                raise LighttokenError(
                    f"{len(without)} questions of the split {split!r} of task={self.name} have no answer, the first "
                    f"{without[0]}; SQuAD v1.1 has one for each"
                )
        return raw

    def encode(self, raw: DatasetDict) -> dict[str, Dataset]:
        parts = self.hold_out(raw["train"], raw["train"]["context"])  # so that no context is on both sides
        self.rows = {name: rows for name, rows in parts.items() if name != "train"}
        self.rows |= {name: raw[name] for name in self.validation_splits.values()}
        splits = {}
        for name, rows in (("train", parts["train"]), *self.rows.items()):
            windows = rows.map(
                _cut,
                batched=True,
                with_indices=True,
                remove_columns=rows.column_names,
                fn_kwargs={
                    "tokenizer": self.tokenizer,
                    "max_length": self.max_length,
                    "stride": self.stride,
                    "max_question_length": self.max_question_length,
                    "version": __version__,
                },
                desc=f"tokenise {self.name} {name}",
            )
            splits[name] = windows.remove_columns(["row", "offsets"])
            if name != "train":
                self.windows[name] = windows.select_columns(["row", "offsets"])
        return splits

    def predict_dataloader(self) -> list[DataLoader]:
        """The validation split: the test set of SQuAD is not public."""
        return [self.loader(self.splits[name], self.eval_batch_size) for name in self.validation_splits.values()]

    def write_answers(self, answered: list[list[Any]], folder: Path) -> None:
        """In the format of the official scorer: the answer of every question by its id."""
        for name, batches in zip(self.validation_splits, answered, strict=True):
            starts, ends = ([row for batch in batches for row in batch[i]] for i in (0, 1))
            answers = {row["id"]: row["prediction_text"] for row in self.best_answers(name, starts, ends)[0]}
            write_atomically(folder / f"squad_{name}.json", json.dumps(answers, ensure_ascii=False, indent=1).encode())

    def best_answers(
        self, name: str, starts: list[Tensor], ends: list[Tensor]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Answers and references of the questions of `val` or `dev`, as `SquadScore` takes them.

        `starts` and `ends` are the logits (length,) of every window, in order. The answer is the span of the largest
        sum of its two logits among all spans of at most `max_answer_length` tokens of the context, in all windows.
        """
        split = self.validation_splits.get(name, name)
        rows, windows = self.rows[split], self.windows[split]
        if len(starts) != len(windows):
            raise LighttokenError(
                f"{len(starts)} of {len(windows)} windows of {split} were answered and questions are scored as "
                "wholes; shorten the splits with limit_rows instead of trainer.limit_val_batches"
            )
        best = [(-float("inf"), "")] * len(rows)
        contexts = list(rows["context"])
        for window, start, end in zip(windows, starts, ends, strict=True):
            score, first, last = best_span(start, end, window["offsets"], self.max_answer_length)
            question = window["row"]  # not a column that the rows have: its new values would be cast to the old type
            if score > best[question][0]:
                span = contexts[question][window["offsets"][first][0] : window["offsets"][last][1]].strip()
                best[question] = (score, span)
        answers = [{"id": each, "prediction_text": text} for each, (_, text) in zip(rows["id"], best, strict=True)]
        references = [
            {"id": each, "answers": dict(told)} for each, told in zip(rows["id"], rows["answers"], strict=True)
        ]
        return answers, references


class SquadScore(Metric):
    """Exact match and F1 in percent, as the official scorer of SQuAD v1.1 counts them (evaluate-v1.1.py).

    torchmetrics' own `text.SQuAD` gives an F1 of 1 where answer and reference have no word but articles; this one 0.
    """

    exact: Tensor
    overlap: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        for name in ("exact", "overlap", "total"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, answers: list[dict[str, Any]], references: list[dict[str, Any]]) -> None:
        """Answers (id, prediction_text) and references (id, answers: text), in the same order."""
        exact, overlap = 0, 0.0
        for answer, reference in zip(answers, references, strict=True):
            words, truths = _words(answer["prediction_text"]), list(map(_words, reference["answers"]["text"]))
            exact += max(words == truth for truth in truths)
            overlap += max(_f1(words, truth) for truth in truths)
        self.exact += exact
        self.overlap += overlap
        self.total += len(answers)

    def compute(self) -> dict[str, Tensor]:
        """`exact_match` and `f1`, 0 to 100."""
        return {"exact_match": 100 * self.exact / self.total, "f1": 100 * self.overlap / self.total}


def _words(text: str) -> list[str]:
    kept = "".join(each for each in text.lower() if each not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def _f1(words: list[str], truth: list[str]) -> float:
    same = (Counter(words) & Counter(truth)).total()
    return 2 * same / (len(words) + len(truth)) if same else 0.0


def best_span(start: Tensor, end: Tensor, offsets: list[list[int]], max_answer_length: int) -> tuple[float, int, int]:
    """Score, first and last token of the best span of a window, given its logits (length,), which may be padded.

    `offsets` are the places in the context, [0, 0] for tokens that are not of it. The score is -inf if none is.
    """
    inside = torch.tensor([place[1] > place[0] for place in offsets])
    length = len(offsets)
    scores = start[:length].float().unsqueeze(1) + end[:length].float()
    allowed = torch.ones(length, length, dtype=torch.bool).triu().tril(max_answer_length - 1)
    allowed &= inside.unsqueeze(1) & inside
    scores = scores.cpu().masked_fill(~allowed, -torch.inf)
    place = int(scores.argmax())
    return float(scores.flatten()[place]), place // length, place % length


def _read(file: Path) -> Dataset:
    if file.suffix == ".parquet":
        return load_dataset("parquet", data_files=str(file), split="train")
    rows: dict[str, list] = {name: [] for name in COLUMNS}
    for article in json.loads(file.read_bytes())["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = {
                    "text": [answer["text"] for answer in question["answers"]],
                    "answer_start": [answer["answer_start"] for answer in question["answers"]],
                }
                told = (question["id"], question["question"], paragraph["context"], answers)
                for name, value in zip(COLUMNS, told, strict=True):
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

    `version` is there for the cache of datasets, which tells functions apart by their name and arguments alone.
    """
    questions = tokenizer(
        [question.lstrip() for question in rows["question"]],
        add_special_tokens=False,
        truncation=True,
        max_length=max_question_length,
        return_offsets_mapping=True,
    )["offset_mapping"]
    shortened = [
        question.lstrip()[: places[-1][1] if places else 0]
        for question, places in zip(rows["question"], questions, strict=True)
    ]
    encoded = tokenizer(
        shortened,
        rows["context"],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    owners = encoded.pop("overflow_to_sample_mapping")
    places = encoded.pop("offset_mapping")
    made = dict(encoded) | {"start_positions": [], "end_positions": [], "row": [], "offsets": []}
    for window, (owner, offsets) in enumerate(zip(owners, places, strict=True)):
        context = [part == 1 for part in encoded.sequence_ids(window)]
        offsets = [list(place) if inside else [0, 0] for place, inside in zip(offsets, context, strict=True)]
        first, last = _span(offsets, rows["answers"][owner])
        made["start_positions"].append(first)
        made["end_positions"].append(last)
        made["row"].append(indices[owner])
        made["offsets"].append(offsets)
    return made | {"length": [len(ids) for ids in made["input_ids"]]}


def _span(offsets: list[list[int]], answers: Mapping[str, list]) -> tuple[int, int]:
    """First and last token that overlap the first answer; (0, 0) if the window does not hold all of it."""
    if not answers["text"]:
        return 0, 0
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    inside = [token for token, place in enumerate(offsets) if place[1] > place[0]]
    if not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
        return 0, 0
    held = [token for token in inside if offsets[token][1] > start and offsets[token][0] < end]
    return (held[0], held[-1]) if held else (0, 0)
