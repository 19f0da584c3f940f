"""Texts that a language model's errors are measured on: drawn from the prior, sampled from the model, or a corpus."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from lighttoken.codec.corpus import token_stream
from lighttoken.codec.prior import special_tokens
from lighttoken.errors import LighttokenError

Batch = tuple[Int64[Tensor, "n L"], Bool[Tensor, "n L"], Bool[Tensor, "n L"]]  # ids, scored, counted

MASKED = 0.15  # share of the tokens that a masked model is scored at, as BERT was trained
GIBBS_ROUNDS, GIBBS_SHARE = 12, 0.25  # how often a masked model draws anew, and the share of the tokens that it does
MOST_TEXTS = 64  # of a batch
MOST_LOGITS = 2**24  # of a batch, 64 MB: a table of 262,144 rows gets 64 tokens at a time


@dataclass(frozen=True)
class Texts:
    """`count` texts of `length` tokens, between the special tokens of the tokenizer, for a model with a head."""

    model: Any
    tokenizer: Any
    mask: int | None  # the mask token of a masked model; None for a decoder
    count: int
    length: int
    seed: int

    @cached_property
    def special(self) -> tuple[list[int], list[int]]:
        """Ids before and after a text."""
        return special_tokens(self.tokenizer)

    @property
    def inner(self) -> slice:
        """The positions between the special tokens."""
        return slice(len(self.special[0]), len(self.special[0]) + self.length)

    @property
    def batch_size(self) -> int:
        """Texts at a time."""
        tokens = len(self.special[0]) + self.length + len(self.special[1])
        rows = self.model.get_output_embeddings().weight.shape[0]
        return max(1, min(MOST_TEXTS, MOST_LOGITS // (rows * tokens)))

    def make(
        self, source: str, frequencies: Float64[Tensor, " V"], corpus: Iterable[str] | None
    ) -> Int64[Tensor, "N L"]:
        """Token ids. The source is `prior` (tokens drawn from the frequencies), `model` or `corpus`."""
        if source == "corpus":
            return self._of_corpus(corpus)
        drawn = self._of_prior(frequencies)
        if source == "prior":
            return drawn
        return self._of_decoder(drawn) if self.mask is None else self._of_masked_model(drawn)

    def batches(self, texts: Int64[Tensor, "N L"]) -> Iterator[Batch]:
        """Batches for `table_fisher`: ids, where the output is scored, where the input is counted.

        A decoder is scored everywhere; a masked model at a share `MASKED` of the tokens, which the mask replaces.
        """
        generator, device = torch.Generator().manual_seed(self.seed), self.model.device
        for ids in texts.split(self.batch_size):
            counted = torch.zeros(ids.shape, dtype=torch.bool)
            counted[:, self.inner] = True
            scored = torch.ones_like(counted)
            if self.mask is not None:
                scored = counted & (torch.rand(ids.shape, generator=generator) < MASKED)
                ids, counted = torch.where(scored, self.mask, ids), counted & ~scored
            yield ids.to(device), scored.to(device), counted.to(device)

    def _of_prior(self, frequencies: Tensor) -> Tensor:
        shares = frequencies.clone()
        shares[[token for ids in self.special for token in ids]] = 0
        generator = torch.Generator().manual_seed(self.seed)
        ids = torch.multinomial(shares, self.count * self.length, replacement=True, generator=generator)
        return enclosed(ids.view(self.count, self.length), self.tokenizer)

    def _of_decoder(self, drawn: Tensor) -> Tensor:
        """Samples at temperature 1, after the special tokens, or after a drawn token where there are none."""
        start = drawn[:, : max(1, len(self.special[0]))]
        batches = []
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            for ids in start.to(self.model.device).split(MOST_TEXTS):
                settings = {"attention_mask": torch.ones_like(ids), "do_sample": True, "top_k": 0, "top_p": 1.0}
                length = drawn.shape[1] - ids.shape[1]
                settings |= {"min_new_tokens": length, "max_new_tokens": length, "temperature": 1.0, "pad_token_id": 0}
                batches.append(self.model.generate(ids, **settings).cpu())
        return torch.cat(batches)

    @torch.no_grad()
    def _of_masked_model(self, drawn: Tensor) -> Tensor:
        """Gibbs sampling: in every round, some tokens are masked and drawn from the model (Wang and Cho 2019)."""
        generator, texts, mask = torch.Generator().manual_seed(self.seed), drawn.clone(), self.mask or 0
        for _ in range(GIBBS_ROUNDS):
            for ids in texts.split(self.batch_size):
                new = torch.zeros(ids.shape, dtype=torch.bool)
                new[:, self.inner] = torch.rand(len(ids), self.length, generator=generator) < GIBBS_SHARE
                logits = self.model(input_ids=torch.where(new, mask, ids).to(self.model.device)).logits.cpu()
                ids[new] = torch.multinomial(logits[new].float().softmax(1), 1, generator=generator).flatten()
        return texts

    def _of_corpus(self, corpus: Iterable[str] | None) -> Tensor:
        """Consecutive tokens of the first texts of a corpus."""
        if corpus is None:
            raise LighttokenError(
                "error_metric_texts is corpus and the prior has none; set codec/prior=corpus codec.prior.file=FILE"
            )
        ids = list(islice(token_stream(self.tokenizer, corpus), self.count * self.length))
        if len(ids) < self.count * self.length:
            raise LighttokenError(
                f"the corpus has {len(ids)} tokens and the error metric reads {self.count * self.length}; set "
                f"codec.error_metric_sequences={max(1, len(ids) // self.length)}, or use a larger corpus"
            )
        return enclosed(torch.tensor(ids).view(self.count, self.length), self.tokenizer)


def enclosed(texts: Int64[Tensor, "N n"], tokenizer: Any) -> Int64[Tensor, "N L"]:
    """Texts of tokens between the special tokens of a tokenizer."""
    before, after = (torch.tensor(ids, dtype=torch.long).expand(len(texts), -1) for ids in special_tokens(tokenizer))
    return torch.cat([before, texts, after], 1)
