"""A corpus: the texts in a file, which a prior counts and which a backbone is healed on."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lighttoken.errors import LighttokenError

FORMATS = {".txt": "text", ".parquet": "parquet", ".csv": "csv", ".jsonl": "json"}


@dataclass(frozen=True)
class TextFile:
    """A .txt file with a text per line, or a .parquet, .csv or .jsonl file with a column of texts.

    `key` is where the config names the file, for messages. Raises LighttokenError if there is no such file, or if it
    has another format.
    """

    file: str
    column: str
    key: str

    def __post_init__(self) -> None:
        path = Path(self.file)
        if not path.is_file():
            raise LighttokenError(f"{self.key}.file={self.file} is no file; set {self.key}.file=FILE to a corpus")
        if path.suffix not in FORMATS:
            raise LighttokenError(f"{self.key}.file={path} has no known format; choose a file in {', '.join(FORMATS)}")

    @property
    def text_column(self) -> str:
        """The column that is read; the one of a .txt file has a name of its own."""
        return "text" if Path(self.file).suffix == ".txt" else self.column

    def texts(self) -> Iterable[str]:
        """The texts, in their order. Raises LighttokenError if the file lacks the column."""
        from datasets import load_dataset

        path = Path(self.file)
        column = self.text_column
        texts = load_dataset(FORMATS[path.suffix], data_files=str(path), split="train", streaming=True)
        columns = list(texts.column_names or next(iter(texts), {}))
        if column not in columns:
            raise LighttokenError(
                f"{self.key}.file={path} has no column {column!r}; set {self.key}.column to one of {', '.join(columns)}"
            )
        return (str(row[column]) for row in texts if row[column] is not None)


def token_stream(tokenizer: Any, texts: Iterable[str]) -> Iterator[int]:
    """The token ids of texts, one text after the other, without special tokens."""
    for text in texts:
        yield from tokenizer(text, add_special_tokens=False)["input_ids"]


def text_pieces(tokenizer: Any, texts: Iterable[str], length: int) -> Iterator[list[int]]:
    """The token ids of texts, without special tokens, in pieces of at most `length` tokens."""
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        yield from (ids[start : start + length] for start in range(0, len(ids), length))
