"""Near-lossless binarization: an autoencoder with binary codes and one matrix for both ways."""

from dataclasses import dataclass

import torch

from lighttoken.artifact.forms import Bits
from lighttoken.artifact.packing import pack_bits
from lighttoken.codec.baselines import mean_row
from lighttoken.codec.interface import Budget, Codec, Importance, Reporter
from lighttoken.codec.refine import refit_decoder
from lighttoken.codec.shapes import Fitted, Table

ROWS_PER_CHUNK = 4096


@dataclass(frozen=True)
class NearLosslessBinary(Codec):
    """Near-lossless binarization of word embeddings (Tissier et al. 2019).

    The same: bits = (W x > 0), rows = W^T bits + c, with W learned through the decoder alone, squared error plus
    `regularization` times a term that holds W^T W to the identity, batches of 75, SGD with momentum 0.95. Differs:
    no tanh around the rows, whose range it would cut to -1 to 1; rows are centred and brought to unit variance while W
    is learned, with gradients clipped; the stored decoder, in float16, is the least-squares one for the bits.
    """

    name: str = "near_lossless_binary"
    regularization: float = 1.0
    learning_rate: float = 1e-3
    momentum: float = 0.95
    batch_size: int = 75
    epochs: int = 10
    form = Bits()

    def fit(self, table: Table, importance: Importance, budget: Budget, reporter: Reporter) -> Fitted:
        """The bits, and the decoder, of the longest code that fits."""
        vocab_size, dim = table.shape
        m = budget.largest((bits, vocab_size * bits // 8 + 2 * bits * dim + 4 * dim) for bits in range(8, 8 * dim, 8))
        mean = mean_row(table).float()
        scale = (table - mean).std().clamp_min(torch.finfo(torch.float32).tiny)
        rows = (table - mean) / scale
        matrix = (torch.randn(m, dim) / m**0.5).requires_grad_()
        bias = torch.zeros(dim, requires_grad=True)
        optimizer = torch.optim.SGD([matrix, bias], lr=self.learning_rate, momentum=self.momentum)
        for _ in reporter.bar(range(self.epochs), description=self.name, unit="epoch"):
            for ids in torch.randperm(vocab_size).split(self.batch_size):
                bits = (rows[ids] @ matrix.detach().T > 0).float()
                error = (bits @ matrix + bias - rows[ids]).square().sum(1).mean()
                identity = torch.eye(dim)
                loss = error + self.regularization / 2 * (matrix.T @ matrix - identity).square().sum()
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_([matrix, bias], 10.0)
                optimizer.step()
        with torch.no_grad():
            chosen = torch.cat([part @ matrix.T > 0 for part in rows.split(ROWS_PER_CHUNK)])
        decoder, offset = refit_decoder(chosen, table, torch.ones(vocab_size))
        return {"codes": pack_bits(chosen), "decoder": decoder.half(), "bias": offset.half()}, {"bits": m}
