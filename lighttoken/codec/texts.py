"""Texts that the importance is measured on, as token ids: drawn from the prior, sampled from the model, or a corpus."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from lighttoken.errors import LighttokenError

GIBBS_ROUNDS, GIBBS_SHARE = 12, 0.25  # how often a masked model draws anew, and the share of the tokens that it does
TEXTS_PER_BATCH = 64


def texts_of_prior(
    frequencies: Float64[Tensor, " V"], special: tuple[list[int], list[int]], count: int, length: int, seed: int
) -> Int64[Tensor, "N L"]:
    """Tokens that are drawn independently, between the special ones."""
    shares = frequencies.clone()
    shares[[token for ids in special for token in ids]] = 0
    generator = torch.Generator().manual_seed(seed)
    ids = torch.multinomial(shares, count * length, replacement=True, generator=generator).view(count, length)
    return _enclose(ids, special)


def texts_of_decoder(
    model: Any, start: Int64[Tensor, "N s"], length: int, seed: int, progress: bool = False
) -> Int64[Tensor, "N L"]:
    """Continuations by `length` tokens that a decoder samples, at temperature 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        batches = [
            model.generate(
                ids.to(model.device),
                attention_mask=torch.ones_like(ids).to(model.device),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=length,
                max_new_tokens=length,
                pad_token_id=0,
            )
            for ids in start.split(TEXTS_PER_BATCH)
        ]
    return torch.cat(batches).cpu()


@torch.no_grad()
def texts_of_masked_model(model: Any, texts: Int64[Tensor, "N L"], inner: slice, mask: int, seed: int) -> Tensor:
    """Gibbs sampling: in every round, a share of the tokens is masked and drawn from the model (Wang and Cho 2019)."""
    generator, texts = torch.Generator().manual_seed(seed), texts.clone()
    for _ in range(GIBBS_ROUNDS):
        for ids in texts.split(TEXTS_PER_BATCH):
            drawn = torch.zeros(ids.shape, dtype=torch.bool)
            drawn[:, inner] = torch.rand(ids[:, inner].shape, generator=generator) < GIBBS_SHARE
            logits = model(input_ids=torch.where(drawn, mask, ids).to(model.device)).logits.cpu()[drawn]
            ids[drawn] = torch.multinomial(logits.float().softmax(1), 1, generator=generator).flatten()
    return texts


def texts_of_corpus(
    tokenizer: Any, texts: Iterable[str], special: tuple[list[int], list[int]], count: int, length: int
) -> Int64[Tensor, "N L"]:
    """Consecutive tokens of the first texts. Raises LighttokenError if they are too few."""
    ids: list[int] = []
    for text in texts:
        ids += tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) >= count * length:
            return _enclose(torch.tensor(ids[: count * length]).view(count, length), special)
    raise LighttokenError(
        f"the corpus has {len(ids)} tokens and the error metric is measured on {count * length}; set "
        f"codec.error_metric_sequences={max(1, len(ids) // length)}, or use a larger corpus"
    )


def _enclose(ids: Int64[Tensor, "N L"], special: tuple[list[int], list[int]]) -> Int64[Tensor, "N _"]:
    before, after = (torch.tensor(tokens, dtype=torch.long).expand(len(ids), -1) for tokens in special)
    return torch.cat([before, ids, after], 1)
