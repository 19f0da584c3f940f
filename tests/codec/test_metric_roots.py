"""The importance in every codec that minimises a squared error."""

from functools import partial

import lightning as L
import pytest
import torch

from lighttoken import compress_table
from lighttoken.codec.baselines.lsq import LSQ
from lighttoken.codec.baselines.opq import OPQ
from lighttoken.codec.baselines.pq import PQ
from lighttoken.codec.baselines.rq import RQ
from lighttoken.codec.baselines.svd import SVD
from lighttoken.codec.interface import Importance
from lighttoken.codec.lowrank import truncated_svd, weighted_moments
from lighttoken.codec.metric_roots import metric_roots
from lighttoken.codec.paper.method import LightTokenPaper

TRAINER = partial(L.Trainer, max_steps=60, accelerator="cpu", devices=1, log_every_n_steps=20)
CODECS = {
    "svd": SVD(),
    "pq": PQ(bits=4),
    "opq": OPQ(bits=4),
    "rq": RQ(bits=4),
    "lsq": LSQ(bits=4, max_words=4),
    "lighttoken_paper": LightTokenPaper(stage_bits=24, trainer=TRAINER, batch_size=128),
}


@pytest.fixture
def importance(table):
    """Rows of very different weights, and an error metric with large and small directions, not along the axes."""
    weights = torch.linspace(-2, 2, len(table)).exp()[torch.randperm(len(table))]
    directions = torch.linalg.qr(torch.randn(32, 32).double())[0]
    return Importance(weights, directions * torch.linspace(-2, 2, 32).exp() @ directions.T)


def cost(table, compressed, importance, metric=True, weights=True):
    error = (compressed.decode() - table).double()
    seen = error @ importance.error_metric if metric else error
    costs = (seen * error).sum(1)
    return float((costs * importance.weights if weights else costs).mean())


@pytest.mark.parametrize("name", CODECS)
def test_what_matters_more_is_kept_better(table, importance, name):
    compress = partial(compress_table, table, CODECS[name], 8.0, progress=False)
    plain, weighted = compress(), compress(weights=importance.weights)
    assert cost(table, weighted, importance, metric=False) < cost(table, plain, importance, metric=False)
    metric = compress(importance=Importance(torch.ones(len(table)), importance.error_metric))
    assert cost(table, metric, importance, weights=False) < cost(table, plain, importance, weights=False)
    both = compress(importance=importance)
    assert cost(table, both, importance) < cost(table, plain, importance)


@pytest.mark.parametrize("name", CODECS)
def test_by_default_a_baseline_asks_for_no_importance(name):
    assert type(CODECS[name])().importance_settings() == {"prior": "uniform", "error_metric": "euclidean"}
    assert not {"prior", "error_metric", "device"} & CODECS[name].settings().keys()


def test_without_an_importance_the_factors_are_those_of_the_plain_svd_to_the_last_bit(table):
    mean, covariance = weighted_moments(table, torch.ones(len(table)))
    directions = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :5].T
    right = (directions * directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()).float()
    found = truncated_svd(table, 5, torch.ones(len(table)))
    assert all(map(torch.equal, found, ((table - mean) @ right.T, right, mean)))


def test_without_an_importance_rows_reach_faiss_as_they_are(table, monkeypatch):
    given = []
    monkeypatch.setattr(PQ, "train", lambda self, rows, weights, m, bits: given.append((rows, weights)) or stop())

    def stop():
        raise StopIteration

    with pytest.raises(StopIteration):
        compress_table(table, PQ(bits=4), 8.0, progress=False)
    ((rows, weights),) = given
    assert weights is None
    assert torch.equal(torch.from_numpy(rows), table - table.mean(0).half().float())


def test_the_svd_under_an_error_metric_is_the_best_of_its_rank(table, importance):
    compressed = compress_table(
        table,
        SVD(coefficient_precision="float32", matrix_precision="float32"),
        4.0,
        importance=importance,
        progress=False,
    )
    root, _ = metric_roots(importance.error_metric, 32)
    weights = (importance.weights / importance.weights.mean()).double().unsqueeze(1)
    centred = table.double() - (weights * table).mean(0)
    values = torch.linalg.svdvals(weights.sqrt() * centred @ root)
    error = (compressed.decode().double() - table) @ root
    best = values[compressed.summary["rank"] :].square().sum()
    assert float((weights * error.square()).sum()) == pytest.approx(float(best), rel=1e-3)


def test_the_roots_undo_each_other_and_an_ignored_direction_is_decoded_too():
    directions = torch.linalg.qr(torch.randn(6, 6).double())[0]
    values = torch.tensor([4.0, 2, 1, 1, 0.5, 0]).double()
    root, inverse = metric_roots(directions * values @ directions.T, 6)
    torch.testing.assert_close(root @ inverse, torch.eye(6).double())
    scaled = (values / values.mean()).clamp_min(0.01)
    torch.testing.assert_close(root @ root, directions * scaled @ directions.T)
    assert all(torch.equal(matrix, torch.eye(6).double()) for matrix in metric_roots(None, 6))
