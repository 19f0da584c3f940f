"""What every codec keeps to, whatever the table: its bytes, finite rows, its file and the errors it tells; or one line.

`hypothesis` draws the tables. The default run is short; `-m slow` draws many more.
"""

import tempfile
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch

from lighttoken import LighttokenError, compress_table, load_table
from lighttoken.codec import CODECS
from lighttoken.codec.baselines.compositional_codes import CompositionalCodes
from lighttoken.codec.baselines.lsq import LSQ
from lighttoken.codec.baselines.near_lossless_binary import NearLosslessBinary
from lighttoken.codec.baselines.opq import OPQ
from lighttoken.codec.baselines.orientation_ae import OrientationAE
from lighttoken.codec.baselines.pq import PQ
from lighttoken.codec.baselines.rq import RQ
from lighttoken.codec.lighttoken.method import LightToken
from lighttoken.codec.paper.method import LightTokenPaper

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TRAINER = partial(L.Trainer, max_steps=5, accelerator="cpu", devices=1, log_every_n_steps=5)
QUICK = {  # settings of the codecs that take long with those of their own
    "lighttoken": LightToken(state_bits=6, tiers=2),
    "lighttoken_paper": LightTokenPaper(stage_bits=64, trainer=TRAINER, batch_size=128),
    "compositional_codes": CompositionalCodes(steps=5),
    "lsq": LSQ(bits=4, max_words=2),
    "near_lossless_binary": NearLosslessBinary(epochs=1, batch_size=500),
    "opq": OPQ(bits=4),
    "orientation_ae": OrientationAE(epochs=1, batch_size=500),
    "pq": PQ(bits=4),
    "rq": RQ(bits=4),
}


def plain(table):
    return table


def one_outlier(table):
    table[0] = 1e6
    return table


def duplicates(table):
    return table[torch.arange(len(table)) % 3 % len(table)]


def zero_rows(table):
    table[::2] = 0
    return table


KINDS = {
    "plain": plain,
    "constant": lambda table: torch.full_like(table, 3.3),
    "zero": torch.zeros_like,
    "zero rows": zero_rows,
    "duplicates": duplicates,
    "one row": lambda table: table[:1],
    "one column": lambda table: table[:, :1],
    "1e20": lambda table: table * 1e20,
    "1e-20": lambda table: table * 1e-20,
    "common mean": lambda table: table + 1e4,
    "one outlier": one_outlier,
    "float16": torch.Tensor.half,
    "bfloat16": torch.Tensor.bfloat16,
    "float64": torch.Tensor.double,
    "not contiguous": lambda table: table.T.contiguous().T,
    "requires_grad": torch.Tensor.requires_grad_,
    "meta": lambda table: table.to("meta"),
}


def check(name, table, ratio):
    """The properties of a codec on a table (V, d). Returns whether it was compressed, not refused."""
    try:
        compressed = compress_table(table, QUICK.get(name, name), ratio, progress=False)
    except LighttokenError as refusal:
        if len(str(refusal)) > 300 or "\n" in str(refusal):
            raise AssertionError(f"more than one line: {refusal}") from refusal
        return False
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_table(compressed.save(folder))
        on_disk = sum(path.stat().st_size for path in Path(folder).iterdir())
    rows, exact = compressed.decode(), table.detach().float().double()
    assert on_disk == compressed.nbytes <= table.numel() * 4 / ratio
    assert bool(rows.isfinite().all())
    assert torch.equal(loaded.decode(), rows)
    error, variance = float((rows - exact).square().mean()), float(exact.var())
    if variance > 0:
        assert compressed.summary["nmse"] == pytest.approx(error / variance, rel=1e-3, abs=1e-6)
    else:
        assert error <= (1e-6 * float(exact.abs().max()) + 1e-30) ** 2
    return True


def draw_table(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.linspace(1.5, 0.2, columns)


def shapes(most_rows, most_columns, highest):
    sizes = {"rows": st.integers(1, most_rows), "columns": st.integers(1, most_columns)}
    return sizes | {"ratio": st.floats(1.5, highest), "seed": st.integers(0, 2**32)}


def draws(examples):
    checks = list(HealthCheck)  # of the time, and of fixtures that all examples share
    return settings(derandomize=True, deadline=None, max_examples=examples, suppress_health_check=checks)


@pytest.mark.parametrize("name", CODECS)
@draws(4)
@given(**shapes(900, 40, 12.0))
def test_any_shape_and_ratio(name, rows, columns, ratio, seed):
    check(name, draw_table(rows, columns, seed), ratio)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("kind", ["constant", "duplicates", "1e-20", "1e20", "common mean", "one outlier"])
def test_degenerate_tables(name, kind):
    check(name, KINDS[kind](draw_table(400, 16, 0)), 3.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", CODECS)
@draws(30)
@given(**shapes(3000, 200, 300.0))
def test_any_shape_and_ratio_widely(name, rows, columns, ratio, seed):
    check(name, draw_table(rows, columns, seed), ratio)


@pytest.mark.slow
@pytest.mark.parametrize("name", CODECS)
@draws(30)
@given(**shapes(3000, 200, 20.0), kind=st.sampled_from(sorted(KINDS)))
def test_degenerate_tables_of_any_shape(name, rows, columns, ratio, seed, kind):
    check(name, KINDS[kind](draw_table(rows, columns, seed)), ratio)
