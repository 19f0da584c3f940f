"""Healing: the third LightningModule, which adapts a backbone to its compressed table on texts without labels."""

from collections.abc import Mapping

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from lighttoken.tasks.finetuner import model_inputs
from lighttoken.tasks.optimizer import adamw


class Healer(L.LightningModule):
    """Trains a backbone to give the hidden states of the original one, while its table stays as it is.

    The loss is the mean over layers of the squared error of the states of all tokens, over their variance in the
    original model (the distance of Jiao et al. 2020, equation 8, with every layer on one scale). AdamW, without weight
    decay, with linear warm-up and decay. There is no dropout: the original model answers without it too.
    """

    original: PreTrainedModel

    def __init__(self, model: PreTrainedModel, original: PreTrainedModel, learning_rate: float, warmup_ratio: float):
        """Both models are bodies without a head. `warmup_ratio` is a share of the steps."""
        super().__init__()
        self.model = model.eval().requires_grad_(True)
        model.get_input_embeddings().requires_grad_(False)
        self.learning_rate, self.warmup_ratio = learning_rate, warmup_ratio
        # Not a submodule: the original model is neither trained nor saved.
        self.__dict__["original"] = original.eval().requires_grad_(False)

    def on_fit_start(self) -> None:
        nn.Module.to(self.original, self.device)

    on_validation_start = on_fit_start

    def states(self, batch: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """For every layer, the states (n, d) of the n tokens of a batch, padding left out: of both models."""
        inputs = model_inputs(batch)
        tokens = inputs["attention_mask"].bool()
        with torch.no_grad():
            target = self.original(**inputs, output_hidden_states=True).hidden_states
        ours = self.model(**inputs, output_hidden_states=True).hidden_states
        pairs = zip(ours[1:], target[1:], strict=True)
        return [(one[tokens].float(), other[tokens].float()) for one, other in pairs]  # autocast may have rounded them

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        errors = [
            (ours - target).square().sum() / (target - target.mean(0)).square().sum()
            for ours, target in self.states(batch)
        ]
        loss = torch.stack(errors).mean()
        self.log("heal/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        ours, target = self.states(batch)[-1]
        self.log("heal/cosine", cosine_similarity(ours, target).mean(), batch_size=len(ours))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return adamw(self, [{"params": trained, "weight_decay": 0.0}], self.learning_rate, self.warmup_ratio)
