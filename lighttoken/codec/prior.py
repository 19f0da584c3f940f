"""Priors: how often each token occurs in text, and the row weights that follow from it."""

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from lighttoken.codec.corpus import TextFile
from lighttoken.codec.languages import frequent_words, known_languages, numbers, served_languages
from lighttoken.errors import LighttokenError

log = logging.getLogger(__name__)

# Marks per 1,000 words of English prose, a count over 723,000 words (Wikipedia, "English punctuation"): word lists
# have none. Marks that it does not list get the rate of the semicolon.
MARKS = {".": 65.3, ",": 61.6, '"': 26.7, "'": 24.3, "-": 15.3, "?": 5.6, ":": 3.4, "!": 3.3, ";": 3.2}
OTHER_MARKS = "()/$%&*@#+=[]<>\u2013\u2014\u2018\u2019\u201c\u201d\u2026"
OTHER_MARK = 3.2
WORDS_PER_TEXT = 20  # a special token that encloses every text, and a line's end, occur once in so many words
CAPITALISED = 0.1  # share of words written with a capital letter
CAPITALS = 0.01  # and in capitals
ATTACHED = 0.05  # share of words without a space before them, as after a line's end, a bracket or a hyphen
COMMON_WORDS = 20_000  # of one language that are also counted in capitals and attached
WORDS = 100_000  # looked up of one language; all others are less than 2 % of text
MIXED_WORDS = 20_000  # of one of several languages; rarer ones are below the floor
UNSPACED = ("ja", "zh")  # written without spaces
BATCH = 10_000
EXPONENT = 0.45  # of row weights


@dataclass(frozen=True)
class Prior:
    """Token frequencies, and row weights from them: (frequency + floor) ** exponent, at mean 1.

    The exponent tempers the prior, None: by `EXPONENT`; the floor is the frequency of a token that the prior has never
    seen. The defaults leave the hidden states of unlabelled texts nearest to the original (`experiments/prior.py`).
    """

    name: ClassVar[str]
    reads_tokenizer: ClassVar[bool] = True
    exponent: float | None = None
    floor: float = 2e-6

    def __post_init__(self) -> None:
        if self.exponent is not None and not (math.isfinite(self.exponent) and self.exponent >= 0):
            raise LighttokenError(f"prior.exponent is {self.exponent}; it must be 0 or above, for example 0.45")
        if not (math.isfinite(self.floor) and self.floor > 0):
            raise LighttokenError(f"prior.floor is {self.floor}; it must be above 0, for example 2e-6")

    def settings(self) -> dict[str, Any]:
        """The inputs of the prior, as plain JSON values."""
        return {"prior": self.name, "exponent": self.exponent, "floor": self.floor}

    def tempered(self, exponent: float) -> "Prior":
        """This prior with the exponent, if it has none of its own."""
        return replace(self, exponent=exponent) if self.exponent is None else self

    def resolved(self, tokenizer: Any) -> "Prior":
        """This prior with the settings that follow from the tokenizer."""
        return self

    def frequencies(self, tokenizer: Any, rows: int) -> Float64[Tensor, " rows"]:
        """Share of each token in running text, of sum 1, for a transformers tokenizer.

        Raises LighttokenError for a language without word frequencies and for a corpus that cannot be read.
        """
        counts = self.counts(tokenizer, rows)
        return counts / counts.sum()

    def counts(self, tokenizer: Any, rows: int) -> Float64[Tensor, " rows"]:
        """The frequencies up to a factor."""
        raise NotImplementedError

    def row_weights(self, frequencies: Float64[Tensor, " V"]) -> Float32[Tensor, " V"]:
        """Weights of mean 1."""
        weights = (frequencies + self.floor) ** (EXPONENT if self.exponent is None else self.exponent)
        return (weights / weights.mean()).float()


@dataclass(frozen=True)
class Uniform(Prior):
    """All rows weigh the same."""

    name: ClassVar[str] = "uniform"
    reads_tokenizer: ClassVar[bool] = False

    def settings(self) -> dict[str, Any]:
        return {"prior": self.name}

    def counts(self, tokenizer: Any, rows: int) -> Float64[Tensor, " rows"]:
        return torch.ones(rows, dtype=torch.float64)

    def row_weights(self, frequencies: Float64[Tensor, " V"]) -> Float32[Tensor, " V"]:
        return torch.ones(len(frequencies))


@dataclass(frozen=True)
class Zipf(Prior):
    """Frequency falls with the id, with Mandelbrot's shift: for vocabularies in order of frequency (most BPE ones)."""

    name: ClassVar[str] = "zipf"
    reads_tokenizer: ClassVar[bool] = False

    def counts(self, tokenizer: Any, rows: int) -> Float64[Tensor, " rows"]:
        return 1 / (torch.arange(rows, dtype=torch.float64) + 2.7)


