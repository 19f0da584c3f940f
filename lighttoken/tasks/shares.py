"""A batch shared by the processes of a run: all of them read it, and every process computes some of its rows.

So the batches are those of one process, in the same order and padded to the same length.
"""

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel


class SharingModule(L.LightningModule):
    """A module that computes the rows of this process: of n rows and p processes, n / p consecutive ones.

    `rows` is how many rows of the current batch count, None for all. A batch of fewer rows than processes leaves some
    of them none: these compute the first row, which does not count. `weight` makes the mean over the processes of
    their mean losses the mean over the rows of the whole batch.
    """

    model: Any
    rows: int | None = None
    weight: float = 1.0

    def setup(self, stage: str) -> None:
        """Tell torch what processes need not send each other, as all of them have read it from the same files.

        These are the codes of a compressed table, of types that gloo does not know, and, once the model is trained, all
        weights, which may be quantized.
        """
        same = [name for name, _ in self.named_buffers()]
        if stage != "fit":
            same += [name for name, _ in self.named_parameters()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, same)

    def configure_model(self) -> None:
        """With trainer=fsdp, train a copy of the model whose parameters are divided among the processes.

        A layer is gathered while it computes. Every process has all buffers, among them the codes of a compressed
        table: they are small, have no gradient, and a part of the rows is of no use.
        """
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and self.trainer.training:
            self.__dict__["whole"], self.model = self.model, copy.deepcopy(self.model)
            mesh = init_device_mesh(self.trainer.strategy.root_device.type, (self.trainer.world_size,))
            lists = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
            for layer in [layer for layers in reversed(lists) for layer in layers]:
                fully_shard(layer, mesh=mesh)
            fully_shard(self.model, mesh=mesh)

    def on_fit_end(self) -> None:
        """Gather what was divided into the original model, one parameter at a time."""
        if "whole" in self.__dict__:
            whole = self.__dict__.pop("whole")
            with torch.no_grad():
                for part, parameter in zip(self.model.parameters(), whole.parameters(), strict=True):
                    divided: Any = part  # a DTensor
                    parameter.copy_(divided.full_tensor())
            self.model = whole

    def on_before_batch_transfer(self, batch: Mapping[str, Tensor], dataloader_idx: int) -> Mapping[str, Tensor]:
        """Lightning calls it with every batch of all loaders."""
        processes, process = self.trainer.world_size, self.trainer.global_rank
        if processes == 1:
            self.rows, self.weight = None, 1.0
            return batch
        shares = {name: tensor.tensor_split(processes)[process] for name, tensor in batch.items()}
        name = next(iter(batch))
        self.rows = len(shares[name])
        self.weight = self.rows * processes / len(batch[name])
        return shares if self.rows else {name: tensor[:1] for name, tensor in batch.items()}

    def log_mean(self, name: str, mean: Tensor, **settings: Any) -> None:
        """Log the mean over the rows of a training batch, given that of this process."""
        self.log(name, self.weight * mean, sync_dist=True, **settings)


def in_order(parts: list[Any]) -> list[Any]:
    """What the processes made of their shares of every batch, in the order of the rows; empty but on the first process.

    `parts` has an entry for every batch. With one process it is the answer.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return parts
    first = torch.distributed.get_rank() == 0
    everyone: Any = [None] * torch.distributed.get_world_size() if first else None
    torch.distributed.gather_object(parts, everyone)
    return [part for batch in zip(*everyone, strict=True) for part in batch] if first else []


class AnswerKeeper(L.Callback):
    """Collects what `validation_step` returns: a dictionary with `answers` (rows,) and `labels` (rows,)."""

    def __init__(self) -> None:
        self.batches: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)  # number of the data loader -> batches

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if isinstance(outputs, dict) and {"answers", "labels"} <= outputs.keys():
            self.batches[dataloader_idx].append((outputs["answers"].cpu(), outputs["labels"].cpu()))

    def answers(self, splits: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Answers (n,) and labels (n,) of every split, in the order of the rows; none but on the first process."""
        ordered = {splits[number]: in_order(batches) for number, batches in sorted(self.batches.items())}
        pairs = {split: tuple(map(torch.cat, zip(*parts, strict=True))) for split, parts in ordered.items() if parts}
        return pairs  # type: ignore[return-value]
