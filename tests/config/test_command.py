import copy
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import hydra
import lightning as L
import pytest
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf, open_dict

from lighttoken import LighttokenError
from lighttoken.backbone.source import Backbone
from lighttoken.codec import CODECS, Uncompressed
from lighttoken.config.check import check
from lighttoken.config.schema import config_dir, register
from lighttoken.tasks.data import TaskData
from lighttoken.tasks.finetuner import FineTuner

CONF = Path(config_dir())


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def compose(*overrides: str, name: str = "train"):
    register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose(name, list(overrides), return_hydra_config=True)
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.runtime.output_dir = "run"
    hydra.core.hydra_config.HydraConfig.instance().set_config(config)
    config = copy.deepcopy(config)
    with open_dict(config):
        del config["hydra"]
    return config


@pytest.mark.parametrize("name", names("model"))
def test_every_model_is_a_backbone(name):
    config = compose(f"model={name}")
    check(config)
    backbone = instantiate(config.model)
    assert isinstance(backbone, Backbone)
    assert backbone.name == name
    assert (backbone.package is None) != (backbone.hub_id is None)


@pytest.mark.parametrize("name", names("codec"))
def test_every_codec_has_the_settings_of_its_python_name(name):
    config = compose(f"codec={name}")
    check(config)
    codec = instantiate(config.codec)
    assert codec.name == name
    if name == "none":
        assert isinstance(codec, Uncompressed)
    else:
        default = get_object(CODECS[name])()
        assert codec.settings() == default.settings()
        assert codec.importance_settings() == default.importance_settings()


@pytest.mark.parametrize("name", names("task"))
def test_every_task_is_a_data_module(name, tokenizer):
    config = compose(f"task={name}")
    check(config)
    data = instantiate(config.task, tokenizer=tokenizer)
    assert isinstance(data, TaskData)
    assert data.name == name


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_starts_with_its_four_lines_and_composes(name):
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    for line, word in zip(lines[1:5], ("Command", "Expected", "Time", "Hardware"), strict=True):
        assert line.startswith(f"# {word}:")
        assert "TBD" not in line
        assert "MEASURE" not in line
    assert f"+experiment={name}" in lines[1]
    check(compose(f"+experiment={name}"))


@pytest.mark.parametrize("logger", names("logger"))
@pytest.mark.parametrize("callbacks", names("callbacks"))
@pytest.mark.parametrize("trainer", names("trainer"))
def test_trainers_take_every_callback_and_logger(trainer, callbacks, logger, make_model):
    config = compose(f"trainer={trainer}", f"callbacks={callbacks}", f"logger={logger}", "task.dev_fraction=0.1")
    check(config)
    loggers = list(instantiate(config.logger).values())
    callback_list = list(instantiate(config.callbacks).values())
    assert isinstance(instantiate(config.trainer, callbacks=callback_list, logger=loggers), L.Trainer)
    from transformers import AutoModelForSequenceClassification

    model = make_model("bert", AutoModelForSequenceClassification)
    assert isinstance(instantiate(config.finetune, model=model, metrics={}, _recursive_=False), FineTuner)


def test_every_target_exists():
    for path in CONF.rglob("*.yaml"):
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if "_target_" in node:
            get_object(node["_target_"])


