"""The rows of a CSV file that a script adds one by one, so that the same command goes on where it stopped."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lighttoken.artifact.files import write_atomically

Row = dict[str, str]


class RowFile:
    """A CSV file. `key`: the columns that make a row another one; without a key, the file starts anew.

    `defaults`: values of columns that older files lack. Values are compared and kept as text, as the file has them.
    """

    def __init__(self, path: Path, columns: Sequence[str], key: Sequence[str] = (), **defaults: str):
        self.path, self.columns, self.key = path, columns, key
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: list[Row] = [defaults | row for row in read_rows(path)] if key and path.exists() else []

    def __contains__(self, values: Sequence[Any]) -> bool:
        """Whether there is a row with these values of the key."""
        return tuple(map(str, values)) in {tuple(row[name] for name in self.key) for row in self.rows}

    def add(self, row: dict[str, Any], order: Callable[[Row], Any] | None = None) -> None:
        """Add a row, sort the rows if there is an order, and write the file."""
        self.rows.append({name: str(row.get(name, "")) for name in self.columns})
        if order is not None:
            self.rows.sort(key=order)
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, self.columns)
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, file.getvalue().encode())  # an interruption loses no row


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def markdown(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Some columns of the rows as a Markdown table."""
    lines = [list(columns), ["---"] * len(columns), *([row[name] for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
