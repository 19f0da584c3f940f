"""Compositional code learning: a row is a sum of codebook entries, chosen by a network with Gumbel-softmax."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gumbel_softmax, one_hot, softplus

from lighttoken.artifact.forms import Codebooks
from lighttoken.artifact.packing import pack_words, word_bits
from lighttoken.codec.baselines import mean_row
from lighttoken.codec.interface import Budget, Codec, Importance, Reporter
from lighttoken.codec.refine import refit_decoder
from lighttoken.codec.shapes import Fitted, Table
from lighttoken.errors import LighttokenError

ROWS_PER_CHUNK = 4096


class CodeLearner(nn.Module):
    """The autoencoder of Shu and Nakayama (2018), equations 6 to 11: M words of K entries, and their codebooks."""

    def __init__(self, dim: int, count: int, size: int):
        super().__init__()
        self.count, self.size = count, size
        hidden = max(1, count * size // 2)
        self.encoder = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, count * size))
        self.codebooks = nn.Parameter(torch.randn(count * size, dim) * 0.01)

    def logits(self, rows: Tensor) -> Tensor:
        """Logits (n, M, K) of rows (n, d)."""
        return softplus(self.encoder(rows)).add(1e-8).log().unflatten(1, (self.count, self.size))

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (n, d) as a sum of softly chosen entries."""
        return gumbel_softmax(self.logits(rows), tau=1.0).flatten(1) @ self.codebooks


@dataclass(frozen=True)
class CompositionalCodes(Codec):
    """Compressing word embeddings via deep compositional code learning (Shu and Nakayama 2018).

    The same: encoder, Gumbel-softmax at temperature 1, squared error, Adam, batches of 128. Differs: `steps` are
    20,000 and the learning rate falls linearly from 1e-3, where the paper has 200,000 at 1e-4; rows are centred and
    brought to unit variance for the network; the stored codebooks, in float16, are the least-squares
    ones for the chosen codes; `size`, the entries of a codebook, is 16, and the number of codebooks
    follows from the ratio, up to `max_words`.
    """

    name: str = "compositional_codes"
    size: int = 16
    max_words: int = 128
    steps: int = 20_000
    batch_size: int = 128
    learning_rate: float = 1e-3
    form = Codebooks()

    def __post_init__(self) -> None:
        if self.size not in (2, 4, 8, 16, 32, 64, 128, 256):
            raise LighttokenError(f"size is {self.size}; a codebook has a power of two of entries from 2 to 256")

    def fit(self, table: Table, importance: Importance, budget: Budget, reporter: Reporter) -> Fitted:
        """Codebooks of the largest number of words that fits; a word chooses the entry of the largest logit."""
        (vocab_size, dim), bits = table.shape, word_bits(self.size)
        count = budget.largest(
            (m, vocab_size * -(-m * bits // 8) + 2 * m * self.size * dim + 2 * dim)
            for m in range(1, self.max_words + 1)
        )
        mean = mean_row(table).float()
        scale = (table - mean).std().clamp_min(torch.finfo(torch.float32).tiny)
        rows = (table - mean) / scale
        learner = CodeLearner(dim, count, self.size)
        optimizer = torch.optim.Adam(learner.parameters(), lr=self.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, self.steps)
        for _ in reporter.bar(range(self.steps), description=self.name, unit="step"):
            batch = rows[torch.randint(vocab_size, (self.batch_size,))]
            loss = (learner(batch) - batch).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            words = torch.cat([learner.logits(part).argmax(2) for part in rows.split(ROWS_PER_CHUNK)])
        chosen = one_hot(words, self.size).flatten(1).bool()
        books, bias = refit_decoder(chosen, table, torch.ones(vocab_size))
        books = books.unflatten(0, (count, self.size))
        return {"codes": pack_words(words, bits), "codebooks": books.half(), "bias": bias.half()}, {"words": count}