@dataclass(frozen=True)
class WordFrequency(Prior):
    """Word frequencies of languages (wordfreq, Speer 2022), each word through the model's own tokenizer.

    Without `languages`, those that the tokenizer's vocabulary serves (`served_languages`).
    """

    name: ClassVar[str] = "wordfreq"
    languages: Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.languages is None:
            return
        if not self.languages:
            raise LighttokenError("prior.languages is empty; set codec.prior.languages=[en], or null to detect them")
        known = known_languages()
        if unknown := [language for language in self.languages if language not in known]:
            raise LighttokenError(
                f"there are no word frequencies of language {unknown[0]!r}; choose among {', '.join(known)}"
            )

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"languages": self.languages and list(self.languages)}

    def resolved(self, tokenizer: Any) -> "WordFrequency":
        """With the languages that are used. Logs them if there are others than English, and warns of those left out."""
        served = served_languages(tokenizer)
        if self.languages is None:
            if served != ["en"]:
                log.info("word frequencies of the %d languages of this tokenizer: %s", len(served), ", ".join(served))
            return replace(self, languages=served)
        if missing := [language for language in served if language not in self.languages]:
            log.warning(
                "codec.prior.languages=[%s] leaves out %d languages of this tokenizer, which lose most: %s",
                *(",".join(self.languages), len(missing), ", ".join(missing)),
            )
        return self

    def row_weights(self, frequencies: Float64[Tensor, " V"]) -> Float32[Tensor, " V"]:
        """As for any prior; the floor of a mixture is the one of a single language in its share of the text.

        Else most words of many languages would lie below the floor (measured: experiments/2026-11-29-languages).
        """
        prior = Prior(self.exponent, self.floor / len(self.languages or ("en",)))
        return prior.row_weights(frequencies)

    def counts(self, tokenizer: Any, rows: int) -> Float64[Tensor, " rows"]:
        return _word_counts(tokenizer, rows, self.languages or served_languages(tokenizer))


@dataclass(frozen=True)
class Corpus(Prior):
    """Counts in a file of texts, see `TextFile`."""

    name: ClassVar[str] = "corpus"
    file: str = ""
    column: str = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._source()

    def settings(self) -> dict[str, Any]:
        """With the name and the hash of the file, and the column that is read."""
        path = Path(self.file)
        return super().settings() | {
            "corpus": path.name,
            "corpus_column": self._source().text_column,
            "corpus_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }

    def counts(self, tokenizer: Any, rows: int) -> Float64[Tensor, " rows"]:
        return _count(tokenizer, rows, ((text, 1.0) for text in self.texts()), special=True)

    def texts(self) -> Iterable[str]:
        """The texts of the file. Raises LighttokenError if it lacks the column."""
        return self._source().texts()

    def _source(self) -> TextFile:
        return TextFile(self.file, self.column, key="codec.prior")


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after every text."""
    text, inner = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    for start in range(len(text) - len(inner) + 1):
        if text[start : start + len(inner)] == inner:
            return text[:start], text[start + len(inner) :]
    return [], []


def _word_counts(tokenizer: Any, rows: int, languages: Sequence[str]) -> Float64[Tensor, " rows"]:
    """Expected count of each token per word of text; of several languages, the mean."""
    counts = torch.zeros(rows, dtype=torch.float64)
    # A word mostly follows a space. Byte-level tokenizers make it part of the word's token; others add it themselves.
    plain, spaced = (len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("the", " the"))
    space = " " if spaced <= plain else ""
    for language in languages:
        texts = _written(language, WORDS if len(languages) == 1 else MIXED_WORDS, space)
        counts += _count(tokenizer, rows, texts, special=False) / len(languages)
    marks = MARKS | dict.fromkeys(OTHER_MARKS, OTHER_MARK)
    # Half of them follow a space: marks that open something, and all marks of texts that were cut into words.
    per_word = [(before + mark, rate / 1000 / 2) for mark, rate in marks.items() for before in ("", space)]
    ends = [(end, 1 / WORDS_PER_TEXT) for end in ("\n", "\n\n")]
    counts += _count(tokenizer, rows, per_word + ends, special=False)
    for ids in special_tokens(tokenizer):
        for token in ids:
            counts[token] += 1 / WORDS_PER_TEXT
    return counts


def _written(language: str, count: int, space: str) -> Iterator[tuple[str, float]]:
    """The most frequent words and the numbers of a language as texts write them, with their shares of text."""
    before = "" if language in UNSPACED else space
    for rank, (word, share) in enumerate(islice(frequent_words(language), count)):
        yield before + word, share * (1 - CAPITALISED)
        yield before + word.capitalize(), share * CAPITALISED
        if rank < COMMON_WORDS:
            yield before + word.upper(), share * CAPITALS
            if before:
                yield word, share * ATTACHED * (1 - CAPITALISED)
                yield word.capitalize(), share * ATTACHED * CAPITALISED
    for digits, share in numbers(language):
        yield before + digits, share


def _count(tokenizer: Any, rows: int, texts: Iterable[tuple[str, float]], special: bool) -> Float64[Tensor, " rows"]:
    """Weighted count of each token id in (text, weight) pairs."""
    counts = torch.zeros(rows, dtype=torch.float64)
    batch: list[tuple[str, float]] = []

    def add_batch() -> None:
        encoded = tokenizer([text for text, _ in batch], add_special_tokens=special)["input_ids"]
        lengths = torch.tensor([len(ids) for ids in encoded])
        shares = torch.tensor([share for _, share in batch], dtype=torch.float64).repeat_interleave(lengths)
        counts.index_add_(0, torch.tensor([token for ids in encoded for token in ids], dtype=torch.long), shares)
        batch.clear()

    for entry in texts:
        batch.append(entry)
        if len(batch) == BATCH:
            add_batch()
    if batch:
        add_batch()
    if not float(counts.sum()) > 0:
        raise LighttokenError("the prior's texts hold no token of this tokenizer; choose another corpus or prior")
    return counts
