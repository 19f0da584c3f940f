"""A whole epoch of a task through `lighttoken.train`'s parts against a bare PyTorch loop over the same batches.

    python -m experiments.epoch_speed experiments/DATED-FOLDER --data DIR [--overrides trainer.precision=bf16-mixed]

DIR holds SST-2. The two loops take turns of 10 batches in one process, so that other work on the machine slows both.
The bare loop has a copy of the model, AdamW, the schedule and clipping, and its batches lie padded in memory; the other
one shuffles, pads, logs to metrics.csv, counts steps and shows a progress bar. Writes epoch_speed.csv, a line per turn,
and prints the ratio of the sums with the quartiles of the ratios of the turns.
"""

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from hydra.utils import instantiate
from transformers import get_linear_schedule_with_warmup

from experiments.rows import RowFile
from lighttoken.config.schema import config_dir, register
from lighttoken.run.libraries import quiet_libraries

TURN = 10  # batches


class BareLoop(L.Callback):
    """After every turn of the trainer, a turn of the bare loop over the batches that the trainer has just had."""

    def __init__(self, config: Any, model: torch.nn.Module):
        self.config, self.model = config, copy.deepcopy(model).train()
        self.batches: list[dict[str, torch.Tensor]] = []
        self.turns: list[tuple[int, float, float]] = []  # batches, seconds of the trainer, seconds of the bare loop

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        decay = [{"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.config.finetune.weight_decay}]
        decay += [{"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(decay, lr=self.config.finetune.learning_rate, fused=True)
        steps = int(trainer.estimated_stepping_batches)
        warmup = int(self.config.finetune.warmup_ratio * steps)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, warmup, steps)
        self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(dict(batch))
        if len(self.batches) == TURN or batch_idx + 1 == trainer.num_training_batches:
            start = time.perf_counter()
            self.turn()
            end = time.perf_counter()
            self.turns.append((len(self.batches), start - self.since, end - start))
            self.batches, self.since = [], time.perf_counter()

    def turn(self) -> None:
        """One pass over the batches."""
        mixed = str(self.config.trainer.precision).startswith("bf16")
        for batch in self.batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                loss = self.model(**batch).loss
            self.optimizer.zero_grad()
            loss.backward()
            if self.config.trainer.gradient_clip_val:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.trainer.gradient_clip_val)
            self.optimizer.step()
            self.schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where epoch_speed.csv is written")
    parser.add_argument("--data", required=True, help="a folder with SST-2")
    parser.add_argument("--overrides", nargs="+", default=[], metavar="KEY=VALUE", help="of glue_sst2")
    arguments = parser.parse_args()
    register()
    overrides = ["+experiment=glue_sst2", f"task.data_dir={arguments.data}", "codec=none", "trainer.max_epochs=1"]
    with hydra.initialize_config_dir(config_dir(), version_base="1.3"):
        config = hydra.compose("train", [*overrides, *arguments.overrides])
    quiet_libraries(progress=True)
    backbone = instantiate(config.model)
    data = instantiate(config.task, tokenizer=backbone.tokenizer())
    L.seed_everything(config.seed, verbose=False)
    model = data.make_model(backbone)
    module = instantiate(config.finetune, model=model, metrics=data.metrics, _recursive_=False)
    bare = BareLoop(config, model)  # what is trained has been chosen now
    with tempfile.TemporaryDirectory() as folder:
        logger = L.pytorch.loggers.CSVLogger(folder)
        callbacks = [*instantiate(config.callbacks).values(), bare]
        settings = {"callbacks": callbacks, "logger": logger, "enable_checkpointing": False, "limit_val_batches": 0}
        instantiate(config.trainer, **settings).fit(module, data)
    results = RowFile(arguments.folder / "epoch_speed.csv", ("batches", "lighttoken_seconds", "bare_seconds"))
    for count, ours, its in bare.turns:
        results.add(dict(zip(results.columns, (count, f"{ours:.3f}", f"{its:.3f}"), strict=True)))
    ours, its = (sum(turn[i] for turn in bare.turns) for i in (1, 2))
    low, middle, high = statistics.quantiles([turn[1] / turn[2] for turn in bare.turns], n=4)
    print(f"{sum(turn[0] for turn in bare.turns)} batches: {ours:.0f} s against {its:.0f} s, ratio {ours / its:.3f}")
    print(f"of turns: median {middle:.3f}, quartiles {low:.3f} to {high:.3f}; {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