def test_compress_composes():
    check(compose("output=somewhere", name="compress"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["codec=lighttoken_paper", "+codec.rnak=3"], "unknown key codec.rnak; did you mean codec.rank?"),
        (
            ["codec=lighttoken_paper", "+codec.saturation.treshold=1"],
            "unknown key codec.saturation.treshold; did you mean codec.saturation.threshold?",
        ),
        (["+trainer.max_epoch=3"], "unknown key trainer.max_epoch; did you mean trainer.max_epochs?"),
        (["+task.max_lenght=3"], "unknown key task.max_lenght; did you mean task.max_length?"),
        (["+logger.wandb.offlin=true"], None),  # WandbLogger passes what it does not know on to wandb.init
        (["finetune.learning_rate=fast"], "finetune.learning_rate is 'fast'; it must be of type float"),
        (["trainer.max_epochs=1.5"], "trainer.max_epochs is 1.5; it must be of type int or null"),
        (
            ["codec=lighttoken_paper", "codec.matrix_precision=int3"],
            "codec.matrix_precision is 'int3'; it must be one of float32, float16, int8, int4",
        ),
        (["finetune.trainable=all"], "finetune.trainable is 'all'; it must be one of frozen, decoder, decoder+factors"),
        (
            ["task._target_=lighttoken.Nothing"],
            "task._target_=lighttoken.Nothing cannot be imported; check its spelling",
        ),
        (["task.batch_size=null"], "task.batch_size is None; it must be of type int"),
        (["codec=svd", "codec.rank=true"], "codec.rank is True; it must be of type int or null"),
    ],
)
def test_keys_and_types_are_checked_against_the_classes(overrides, message):
    config = compose(*overrides)
    if message is None:
        check(config)
    else:
        with pytest.raises(LighttokenError) as caught:
            check(config)
        assert str(caught.value) == message


def test_missing_values_are_named():
    with pytest.raises(LighttokenError, match="missing output; add output=VALUE to the command"):
        check(compose(name="compress"))


def test_an_experiment_file_with_a_misspelt_key_is_refused(tmp_path, command):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "typo.yaml").write_text("# @package _global_\nfinetune:\n  learning_rat: 1.0\n")
    code, _, err = command("train", "--config-dir", str(folder.parent), "+experiment=typo")
    assert (code, err) == (2, "error: unknown key finetune.learning_rat; did you mean finetune.learning_rate?\n")
    (folder / "typo.yaml").write_text("# @package _global_\nrato: 3\n")
    code, _, err = command("train", "--config-dir", str(folder.parent), "+experiment=typo")
    assert code == 2
    assert "rato" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=bertt"], f"unknown model 'bertt'; choose one of {', '.join(names('model'))}"),
        (["codec=huffman"], f"unknown codec 'huffman'; choose one of {', '.join(names('codec'))}"),
        (["task=sst3"], f"unknown task 'sst3'; choose one of {', '.join(names('task'))}"),
        (["+experiment=nope"], f"unknown experiment 'nope'; choose one of {', '.join(names('experiment'))}"),
        (["experiment=quickstart"], "an experiment is added, not overridden: write +experiment=NAME"),
        (["rato=3"], "unknown key rato; did you mean ratio?"),
        (["codec.tires=3"], "unknown key codec.tires; did you mean codec.tiers?"),
        (["codec.prior=books"], "codec.prior is 'books'; it must be one of uniform, zipf, wordfreq, corpus"),
        (
            ["trainer.accumulate_grad_batches=2"],
            "trainer.accumulate_grad_batches is not set so far and is added, not overridden: "
            "write +trainer.accumulate_grad_batches=VALUE",
        ),
        (["logger=null"], "a config group takes a name, not null; logger=none is there for no logger"),
        (["task.batch_size=0", "logger=none"], "task.batch_size is 0; it must be 1 or above"),
        (["seed=-1"], "seed is -1; it must be 0 or above, and below 2^32"),
        (["zzz.a=3"], "unknown key zzz.a; --cfg job shows them all"),
        (["task=cola", "task.data_dri=x"], "unknown key task.data_dri; did you mean task.data_dir?"),
        (["+experiment=glue_sst2", "task.data-dir=x"], "unknown key task.data-dir; did you mean task.data_dir?"),
        (["task=cola,sst2", "task.batchsize=1", "-m"], "unknown key task.batchsize; did you mean task.batch_size?"),
        (["codec=none", "codec.rank=3"], "unknown key codec.rank; known: name"),
        (["codec=none,svd"], "codec=none,svd is a list of values; add -m to run one after another"),
        (["ratio=null"], "ratio is null; it needs a value"),
        (["ratio=1"], "ratio is 1; it must be above 1, for example ratio=25"),
        (["codec.corpus=x"], "corpus=x is not read with prior=wordfreq; set prior=corpus too"),
        (["ratio=abc"], "ratio is 'abc'; it must be of type Float"),
        (["seed=1.5"], "seed is '1.5'; it must be of type Integer"),
    ],
)
def test_a_wrong_command_gets_one_line(command, arguments, message):
    code, _, err = command("train", *arguments)
    assert (code, err.splitlines()[-1]) == (2, f"error: {message}")
    assert len([line for line in err.splitlines() if "error" in line.lower()]) == 1


