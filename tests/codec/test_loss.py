import pytest
import torch

from lighttoken.codec.loss import reconstruction_loss, table_errors

ONES = torch.ones(50)


def test_at_b_1_the_loss_is_the_squared_euclidean_distance():
    x, y = torch.randn(50, 8), torch.randn(50, 8)
    torch.testing.assert_close(reconstruction_loss(x, y, ONES, 1.0).total, (x - y).square().sum(1).mean())


@pytest.mark.parametrize("b", [1.5, 2.0, 10.0])
def test_above_1_it_bounds_the_distance_and_grows_with_b(b):
    x, y = torch.randn(50, 8), torch.randn(50, 8)
    loss = reconstruction_loss(x, y, ONES, b).total
    assert loss > (x - y).square().sum(1).mean()
    assert loss < reconstruction_loss(x, y, ONES, b + 1).total


def test_a_wrong_length_alone_costs_the_same_for_every_b():
    x = torch.randn(50, 8)
    for b in (1.0, 4.0):
        loss = reconstruction_loss(x, 0.5 * x, ONES, b)
        torch.testing.assert_close(loss.total, 0.25 * x.square().sum(1).mean())
        torch.testing.assert_close(loss.cosine, torch.tensor(1.0))


def test_weights_count_rows():
    x, y = torch.randn(3, 8), torch.randn(3, 8)
    weighted = reconstruction_loss(x, y, torch.tensor([2.0, 1.0, 0.0]), 2.0).total
    repeated = reconstruction_loss(x[[0, 0, 1]], y[[0, 0, 1]], torch.ones(3), 2.0).total
    torch.testing.assert_close(weighted, repeated)


def test_rows_of_zeros_have_finite_gradients():
    y = torch.zeros(4, 8, requires_grad=True)
    reconstruction_loss(torch.cat([torch.zeros(2, 8), torch.ones(2, 8)]), y, torch.ones(4), 2.0).total.backward()
    assert y.grad.isfinite().all()


def test_rows_of_zeros_have_no_cosine():
    table = torch.cat([torch.randn(30, 8), torch.zeros(20, 8)])
    errors = table_errors(table, table + 1e-6, torch.ones(50))
    assert errors["cosine"] == pytest.approx(1.0)
    assert table_errors(torch.zeros(5, 8), torch.zeros(5, 8), torch.ones(5))["cosine"] == 1.0
