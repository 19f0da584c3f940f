from collections.abc import Callable

import lightning as L
import pytest
import torch
from torchmetrics.classification import BinaryAccuracy
from transformers import AutoModelForSequenceClassification

from lighttoken import compress_table, swap_embedding
from lighttoken.backbone import find_embedding
from lighttoken.finetune import FineTuner
from lighttoken.tasks.glue import Glue


@pytest.fixture
def module(make_model: Callable) -> Callable[..., FineTuner]:
    def make(architecture: str = "bert", codec: str = "svd", **changes) -> FineTuner:
        model = make_model(architecture, AutoModelForSequenceClassification)
        if codec != "none":
            swap_embedding(model, compress_table(find_embedding(model).weight, codec, 2.0, progress=False))
        settings = {"learning_rate": 1e-3, "weight_decay": 0.01, "warmup_ratio": 0.1, "trainable": "frozen"}
        return FineTuner(model, {"accuracy": BinaryAccuracy()}, **(settings | changes))

    return make


@pytest.fixture
def data(tokenizer, sst2) -> Callable[..., Glue]:
    def make(**changes) -> Glue:
        metrics = {"accuracy": BinaryAccuracy()}
        return Glue(tokenizer, "sst2", ["sentence"], 2, metrics, batch_size=8, data_dir=str(sst2), **changes)

    return make


def fit(module: FineTuner, data: Glue, **changes) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(accelerator="cpu", num_sanity_val_steps=0, **(quiet | {"max_epochs": 2} | changes))
    trainer.fit(module, data)
    return trainer


def test_scores_are_those_of_the_predictions(module, data):
    tuner, rows = module(), data()
    trainer = fit(tuner, rows)
    trainer.validate(tuner, rows, verbose=False)
    tuner.eval()
    right = total = 0
    with torch.no_grad():
        for batch in rows.val_dataloader()[0]:
            right += int((tuner(**batch).logits.argmax(-1) == batch["labels"]).sum())
            total += len(batch["labels"])
    assert total == 24
    assert float(trainer.callback_metrics["val/accuracy"]) == pytest.approx(right / total)


def test_dropout_is_on_while_training(module, data):
    modes = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            modes.append(all(m.training for m in pl_module.model.modules()))

    fit(module(), data(), callbacks=[Watch()], max_epochs=1)
    assert modes == [True] * 8


@pytest.mark.parametrize("codec", ["svd", "none"])
def test_a_frozen_embedding_stays_and_the_backbone_moves(module, data, codec):
    tuner = module(codec=codec)
    embedding = tuner.model.get_input_embeddings()
    before = embedding.weight.detach().clone()
    head = tuner.model.classifier.weight.detach().clone()
    fit(tuner, data(), max_epochs=1)
    assert torch.equal(embedding.weight, before)
    assert not torch.equal(tuner.model.classifier.weight, head)


def test_the_rate_warms_up_and_falls_to_nothing(module, data):
    rates = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(module(warmup_ratio=0.25), data(), callbacks=[Watch()])
    assert len(rates) == 16
    assert rates[0] == 0
    assert rates[4] == pytest.approx(1e-3)
    assert rates[:5] == sorted(rates[:5])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(1e-3 / 12)


def test_biases_and_normalisation_are_spared_decay(module, data):
    tuner = module(trainable="decoder+factors")
    optimizer = fit(tuner, data(), max_epochs=1).optimizers[0]
    decayed, spared = optimizer.param_groups
    assert decayed["weight_decay"] == 0.01
    assert spared["weight_decay"] == 0.0
    names = {id(parameter): name for name, parameter in tuner.named_parameters()}
    assert all("LayerNorm" in names[id(p)] or "bias" in names[id(p)] for p in spared["params"])
    assert not any("LayerNorm" in names[id(p)] or "bias" in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_held_out_rows_have_scores_of_their_own(module, data):
    tuner, rows = module(), data(dev_fraction=0.3)
    metrics = fit(tuner, rows).callback_metrics
    assert {"val/accuracy", "val/loss", "dev/accuracy", "dev/loss"} <= metrics.keys()
