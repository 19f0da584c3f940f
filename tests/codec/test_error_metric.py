from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lighttoken.backbone.replace import find_embedding
from lighttoken.codec.error_metric import backbone_metric

FREQUENCIES = torch.full((200,), 1 / 200, dtype=torch.float64)


class Linear(nn.Module):
    """Last hidden states that are a matrix times each token's row."""

    def __init__(self):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(200, 6), nn.Linear(6, 9)

    def forward(self, input_ids):
        return SimpleNamespace(last_hidden_state=self.layer(self.embedding(input_ids)))


def metric(model, embedding, **changes):
    settings = {"special": ([2], [3]), "sequences": 64, "damping": 0.0} | changes
    return backbone_metric(model, embedding, FREQUENCIES, **settings)


def test_of_a_linear_model_it_is_the_square_of_its_matrix():
    model = Linear()
    form = metric(model, model.embedding, sequences=4096)
    expected = (model.layer.weight.T @ model.layer.weight).double().detach()
    torch.testing.assert_close(form, expected / expected.trace() * 6, atol=0.02, rtol=0.05)
    assert float(form.trace()) == pytest.approx(6)


def test_damping_adds_the_euclidean_distance():
    model = Linear()
    torch.testing.assert_close(
        metric(model, model.embedding, damping=0.5), metric(model, model.embedding) + 0.5 * torch.eye(6).double()
    )


def test_every_architecture_is_measured_and_left_as_it_was(make_model, architecture):
    model = make_model(architecture).train()
    before = {name: (p.requires_grad, p.clone()) for name, p in model.named_parameters()}
    form = metric(model, find_embedding(model))
    assert form.shape == (32, 32)
    assert float(torch.linalg.eigvalsh(form)[0]) > -1e-6
    assert model.training
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == before[name][0]
        assert torch.equal(parameter, before[name][1])
        assert parameter.grad is None
    assert not find_embedding(model)._forward_hooks


def test_seeds_draw_other_texts():
    model = Linear()
    first, again, other = (metric(model, model.embedding, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