def test_choices_and_types_are_named_in_words(command):
    code, _, err = command("train", "trainer.precision=foo", "logger=none")
    assert code == 2
    assert "must be one of 64, 32, 16" in err
    assert "typing" not in err


def test_a_defect_keeps_its_traceback(command, monkeypatch):
    def broken(config):
        raise ZeroDivisionError

    monkeypatch.setattr("lighttoken.run.pipeline.train", broken)
    with pytest.raises(ZeroDivisionError):
        command("train")


def test_full_errors_on_demand(command, monkeypatch):
    from lighttoken.config.command import run_command

    monkeypatch.setattr("sys.argv", ["train", "rato=3"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(hydra.errors.HydraException):
        run_command("train", partial(print))


def test_help_lists_the_groups_and_the_values(command):
    code, out, _ = command("train", "--help")
    assert code == 0
    for words in (f"codec: {', '.join(names('codec'))}", "ratio: 25", "finetune:", "+experiment=glue_sst2", str(CONF)):
        assert words in out
    assert "task: " not in command("compress", "--help")[1]  # compress has no such group


def test_help_shows_the_comments_of_the_config_files(command):
    _, out, _ = command("train", "--help", "task=mnli", "seed=3")
    for key, comment in (
        ("seed: 3", "of the codec, the new head, dropout and the order of the batches"),  # of train.yaml
        ("  state_bits: 12", "of the trellis code"),  # of a group
        ("  eval_batch_size: 64", "rows"),  # of a base of a group
        ("    group: ${sweep_name:}", "folder of the sweep; null outside of one"),  # nested, with a dollar sign
    ):
        assert re.search(rf"^{re.escape(key)} +# {comment}", out, re.MULTILINE), key
    assert "# MNLI: entailment, neutral or contradiction? 392,702 training pairs" in out  # the head of the task's file


def test_wandb_is_offline_unless_there_is_a_key(monkeypatch, tmp_path):
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
def test_a_recipe_has_the_published_values_of_the_task(recipe, task, expected):
    config = compose(f"task={task}", f"recipe={recipe}")
    values = {**config.finetune, **config.trainer, "batch_size": config.task.batch_size}
    assert {name: values[name] for name in expected} == expected
    assert compose(f"task={task}", f"recipe={recipe}", "finetune.learning_rate=1e-3").finetune.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.devices=[0,1]"], "trainer.devices=[0, 1] makes 2 processes and a run is one; set trainer.devices=1"),
        (["trainer.devices='2'"], "trainer.devices=2 makes 2 processes"),
        (["+trainer.num_nodes=2"], "makes 2 processes"),
        (["trainer.max_epochs=null", "+trainer.max_time=01:00:00:00"], "trainer.max_epochs=None has no end"),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/loss"],
            "callbacks watch val/loss, which is",
        ),
        (["callbacks=best_checkpoint"], "callbacks watch dev/loss and task.dev_fraction is 0"),
        (["trainer.max_epochs=-1", "trainer.max_steps=10"], None),
        (["trainer.devices=auto"], None),
        (["callbacks=early_stopping", "callbacks.early_stopping.monitor=train/loss"], None),
    ],
)
def test_a_config_is_refused_before_the_work(overrides, message):
    config = compose(*overrides)
    if message is None:
        check(config)
    else:
        with pytest.raises(LighttokenError, match=re.escape(message)):
            check(config)


def test_the_head_of_a_checkpoint_is_checked_before_the_work():
    with pytest.raises(LighttokenError, match="unknown tie='loose'; choose one of compressed, untie"):
        check(compose("output=packed", "checkpoint=true", "tie=loose", name="compress"))


def test_a_door_runs_as_a_script_of_the_checkout():
    """As an IDE runs it: the folder of the script comes first among the folders that Python imports from."""
    script = CONF.parent / "lighttoken/train.py"
    finished = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "ratio: 25" in finished.stdout
