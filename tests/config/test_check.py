import re

import pytest

from lighttoken import LighttokenError
from lighttoken.config.check import check


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
        (["task.text_columns=text"], "task.text_columns is 'text'; it must be a list in brackets"),
        (["codec=svd", "codec.rank=true"], "codec.rank is True; it must be of type int or null"),
    ],
)
def test_keys_and_types_are_checked_against_the_classes(compose, overrides, message):
    config = compose(*overrides)
    if message is None:
        check(config)
    else:
        with pytest.raises(LighttokenError) as caught:
            check(config)
        assert str(caught.value) == message


def test_the_folder_of_the_original_is_not_overwritten(compose, checkpoint):
    folder = checkpoint()
    overrides = [f"model.path={folder}", f"output={folder}/../{folder.name}", "overwrite=true"]
    with pytest.raises(LighttokenError, match="is the folder of the original checkpoint, which would be lost"):
        check(compose(*overrides, name="compress"))


def test_missing_values_are_named(compose):
    with pytest.raises(LighttokenError, match="missing output; add output=VALUE to the command"):
        check(compose(name="compress"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["+trainer.strategy=ddp_spawn"],
            "trainer.strategy=ddp_spawn leaves the run without its model; set trainer=ddp",
        ),
        (["trainer.max_epochs=null", "+trainer.max_time=01:00:00:00"], "trainer.max_epochs=None has no end"),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/loss"],
            "callbacks watch val/loss, which is",
        ),
        (["callbacks=best_checkpoint"], "callbacks watch dev/loss and task.dev_fraction is 0"),
        (["trainer.max_epochs=-1", "trainer.max_steps=10"], None),
        (["trainer.devices=auto"], None),
        (["finetune.learning_rate=-1"], "finetune.learning_rate is -1; it must be 0 or above"),
        (["finetune.warmup_ratio=2"], "finetune.warmup_ratio is 2; it must be between 0 and 1"),
        (["finetune.distill_temperature=0"], "finetune.distill_temperature is 0; it must be 0.01 or above"),
        (["heal=prior", "heal.warmup_ratio=-0.5"], "heal.warmup_ratio is -0.5; it must be between 0 and 1"),
        (["task=squad", "task.max_answer_length=0"], "task.max_answer_length is 0; it must be 1 or above"),
        (["callbacks=early_stopping", "callbacks.early_stopping.monitor=train/loss"], None),
    ],
)
def test_a_config_is_refused_before_the_work(compose, overrides, message):
    config = compose(*overrides)
    if message is None:
        check(config)
    else:
        with pytest.raises(LighttokenError, match=re.escape(message)):
            check(config)


def test_the_head_of_a_checkpoint_is_checked_before_the_work(compose):
    with pytest.raises(LighttokenError, match="unknown tie='loose'; choose one of compressed, untie"):
        check(compose("output=packed", "checkpoint=true", "tie=loose", name="compress"))
