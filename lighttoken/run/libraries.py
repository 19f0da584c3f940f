"""What the libraries print, and how to keep it out of the terminal. Imports none of them before it is called."""

import logging
import warnings

# Warnings on every run, about settings that are intended.
NOISE = (
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    "Experiment logs directory .* exists and is not empty.*",
    ".*does not have many workers.*",
    ".*will save all targets and predictions in the buffer.*",
    "You have overridden `on_before_batch_transfer` in `LightningModule`.*",
    ".*`srun` command is available on your system but is not used.*",  # on a login node
    ".*number of training batches .* is smaller than the logging interval.*",
)


def quiet_imports() -> None:
    """Silence what torchao and faiss print while they are imported. Call this before."""
    for name in ("torchao", "torch.utils._pytree", "faiss.loader"):
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet_libraries(progress: bool) -> None:
    """Silence the warnings of every run, and without `progress` the progress bars of datasets and transformers."""
    import datasets
    import transformers

    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    if not progress:
        datasets.disable_progress_bars()
        transformers.logging.disable_progress_bar()
