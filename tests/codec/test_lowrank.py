import torch

from lighttoken.codec.lowrank import truncated_svd


def test_equals_the_svd_of_the_centred_table(table):
    left, right, mean = truncated_svd(table, 5, torch.ones(len(table)))
    u, s, v = torch.linalg.svd(table - table.mean(0), full_matrices=False)
    torch.testing.assert_close(left @ right, (u[:, :5] * s[:5]) @ v[:5], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mean, table.mean(0))
    torch.testing.assert_close(right @ right.T, torch.eye(5), atol=1e-5, rtol=0)


def test_weights_count_rows(table):
    weights = torch.randint(1, 4, (len(table),)).float()
    _, right, mean = truncated_svd(table, 5, weights / weights.mean())
    repeated = truncated_svd(table.repeat_interleave(weights.long(), 0), 5, torch.ones(int(weights.sum())))
    torch.testing.assert_close(right, repeated[1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(mean, repeated[2], atol=1e-5, rtol=1e-4)


def test_full_rank_is_exact_and_rank_0_is_the_mean(table):
    left, right, mean = truncated_svd(table, 32, torch.ones(len(table)))
    torch.testing.assert_close(left @ right + mean, table, atol=1e-4, rtol=1e-4)
    assert truncated_svd(table, 0, torch.ones(len(table)))[0].shape == (1200, 0)
