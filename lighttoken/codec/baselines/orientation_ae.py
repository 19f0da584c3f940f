"""Orientation-based autoencoder: a linear autoencoder that is trained on direction."""

from dataclasses import dataclass

import torch
from torch import nn

from lighttoken.artifact.forms import Bits
from lighttoken.artifact.packing import stored_bytes
from lighttoken.codec.baselines.svd import factor_tensors
from lighttoken.codec.interface import Budget, Codec, Importance, Reporter
from lighttoken.codec.shapes import Fitted, Table


@dataclass(frozen=True)
class OrientationAE(Codec):
    """Direction is what you need: improving word embedding compression in large language models (Balazy et al. 2021).

    The same: linear encoder and decoder, the loss (a share of cosine distance, the rest mean absolute error), Adam at
    1e-3 halved every 4 of 20 epochs, batches of 32. Differs: the latent size follows from the ratio; the decoder is
    multiplied by the number of least squared error, since that loss leaves lengths all but free (rows of MiniLM-L6 come
    out 2.4 times too long at 25x); latents and decoder are stored in int8, not float32; the decoder is frozen in
    fine-tuning unless `trainable` says otherwise, as for every codec.
    """

    name: str = "orientation_ae"
    cosine_share: float = 0.9975
    learning_rate: float = 1e-3
    batch_size: int = 32
    epochs: int = 20
    form = Bits()

    def fit(self, table: Table, importance: Importance, budget: Budget, reporter: Reporter) -> Fitted:
        """The latents as left factor and the decoder as right factor, of the largest latent size that fits."""
        vocab_size, dim = table.shape
        rank = budget.largest(
            (k, stored_bytes(vocab_size, k, "int8", scale_dim=1) + stored_bytes(k, dim, "int8", scale_dim=0) + 4 * dim)
            for k in range(1, dim + 1)
        )
        encoder, decoder = nn.Linear(dim, rank), nn.Linear(rank, dim)
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=self.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)
        for _ in reporter.bar(range(self.epochs), description=self.name, unit="epoch"):
            for ids in torch.randperm(vocab_size).split(self.batch_size):
                rows = table[ids]
                output = decoder(encoder(rows))
                direction = 1 - torch.cosine_similarity(output, rows).mean()
                loss = self.cosine_share * direction + (1 - self.cosine_share) * (output - rows).abs().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
        with torch.no_grad():
            latents = encoder(table)
            output = decoder(latents)
            scale = (output * table).sum() / output.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
            right, bias = scale * decoder.weight.T, scale * decoder.bias
        tensors = factor_tensors(latents, right, bias, "int8", "int8")
        return tensors, {"rank": rank}
