"""The Fisher of a table: what an error in a row costs a language model, over every use of the row."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from lighttoken.codec.error_metric import captured_rows, frozen
from lighttoken.codec.texts import Batch

# Of the row weights that follow from the uses of rows. Chosen on Gemma-3-270M with noise in the place of codes, of the
# error that water-filling leaves at 2 bits a number: 0.45, 0.7 and 1 gave 1.118, 1.088 and 1.121 of the original's
# perplexity on 3,000 tokens of WikiText-2, from the 100,000th on.
EXPONENT = 0.7


@dataclass(frozen=True)
class Fisher:
    """What errors in the table's rows cost, by direction and by row.

    form    (d, d) float64, of trace d: the error metric, without damping
    inputs  () float64: how much the occurrence of a token counts for its row
    outputs (V,) float64: how much the row counts, per token of text, for the head; 0 without a tied one
    """

    form: Tensor
    inputs: Tensor
    outputs: Tensor

    def uses(self, frequencies: Float64[Tensor, " V"]) -> Float64[Tensor, " V"]:
        """How much an error in each row costs in text with these token frequencies, of sum 1."""
        uses = self.inputs * frequencies + self.outputs
        return uses / uses.sum()


def table_fisher(model: Any, embedding: Any, tied: bool, batches: Iterable[Batch], seed: int = 0) -> Fisher:
    """The Fisher of the table of a model with an output head, on texts.

    The loss of an error E (V, d) of the table is the divergence KL(p || p') of the distributions of the next, or of the
    masked, token. To second order it is vec(E)' F vec(E) / 2 with the Fisher F, the covariance of the gradient of
    log p(y) at labels y that the model draws itself. Its block of row v is

        F_v = f_v E[g g'] + q_v E[s h h'] / E[s],    s = sum over v of p_v (1 - p_v),   q_v = E[p_v (1 - p_v)]

    with the frequency f_v of the token, the gradient g (d,) at one of its occurrences, and the vector h (d,) that a
    tied head multiplies with every row: E[(p_v - y_v)^2] = p_v (1 - p_v) over the labels. Errors of rows are taken to
    be independent, as those of a codec nearly are. One form for all rows is the sum of both parts; how much a row
    counts is the trace of each part under its inverse (cf. the Kronecker factors of Martens and Grosse 2015).

    `batches`: see `Texts.batches`. One backward pass for a batch; the largest tensors are the batch's logits. What a
    model does to its logits after the head, as softcapping, is taken to be the identity in the output's part.
    """
    rows, dim = tuple(embedding.weight.shape)
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = torch.zeros(dim, dim).double(), torch.zeros(dim, dim).double()
    expected = torch.zeros(rows).double()
    occurrences = 0
    vectors: list[Tensor] = []
    reads = model.get_output_embeddings().register_forward_pre_hook(
        lambda _module, arguments: vectors.append(arguments[0].detach())
    )
    try:
        with frozen(model), captured_rows(embedding) as captured:
            for ids, scored, counted in batches:
                captured.clear()
                vectors.clear()
                with torch.enable_grad():
                    logits = _scored(model(input_ids=ids).logits, scored).float()
                shares = logits.detach().softmax(1)
                labels = torch.multinomial(shares.cpu(), 1, generator=generator).flatten().to(ids.device)
                if tied:
                    spread = shares * (1 - shares)
                    h = vectors[0][scored].float()
                    outputs += ((h * spread.sum(1, keepdim=True)).T @ h).double().cpu()
                    expected += spread.sum(0, dtype=torch.float64).cpu()
                    del spread
                del shares  # as large as the logits, like what follows
                with torch.enable_grad():
                    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
                del logits
                (gradient,) = torch.autograd.grad(loss, captured[0])
                gradient = gradient[counted]
                inputs += (gradient.T @ gradient).double().cpu()
                occurrences += len(gradient)
    finally:
        reads.remove()
    # Both per token of text: a masked model is scored at a part of the positions.
    return _join(inputs / occurrences, outputs / occurrences, expected)


def _scored(logits: Tensor, scored: Tensor) -> Tensor:
    """The logits (n, V) of the positions (N, L) that are scored; without a copy if all are."""
    return logits.flatten(0, 1) if bool(scored.all()) else logits[scored]


def _join(inputs: Tensor, outputs: Tensor, expected: Tensor) -> Fisher:
    """The form of both parts, and how much each part counts under it."""
    dim = len(inputs)
    form = inputs + outputs
    form *= dim / form.trace().clamp_min(1e-30)
    # Directions that the form ignores would count without limit.
    inverse = torch.linalg.inv(form + 0.01 * torch.eye(dim, dtype=torch.float64))
    by_row = expected / expected.sum().clamp_min(1e-30)
    return Fisher(form, (inverse @ inputs).trace(), by_row * (inverse @ outputs).trace())
