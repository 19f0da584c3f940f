"""The error metric: how much an error in a token's row changes the hidden states of the backbone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from tqdm.auto import tqdm


def backbone_metric(
    model: nn.Module,
    embedding: nn.Module,
    frequencies: Float64[Tensor, " V"],
    special: tuple[list[int], list[int]],
    sequences: int,
    length: int = 24,
    batch_size: int = 64,
    damping: float = 0.3,
    seed: int = 0,
    progress: bool = False,
) -> Float64[Tensor, "d d"]:
    """Error metric G: an error e in a token's row changes the last hidden states by e @ G @ e.

    G is the mean of J.T @ J, J the Jacobian of all last hidden states of a text with regard to the embedding of one of
    its tokens (a Gauss-Newton form), estimated with one random projection per text (Hutchinson 1990): g = J.T @ u
    for normal u has E[g g.T] = J.T @ J. No data is needed: the texts are `sequences` of `length` tokens drawn
    independently from `frequencies`, between the `special` tokens that enclose every text. G has the trace d, plus
    `damping` times the identity: the large errors of high ratios also count where a small one does not.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    shares = frequencies.clone()
    shares[[token for ids in special for token in ids]] = 0
    form: Any = 0.0
    with frozen(model), captured_rows(embedding) as captured:
        starts = range(0, sequences, batch_size)
        for start in tqdm(starts, desc="error metric", unit="batch", disable=not progress):
            # 1. Draw texts.
            rows = min(batch_size, sequences - start)
            ids = torch.multinomial(shares, rows * length, replacement=True, generator=generator).view(rows, length)
            before, after = (torch.tensor(tokens, dtype=torch.long).expand(rows, -1) for tokens in special)
            # 2. Project their hidden states at random, and pull the projection back to the embeddings.
            captured.clear()
            with torch.enable_grad():
                hidden = model(input_ids=torch.cat([before, ids, after], 1).to(device)).last_hidden_state
                projection = torch.randn(hidden.shape, generator=generator).to(hidden)
                (gradient,) = torch.autograd.grad((hidden * projection).sum(), captured[0])
            # 3. Add the outer products of the gradients, without those of the special tokens.
            inner = gradient[:, len(special[0]) : len(special[0]) + length].flatten(0, 1)
            form = form + (inner.T @ inner).double().cpu()
    dim = len(form)
    return damped(form / form.trace().clamp_min(1e-30) * dim, damping)


def damped(form: Float64[Tensor, "d d"], damping: float) -> Float64[Tensor, "d d"]:
    """A form of trace d, plus `damping` times the identity."""
    return form + damping * torch.eye(len(form), dtype=torch.float64)


@contextmanager
def captured_rows(embedding: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, a list of the rows (n, L, d) that the embedding reads, which gradients lead to.

    Some models scale rows as they read them (Gemma): the gradients are with regard to the rows of the table.
    """
    captured: list[Tensor] = []

    def capture(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        rows = nn.functional.embedding(inputs[0], module.weight.detach())
        scale = (output.detach() * rows).sum() / rows.square().sum().clamp_min(1e-30)
        captured.append(rows.requires_grad_())
        return rows * scale

    hook = embedding.register_forward_hook(capture)
    try:
        yield captured
    finally:
        hook.remove()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode and none of its parameters has a gradient."""
    training = model.training
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])
