"""The progress bar of a stage."""

import lightning as L
from tqdm.auto import tqdm


class StageProgressBar(L.Callback):
    """A tqdm bar over the steps of one stage; Lightning's own counts epochs, of which a stage has none."""

    def __init__(self, description: str):
        self.description = description

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar = tqdm(total=trainer.max_steps, desc=self.description, unit="step", leave=True)

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        self.bar.update(trainer.global_step - self.bar.n)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.close()
