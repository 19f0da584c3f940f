"""The Fisher of a table: what an error in a row costs a language model, over every use of the row."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor, nn

from lighttoken.codec.error_metric import captured_rows, frozen

Batch = tuple[Int64[Tensor, "n L"], Bool[Tensor, "n L"], Bool[Tensor, "n L"]]  # ids, scored, counted

MASKED = 0.15  # share of the tokens of a masked model, as BERT was trained


@dataclass(frozen=True)
class Fisher:
    """What errors in the table's rows cost, by direction and by row.

    form    (d, d) float64, of trace d: the error metric, without damping
    inputs  how much the occurrence of a token counts for its row
    outputs (V,) float64: how much the row counts, per token of text, for the head; 0 without a tied one
    """

    form: Tensor
    inputs: float
    outputs: Tensor

    def uses(self, frequencies: Float64[Tensor, " V"]) -> Float64[Tensor, " V"]:
        """How much an error in each row costs in text with these token frequencies, of sum 1."""
        uses = self.inputs * frequencies + self.outputs
        return uses / uses.sum()


def table_fisher(
    model: nn.Module, embedding: nn.Embedding, head: nn.Module, tied: bool, batches: Iterable[Batch], seed: int = 0
) -> Fisher:
    """The Fisher of the table of a model with an output head, on texts.

    The loss of an error E (V, d) of the table is the divergence KL(p || p') of the distributions of the next, or of the
    masked, token. To second order it is vec(E)' F vec(E) / 2 with the Fisher F, the covariance of the gradient of
    log p(y) at labels y that the model draws itself. Its block of row v is

        F_v = f_v E[g g'] + q_v E[s h h'] / E[s],    s = sum over v of p_v (1 - p_v),   q_v = E[p_v (1 - p_v)]

    with the frequency f_v of the token, the gradient g (d,) at one of its occurrences, and the vector h (d,) that a
    tied head multiplies with every row: E[(p_v - y_v)^2] = p_v (1 - p_v) over the labels. Errors of rows are taken to
    be independent, as those of a codec nearly are. One form for all rows is the sum of both parts; how much a row
    counts is the trace of each part under its inverse (cf. the Kronecker factors of Martens and Grosse 2015).

    `batches`: see `batches_of_texts`. One backward pass for a batch; the largest tensors are the batch's logits. What a
    model does to its logits after the head, as softcapping, is taken to be the identity in the output's part.
    """
    rows, dim = embedding.weight.shape
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = torch.zeros(dim, dim).double(), torch.zeros(dim, dim).double()
    expected = torch.zeros(rows).double()
    occurrences = 0
    vectors: list[Tensor] = []
    reads = head.register_forward_pre_hook(lambda _module, arguments: vectors.append(arguments[0].detach()))
    try:
        with frozen(model), captured_rows(embedding) as captured:
            for ids, scored, counted in batches:
                captured.clear()
                vectors.clear()
                with torch.enable_grad():
                    logits = model(input_ids=ids).logits[scored].float()
                    shares = logits.detach().softmax(1)
                    labels = torch.multinomial(shares.cpu(), 1, generator=generator).flatten().to(ids.device)
                    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
                    (gradient,) = torch.autograd.grad(loss, captured[0])
                gradient = gradient[counted]
                inputs += (gradient.T @ gradient).double().cpu()
                occurrences += len(gradient)
                if tied:
                    spread = shares * (1 - shares)
                    h = vectors[0][scored].float()
                    outputs += ((h * spread.sum(1, keepdim=True)).T @ h).double().cpu()
                    expected += spread.double().sum(0).cpu()
    finally:
        reads.remove()
    # Both per token of text: a masked model is scored at a part of the positions.
    return _join(inputs / occurrences, outputs / occurrences, expected)


def _join(inputs: Tensor, outputs: Tensor, expected: Tensor) -> Fisher:
    """The form of both parts, and how much each part counts under it."""
    dim = len(inputs)
    form = inputs + outputs
    form *= dim / form.trace().clamp_min(1e-30)
    # Directions that the form ignores would count without limit.
    inverse = torch.linalg.inv(form + 0.01 * torch.eye(dim, dtype=torch.float64))
    by_row = expected / expected.sum().clamp_min(1e-30)
    return Fisher(form, float((inverse @ inputs).trace()), by_row * (inverse @ outputs).trace())


def batches_of_texts(
    texts: Int64[Tensor, "N L"], inner: slice, mask: int | None, batch_size: int, seed: int = 0
) -> Iterator[Batch]:
    """Batches for `table_fisher`: ids, where the output is scored, where the input is counted.

    `inner` are the positions between special tokens. A decoder is scored everywhere; a masked model, whose `mask` token
    is given, at a share `MASKED` of the inner tokens, which the mask replaces.
    """
    generator = torch.Generator().manual_seed(seed)
    for ids in texts.split(batch_size):
        counted = torch.zeros(ids.shape, dtype=torch.bool)
        counted[:, inner] = True
        scored = torch.ones_like(counted)
        if mask is not None:
            scored = counted & (torch.rand(ids.shape, generator=generator) < MASKED)
            ids, counted = torch.where(scored, mask, ids), counted & ~scored
        yield ids, scored, counted
