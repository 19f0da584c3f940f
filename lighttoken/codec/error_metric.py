"""The error metric: what the backbone makes of an error in its token embeddings."""

from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm


def backbone_metric(
    model: nn.Module,
    embedding: nn.Module,
    frequencies: Tensor,
    special: tuple[list[int], list[int]],
    sequences: int,
    length: int = 24,
    batch_size: int = 64,
    damping: float = 0.3,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Metric (d, d) whose form e @ metric @ e is the change of the last hidden states by an error e in a token's row.

    It is the mean of J.T @ J, J the Jacobian of all last hidden states of a text with regard to the embedding of one of
    its tokens (a Gauss-Newton metric), estimated with one random projection per text (Hutchinson 1990): g = J.T @ u
    for normal u has E[g g.T] = J.T @ J. The texts need no data: `sequences` of `length` tokens drawn independently from
    `frequencies` (V,), between the tokens that enclose every text. The trace is d, then `damping` times the identity
    is added: an error as large as those at high ratios is also felt where a small one is not.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    drawn = frequencies.clone()
    drawn[[each for ids in special for each in ids]] = 0
    metric: Any = 0.0
    captured: list[Tensor] = []

    def capture(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        captured.append(output.detach().requires_grad_())
        return captured[-1]

    hook = embedding.register_forward_hook(capture)
    training, needed = model.training, {name: each.requires_grad for name, each in model.named_parameters()}
    model.eval().requires_grad_(False)
    try:
        for first in tqdm(range(0, sequences, batch_size), desc="metric", unit="batch", disable=not progress):
            rows = min(batch_size, sequences - first)
            ids = torch.multinomial(drawn, rows * length, replacement=True, generator=generator).view(rows, length)
            before, after = (torch.tensor(each, dtype=torch.long).expand(rows, -1) for each in special)
            captured.clear()
            with torch.enable_grad():
                hidden = model(input_ids=torch.cat([before, ids, after], 1).to(device)).last_hidden_state
                projection = torch.randn(hidden.shape, generator=generator).to(hidden)
                (gradient,) = torch.autograd.grad((hidden * projection).sum(), captured[0])
            inner = gradient[:, len(special[0]) : len(special[0]) + length].flatten(0, 1)
            metric = metric + (inner.T @ inner).double().cpu()
    finally:
        hook.remove()
        model.train(training)
        for name, each in model.named_parameters():
            each.requires_grad_(needed[name])
    dim = len(metric)
    return metric / metric.trace().clamp_min(1e-30) * dim + damping * torch.eye(dim, dtype=torch.float64)
