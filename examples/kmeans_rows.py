"""A codec of your own: every row becomes the nearest of 2^b centroids."""

from dataclasses import dataclass

import torch

from lighttoken.artifact.forms import Codebooks
from lighttoken.artifact.packing import pack_words
from lighttoken.codec.interface import Budget, Codec, Importance, Reporter
from lighttoken.codec.shapes import Fitted, Table


@dataclass(frozen=True)
class KMeansRows(Codec):
    """K-means of the rows (Lloyd 1982). The form `codebooks`, with one word per row, reads the result."""

    name: str = "kmeans_rows"
    iterations: int = 10
    form = Codebooks()

    def fit(self, table: Table, importance: Importance, budget: Budget, reporter: Reporter) -> Fitted:
        """As many centroids as fit into `budget.tensor_bytes`."""
        rows, dim = table.shape
        bias = table.mean(0).half()  # (d,), which every form adds to its rows
        most = (rows - 1).bit_length()
        bits = budget.largest((b, rows * -(-b // 8) + 2 * dim * (2**b + 1)) for b in range(1, most))
        points = table - bias.float()
        centroids = points[torch.randperm(rows)[: 2**bits]]  # the seed of the command is set
        for _ in reporter.bar(range(self.iterations), description="k-means", unit="iteration"):
            words = torch.cdist(points, centroids).argmin(1)
            counts = torch.bincount(words, minlength=2**bits).unsqueeze(1)
            means = torch.zeros_like(centroids).index_add_(0, words, points) / counts.clamp_min(1)
            centroids = torch.where(counts > 0, means, centroids)
        words = torch.cdist(points, centroids).argmin(1, keepdim=True)
        tensors = {"codes": pack_words(words, bits), "codebooks": centroids.half().unsqueeze(0), "bias": bias}
        return tensors, {"centroids": 2**bits}
