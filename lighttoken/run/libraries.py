"""What the libraries print."""

import logging
import warnings

import datasets
import transformers

# What the libraries say on every run, about things that are meant to be as they are.
NOISE = (
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    "Experiment logs directory .* exists and is not empty.*",
    ".*does not have many workers.*",
    ".*will save all targets and predictions in the buffer.*",
)


def quiet_libraries(progress: bool) -> None:
    """Keep what the libraries say on every run out of the terminal, and their progress bars if none are wanted."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    if not progress:
        datasets.disable_progress_bars()
        transformers.logging.disable_progress_bar()
