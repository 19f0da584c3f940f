"""Every config in conf/ composes, passes the checks and can be instantiated."""

import os
from pathlib import Path

import lightning as L
import pytest
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from transformers import AutoModelForSequenceClassification

from lighttoken.backbone.source import Backbone
from lighttoken.codec import CODECS, NO_CODEC, Stored, Uncompressed
from lighttoken.codec.prior import Prior
from lighttoken.config.check import check
from lighttoken.config.schema import choices, config_dir
from lighttoken.tasks.data import TaskData
from lighttoken.tasks.finetuner import FineTuner

CONF = Path(config_dir())


@pytest.mark.parametrize("name", choices("model"))
def test_every_model_is_a_backbone(compose, name):
    config = compose(f"model={name}")
    check(config)
    backbone = instantiate(config.model)
    assert isinstance(backbone, Backbone)
    assert backbone.name == name
    assert (backbone.package is None) != (backbone.hub_id is None)


@pytest.mark.parametrize("name", choices("codec"))
def test_every_codec_has_the_settings_of_its_python_name(compose, name):
    config = compose(f"codec={name}")
    check(config)
    codec = instantiate(config.codec)
    assert codec.name == name
    if name in NO_CODEC:
        assert isinstance(codec, Uncompressed | Stored)
    else:
        default = get_object(CODECS[name])()
        assert codec.settings() == default.settings()
        assert codec.importance_settings() == default.importance_settings()


@pytest.mark.parametrize("name", choices("codec/schedule"))
def test_every_schedule_reaches_the_codec(compose, name):
    config = compose("codec=lighttoken_paper", f"codec/schedule={name}")
    check(config)
    assert type(instantiate(config.codec).schedule).__name__.lower() == name


@pytest.mark.parametrize("name", choices("codec/prior"))
def test_every_prior_reaches_the_codec(compose, name):
    config = compose(f"codec/prior={name}", *(["codec.prior.file=x"] if name == "corpus" else []))
    check(config)
    assert issubclass(get_object(config.codec.prior._target_), Prior)


@pytest.mark.parametrize("name", choices("task"))
def test_every_task_is_a_data_module(compose, name, tokenizer):
    config = compose(f"task={name}", *(["task.data_dir=x"] if name == "classification" else []))
    check(config)
    data = instantiate(config.task, tokenizer=tokenizer)
    assert isinstance(data, TaskData)
    assert data.name == name


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment_starts_with_its_four_lines_and_composes(compose, name):
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    for line, word in zip(lines[1:5], ("Command", "Expected", "Time", "Hardware"), strict=True):
        assert line.startswith(f"# {word}:")
        assert "TBD" not in line
        assert "MEASURE" not in line
    assert f"+experiment={name}" in lines[1]
    check(compose(f"+experiment={name}"))


@pytest.mark.parametrize("logger", choices("logger"))
@pytest.mark.parametrize("callbacks", choices("callbacks"))
@pytest.mark.parametrize("trainer", choices("trainer"))
def test_trainers_take_every_callback_and_logger(compose, trainer, callbacks, logger, make_model):
    config = compose(f"trainer={trainer}", f"callbacks={callbacks}", f"logger={logger}", "task.dev_fraction=0.1")
    check(config)
    loggers = list(instantiate(config.logger).values())
    callback_list = list(instantiate(config.callbacks).values())
    assert isinstance(instantiate(config.trainer, callbacks=callback_list, logger=loggers), L.Trainer)
    model = make_model("bert", AutoModelForSequenceClassification)
    assert isinstance(instantiate(config.finetune, model=model, metrics={}, _recursive_=False), FineTuner)


def test_every_target_exists():
    for path in CONF.rglob("*.yaml"):
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if "_target_" in node:
            get_object(node["_target_"])


def test_compress_composes(compose):
    check(compose("output=somewhere", name="compress"))


def test_wandb_is_offline_unless_there_is_a_key(compose, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    assert compose().logger.wandb.offline is True
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert compose().logger.wandb.offline is False
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password key\n")
    os.chmod(tmp_path / ".netrc", 0o600)
    assert compose().logger.wandb.offline is False
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert compose().logger.wandb.offline is True


@pytest.mark.parametrize(
    ("recipe", "task", "expected"),
    [
        ("bert", "cola", {"learning_rate": 2e-5, "batch_size": 32, "max_epochs": 3, "weight_decay": 0.01}),
        ("bert", "squad", {"learning_rate": 3e-5, "batch_size": 12, "max_epochs": 2, "weight_decay": 0.01}),
        ("roberta", "sst2", {"learning_rate": 1e-5, "batch_size": 32, "max_epochs": 10, "weight_decay": 0.1}),
        ("roberta", "rte", {"learning_rate": 2e-5, "batch_size": 16, "max_epochs": 10, "weight_decay": 0.1}),
        ("roberta", "squad", {"learning_rate": 1.5e-5, "batch_size": 48, "max_epochs": 2, "weight_decay": 0.01}),
    ],
)
def test_a_recipe_has_the_published_values_of_the_task(compose, recipe, task, expected):
    config = compose(f"task={task}", f"recipe={recipe}")
    values = {**config.finetune, **config.trainer, "batch_size": config.task.batch_size}
    assert {name: values[name] for name in expected} == expected
    assert compose(f"task={task}", f"recipe={recipe}", "finetune.learning_rate=1e-3").finetune.learning_rate == 1e-3
