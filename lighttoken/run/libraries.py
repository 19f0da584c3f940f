"""What the libraries print and how their threads wait. Imports none of them before it is called."""

import logging
import os
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


def prepare_imports() -> None:
    """Silence what torchao and faiss print while they are imported, and let PyTorch's idle threads sleep.

    Call it before the imports. By default threads of OpenMP wait in a loop for their next work. On cores that another
    process uses too, training was 7 times slower by that, and compression 4 times. On idle cores sleeping costs up to
    21 %: OMP_WAIT_POLICY=ACTIVE in the environment of the user stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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
