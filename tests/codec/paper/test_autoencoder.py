from itertools import islice

import lightning as L
import pytest
import torch

from lighttoken.codec.paper.autoencoder import BinaryAutoencoder, RowBatches
from lighttoken.codec.paper.saturation import SaturationStop
from lighttoken.codec.paper.schedule import Exponential


def make(dim=32, m=24, scale=1.0, **changes) -> BinaryAutoencoder:
    settings = {"schedule": Exponential(1.0, 1e-3), "angular_weight": 2.0, "learning_rate": 1e-3}
    return BinaryAutoencoder(dim, m, scale, 1, **(settings | {"decoder_learning_rate": 0.02} | changes))


def stopper(residual, **changes) -> SaturationStop:
    settings = {"threshold": 0.5, "tolerance": 0.01, "every_n_steps": 5, "rows": 256}
    return SaturationStop(residual, **(settings | changes))


def fit(autoencoder, table, callbacks, max_steps=200) -> L.Trainer:
    trainer = L.Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(autoencoder, RowBatches(table, torch.zeros_like(table), torch.ones(len(table)), 128))
    return trainer


def test_at_low_temperature_the_soft_code_is_the_hard_one(table):
    autoencoder = make()
    hard = autoencoder.encode(table)
    assert hard.dtype == torch.bool
    clear = autoencoder.encoder(table).abs() > 1e-3
    soft = autoencoder.soft_code(table, 1e-6)
    torch.testing.assert_close(soft[clear], hard[clear].float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(autoencoder(table, 1e-9), autoencoder.decode(hard), atol=1e-4, rtol=1e-4)


def test_units_of_the_table_do_not_matter(table):
    one, large = make(scale=1.0), make(scale=1024.0)
    large.load_state_dict(one.state_dict())
    assert torch.equal(one.encode(table), large.encode(table * 1024))
    torch.testing.assert_close(one(table, 0.1) * 1024, large(table * 1024, 0.1))


def test_training_lowers_the_error_of_the_hard_codes(table):
    autoencoder = make()
    before = (autoencoder.decode(autoencoder.encode(table)) - table).square().mean()
    fit(autoencoder, table, [])
    after = (autoencoder.decode(autoencoder.encode(table)) - table).square().mean()
    assert after < 0.6 * before


def test_a_pass_of_batches_is_every_row_once():
    rows = torch.arange(10.0).unsqueeze(1)
    batches = list(islice(iter(RowBatches(rows, rows * 2, torch.arange(10.0), 4)), 6))
    assert [len(batch[0]) for batch in batches] == [4, 4, 2, 4, 4, 2]
    for first in (0, 3):
        seen = torch.cat([batch[0] for batch in batches[first : first + 3]]).flatten()
        assert seen.sort().values.tolist() == list(range(10))
    for row, reconstruction, weights in batches:
        assert torch.equal(row * 2, reconstruction)
        assert torch.equal(row.flatten(), weights)


def test_saturation_is_the_share_of_outputs_near_0_or_1():
    autoencoder = make(dim=2, m=2)
    autoencoder.encoder.weight.data = torch.eye(2)
    autoencoder.encoder.bias.data.zero_()
    # Outputs at temperature 1: sigmoid of 0 is 0.5 and of 2 is 0.88; of 10 and -10 it is within 0.01 of 1 and 0.
    rows = torch.tensor([[0.0, 10.0], [-10.0, 2.0]])
    assert stopper(rows).measure(autoencoder, 1.0) == pytest.approx(0.5)
    assert stopper(rows, tolerance=0.2).measure(autoencoder, 1.0) == pytest.approx(0.75)


def test_a_stage_stops_just_short_of_the_threshold(table):
    autoencoder, saturation = make(), stopper(table)
    trainer = fit(autoencoder, table, [saturation])
    assert trainer.global_step < 200
    assert saturation.steps == trainer.global_step - 5
    assert 0.2 < saturation.saturation < 0.5
    # The weights are those of that check: measured again they give the same figure.
    temperature = autoencoder.schedule(saturation.steps / 200)
    assert saturation.measure(autoencoder, temperature) == saturation.saturation


def test_below_the_threshold_a_stage_runs_to_the_end(table):
    saturation = stopper(table, threshold=1.1)
    trainer = fit(make(), table, [saturation], max_steps=40)
    assert (trainer.global_step, saturation.steps) == (40, 40)


def test_the_last_step_is_checked_whatever_the_interval(table):
    saturation = stopper(table, threshold=1.1, every_n_steps=1000)
    fit(make(), table, [saturation], max_steps=40)
    assert saturation.steps == 40


def test_a_stage_that_starts_saturated_keeps_its_first_weights_and_says_so(table, caplog):
    autoencoder, saturation = make(schedule=Exponential(1e-6, 1e-7)), stopper(table)
    weights = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    with caplog.at_level("WARNING"):
        trainer = fit(autoencoder, table, [saturation])
    assert "keeps untrained weights" in caplog.text
    assert trainer.global_step == 5
    assert all(torch.equal(value, weights[name]) for name, value in autoencoder.state_dict().items())
