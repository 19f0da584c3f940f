"""The classes of a checkpoint's head are matched with those of a task by their names."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lighttoken import LighttokenError
from lighttoken.backbone.source import Backbone

NAMES = ["entailment", "neutral", "contradiction"]


@pytest.fixture
def save(make_model, tokenizer, tmp_path):
    """Saves a classifier whose classes have these names; returns it and the backbone of its folder."""

    def call(names, architecture="bert"):
        model = make_model(architecture, AutoModelForSequenceClassification, num_labels=len(names))
        model.config.id2label = dict(enumerate(names))
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return model.eval(), Backbone("tuned", path=str(tmp_path / "model"))

    return call


def test_classes_in_another_order_come_in_that_of_the_task(save, architecture):
    model, backbone = save(["CONTRADICTION", "Neutral", "entailment"], architecture)
    loaded = backbone.classifier(3, NAMES).eval()
    ids = torch.randint(4, 200, (3, 9))
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits[:, [2, 1, 0]])
    assert loaded.config.id2label == dict(enumerate(NAMES))
    assert loaded.config.label2id == {name: i for i, name in enumerate(NAMES)}


def test_other_classes_are_refused(save):
    _, backbone = save(["neg", "pos"])
    with pytest.raises(LighttokenError, match="the classes of model=model are neg, pos and the task's are no, yes; "):
        backbone.classifier(2, ["no", "yes"])


def test_classes_without_names_stay_in_their_order_with_a_warning(save, caplog):
    model, backbone = save(["LABEL_0", "LABEL_1"])
    loaded = backbone.classifier(2, ["no", "yes"])
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)
    assert "model=model has no names for its classes; they are taken to be no, yes" in caplog.text


def test_a_new_head_has_the_names_of_the_task_alone(save):
    _, backbone = save(["neg", "pos"])
    assert backbone.classifier(3, NAMES).config.id2label == dict(enumerate(NAMES))  # of another size: drawn anew
