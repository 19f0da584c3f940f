"""Row weights: how much each token matters, from how often it is met."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lighttoken.errors import LighttokenError

PriorName = Literal["uniform", "zipf", "wordfreq", "corpus"]

# Marks per 1,000 words of English prose, a count over 723,000 words (Wikipedia, "English punctuation"): word lists
# have none. Marks that it does not tell of have the rate of the semicolon.
MARKS = {".": 65.3, ",": 61.6, '"': 26.7, "'": 24.3, "-": 15.3, "?": 5.6, ":": 3.4, "!": 3.3, ";": 3.2}
OTHER_MARKS = "()/$%&*@#+=[]"
OTHER_MARK = 3.2
WORDS_PER_TEXT = 20  # how often a special token that encloses every text is met: once in so many words
CAPITALISED = 0.1  # share of words written with a capital letter
WORDS = 100_000  # that are looked up in each language; the rest is below 2 % of all text
BATCH = 10_000


@dataclass(frozen=True)
class Prior:
    """A frequency prior, and the row weights that follow from it: (frequency + floor) ** exponent, at mean 1.

    `uniform`: all rows the same. `zipf`: frequency falls with the token's id, for vocabularies in order of frequency
    (most BPE ones, about so WordPiece); needs nothing. `wordfreq`: word frequencies of `languages` (Speer 2022),
    each word through the model's own tokenizer. `corpus`: counts in a file of texts: .txt (a text per line), or
    .parquet, .csv or .jsonl with a column `corpus_column`. The exponent tempers the prior; the floor is the frequency
    of a token that it has never seen. Both were chosen by what they leave of the hidden states of unlabelled texts
    (`experiments/prior.py`).
    """

    prior: PriorName = "uniform"
    prior_exponent: float = 0.45
    prior_floor: float = 2e-6
    languages: Sequence[str] = ("en",)
    corpus: str | None = None
    corpus_column: str = "text"

    def __post_init__(self) -> None:
        if self.prior not in get_args(PriorName):
            raise LighttokenError(f"unknown prior {self.prior!r}; choose one of {', '.join(get_args(PriorName))}")
        if not (math.isfinite(self.prior_exponent) and self.prior_exponent >= 0):
            raise LighttokenError(f"prior_exponent {self.prior_exponent} is not 0 or more; choose one from 0 to 1")
        if not (math.isfinite(self.prior_floor) and self.prior_floor > 0):
            raise LighttokenError(f"prior_floor {self.prior_floor} is not above 0; choose for example 2e-6")
        if self.prior == "corpus" and not (self.corpus and Path(self.corpus).is_file()):
            raise LighttokenError(
                f"prior=corpus counts tokens in a file and corpus={self.corpus} is none; set corpus=FILE"
            )
        if self.corpus and self.prior != "corpus":
            raise LighttokenError(f"corpus={self.corpus} is not read with prior={self.prior}; set prior=corpus too")

    def prior_settings(self) -> dict[str, Any]:
        """What the prior was told, as plain JSON values; of a corpus, the file's name and hash."""
        if self.prior == "uniform":
            return {"prior": "uniform"}
        told: dict[str, Any] = {"prior": self.prior, "exponent": self.prior_exponent, "floor": self.prior_floor}
        if self.prior == "wordfreq":
            told["languages"] = list(self.languages)
        if self.prior == "corpus":
            content = Path(str(self.corpus)).read_bytes()
            told |= {"corpus": Path(str(self.corpus)).name, "corpus_sha256": hashlib.sha256(content).hexdigest()}
        return told

    def importance_settings(self) -> dict[str, Any]:
        """How a codec's weights are made, as plain JSON values; codecs that look at more than a prior tell more."""
        return self.prior_settings()

    def frequencies(self, tokenizer: Any, rows: int) -> Tensor:
        """Share of each token in running text, (rows,) float64 of sum 1, for a transformers tokenizer.

        `uniform` and `zipf` do not look at the tokenizer. Raises LighttokenError for a language without word
        frequencies and a corpus that cannot be read.
        """
        if self.prior == "uniform":
            return torch.full((rows,), 1 / rows, dtype=torch.float64)
        if self.prior == "zipf":  # with Mandelbrot's shift
            counts = 1 / (torch.arange(rows, dtype=torch.float64) + 2.7)
        elif self.prior == "wordfreq":
            counts = _word_counts(tokenizer, rows, self.languages)
        else:
            counts = _count(tokenizer, rows, self._texts(), special=True)
        return counts / counts.sum()

    def row_weights(self, frequencies: Tensor) -> Tensor:
        """Weights (V,) float32 of mean 1 from frequencies (V,)."""
        if self.prior == "uniform":
            return torch.ones(len(frequencies))
        weights = (frequencies + self.prior_floor) ** self.prior_exponent
        return (weights / weights.mean()).float()

    def _texts(self) -> Iterable[tuple[str, float]]:
        from datasets import load_dataset

        path = Path(str(self.corpus))
        formats = {".txt": "text", ".parquet": "parquet", ".csv": "csv", ".jsonl": "json"}
        if path.suffix not in formats:
            raise LighttokenError(f"corpus={path} has no known format; choose a file in {', '.join(formats)}")
        column = "text" if path.suffix == ".txt" else self.corpus_column
        texts = load_dataset(formats[path.suffix], data_files=str(path), split="train", streaming=True)
        if column not in (texts.column_names or next(iter(texts), {})):
            names = ", ".join(texts.column_names or next(iter(texts), {}))
            raise LighttokenError(f"corpus={path} has no column {column!r}; set corpus_column to one of {names}")
        return ((str(row[column]), 1.0) for row in texts if row[column] is not None)


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after every text."""
    text, inner = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    for start in range(len(text) - len(inner) + 1):
        if text[start : start + len(inner)] == inner:
            return text[:start], text[start + len(inner) :]
    return [], []


def _word_counts(tokenizer: Any, rows: int, languages: Sequence[str]) -> Tensor:
    """Expected count of each token per word of text."""
    import wordfreq

    known = wordfreq.available_languages("best")
    counts = torch.zeros(rows, dtype=torch.float64)
    # A word mostly follows a space. Byte-level tokenizers make it part of the word's token; others add it themselves.
    plain, spaced = (len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("the", " the"))
    space = " " if spaced <= plain else ""
    for language in languages:
        if language not in known:
            raise LighttokenError(
                f"there are no word frequencies of language {language!r}; choose among {', '.join(sorted(known))}"
            )
        words = [(word, wordfreq.word_frequency(word, language)) for word in wordfreq.top_n_list(language, WORDS)]
        small = [(space + word, share * (1 - CAPITALISED)) for word, share in words]
        large = [(space + word.capitalize(), share * CAPITALISED) for word, share in words]
        counts += _count(tokenizer, rows, small + large, special=False) / len(languages)
    marks = MARKS | dict.fromkeys(OTHER_MARKS, OTHER_MARK)
    per_word = {mark: rate / 1000 for mark, rate in marks.items()}
    counts += _count(tokenizer, rows, per_word.items(), special=False)
    for ids in special_tokens(tokenizer):
        for each in ids:
            counts[each] += 1 / WORDS_PER_TEXT
    return counts


def _count(tokenizer: Any, rows: int, texts: Iterable[tuple[str, float]], special: bool) -> Tensor:
    """Weighted count of each token id in (text, weight) pairs."""
    counts = torch.zeros(rows, dtype=torch.float64)
    batch: list[tuple[str, float]] = []

    def add() -> None:
        encoded = tokenizer([text for text, _ in batch], add_special_tokens=special)["input_ids"]
        lengths = torch.tensor([len(ids) for ids in encoded])
        shares = torch.tensor([share for _, share in batch], dtype=torch.float64).repeat_interleave(lengths)
        counts.index_add_(0, torch.tensor([each for ids in encoded for each in ids], dtype=torch.long), shares)
        batch.clear()

    for entry in texts:
        batch.append(entry)
        if len(batch) == BATCH:
            add()
    if batch:
        add()
    if not float(counts.sum()) > 0:
        raise LighttokenError("the prior's texts hold no token of this tokenizer; choose another corpus or prior")
    return counts
