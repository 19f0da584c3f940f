from collections.abc import Callable

import lightning as L
import pytest
import torch
from torchmetrics.classification import BinaryAccuracy
from transformers import AutoModelForSequenceClassification

from lighttoken import compress_table, swap_embedding
from lighttoken.backbone.replace import find_embedding
from lighttoken.tasks.finetuner import FineTuner
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


def test_scores_are_those_of_the_predictions(module, glue):
    tuner, rows = module(), glue()
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


def test_dropout_is_on_while_training(module, glue):
    modes = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            modes.append(all(m.training for m in pl_module.model.modules()))

    fit(module(), glue(), callbacks=[Watch()], max_epochs=1)
    assert modes == [True] * 8


def test_every_batch_of_a_step_has_its_own_dropout(module, glue):
    def draw(accumulated: int) -> list[int]:
        seeds, tuner = [], module()
        forward = tuner.forward
        tuner.forward = lambda **batch: (tuner.training and seeds.append(torch.initial_seed()), forward(**batch))[1]
        torch.manual_seed(5)
        fit(tuner, glue(), accumulate_grad_batches=accumulated)
        return seeds

    assert len(set(draw(1))) == 16  # 2 epochs of 64 rows by 8
    assert draw(3) == draw(1)


@pytest.mark.parametrize("codec", ["svd", "none"])
def test_a_frozen_embedding_stays_and_the_backbone_moves(module, glue, codec):
    tuner = module(codec=codec)
    embedding = tuner.model.get_input_embeddings()
    before = embedding.weight.detach().clone()
    head = tuner.model.classifier.weight.detach().clone()
    fit(tuner, glue(), max_epochs=1)
    assert torch.equal(embedding.weight, before)
    assert not torch.equal(tuner.model.classifier.weight, head)


def test_the_learning_rate_warms_up_and_falls_to_zero(module, glue):
    rates = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(module(warmup_ratio=0.25), glue(), callbacks=[Watch()])
    assert len(rates) == 16
    assert rates[0] == 0
    assert rates[4] == pytest.approx(1e-3)
    assert rates[:5] == sorted(rates[:5])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(1e-3 / 12)


def test_biases_and_normalisation_have_no_weight_decay(module, glue):
    tuner = module(trainable="decoder+factors")
    optimizer = fit(tuner, glue(), max_epochs=1).optimizers[0]
    names = {id(parameter): name for name, parameter in tuner.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay.keys() == set(names.values())
    spared = ("LayerNorm", "bias", ".trained.")
    assert all(rate == (0.0 if any(word in name for word in spared) else 0.01) for name, rate in decay.items())


def test_a_trained_matrix_of_a_table_moves_in_proportion_to_its_size(module, glue):
    tuner = module(trainable="decoder+factors", warmup_ratio=0.0)
    embedding = tuner.model.get_input_embeddings()
    before = {name: matrix.detach().clone() for name, matrix in embedding.trained.items()}
    size = embedding.weight.square().mean().sqrt()
    fit(tuner, glue(), max_epochs=1, limit_train_batches=1)
    steps = {name: (matrix.detach() - before[name]).abs().max() for name, matrix in embedding.trained.items()}
    assert {name for name, step in steps.items() if step > 0} == {"bias", "left", "right"}
    for name in ("bias", "left", "right"):  # Adam's first step is the learning rate itself
        expected = 1e-3 * before[name].square().mean().sqrt() / size
        torch.testing.assert_close(steps[name], expected.clamp_min(1e-6), rtol=0.01, atol=1e-7)


def test_a_student_learns_the_answers_of_its_teacher_and_does_not_save_it(module, glue, make_model):
    teacher = make_model("bert", AutoModelForSequenceClassification)
    torch.nn.init.normal_(teacher.classifier.weight, std=2.0)
    tuner, distances = module(teacher=teacher, distill_weight=1.0), []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            distances.append(float(trainer.callback_metrics["train/distance"]))

    fit(tuner, glue(), callbacks=[Watch()], max_epochs=8)
    assert sum(distances[-8:]) < 0.5 * sum(distances[:8])
    assert not any("teacher" in name for name in tuner.state_dict())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training


def test_the_distance_is_a_divergence_for_classes_and_spans_and_a_square_for_numbers(module):
    tuner = module(distill_temperature=2.0)
    ours, theirs = torch.randn(4, 3), torch.randn(4, 3)
    p, q = (logits.div(2).softmax(-1) for logits in (theirs, ours))
    divergence = 4 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(tuner.distance({"logits": ours}, {"logits": theirs}), divergence)
    spans = [{"start_logits": a, "end_logits": b} for a, b in ((ours, theirs), (theirs, theirs))]
    torch.testing.assert_close(tuner.distance(*spans), divergence / 2)
    numbers = [{"logits": logits[:, :1]} for logits in (ours, theirs)]
    torch.testing.assert_close(tuner.distance(*numbers), (ours[:, 0] - theirs[:, 0]).square().mean())


def test_held_out_rows_have_scores_of_their_own(module, glue):
    tuner, rows = module(), glue(dev_fraction=0.3)
    metrics = fit(tuner, rows).callback_metrics
    assert {"val/accuracy", "val/loss", "dev/accuracy", "dev/loss"} <= metrics.keys()
