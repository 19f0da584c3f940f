"""Numbers of a record about a table and an artifact: spectrum, bound, error by frequency, bytes by part."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lighttoken.artifact.table import ROWS_PER_CHUNK, CompressedTable
from lighttoken.codec.bound import reverse_water_filling
from lighttoken.codec.loss import table_variance
from lighttoken.codec.prior import WordFrequency
from lighttoken.errors import LighttokenError

SINGULAR_VALUES = 128  # at most in a record, spread evenly over the logarithm of their index
BOUND_RATIOS = [round(10 ** (i / 8), 3) for i in range(2, 23)]  # 1.8 to 562


def measure_table(table: Tensor) -> dict[str, Any]:
    """Size, singular values and Gaussian bound of a table (V, d), as plain JSON values.

    `singular_values`: `index`, counted from 1, and `value`, falling. `gaussian_bound`: `ratio` and `nmse`, the smallest
    possible mean squared error over the table's variance at that ratio.
    """
    values = _covariance(table, centred=False).mul(len(table)).clamp_min(0).sqrt().tolist()
    steps = torch.logspace(0, torch.tensor(float(len(values))).log10().item(), SINGULAR_VALUES, dtype=torch.float64)
    index = steps.round().long().clamp(1, len(values)).unique().tolist()
    spectrum = _covariance(table, centred=True)
    return {
        "rows": table.shape[0],
        "dim": table.shape[1],
        "singular_values": {"index": index, "value": [_short(values[i - 1]) for i in index]},
        "gaussian_bound": {
            "ratio": BOUND_RATIOS,
            "nmse": [_short(_bound(table, spectrum, table.numel() * 4 / ratio)) for ratio in BOUND_RATIOS],
        },
    }


def measure_artifact(table: Tensor, compressed: CompressedTable, frequencies: Tensor | None) -> dict[str, Any]:
    """The errors of a compressed table against its table (V, d), and its bytes by part, as plain JSON values.

    `nmse_by_frequency_tenth`: mean squared error over the table's variance, first for the tenth of the rows with the
    largest `frequencies` (V,), then for the next tenth, and so on; absent without frequencies. `bound_nmse`: the
    Gaussian bound at the artifact's bytes. `bytes_by_part`: bytes by part; `description` is all that is not a tensor.
    """
    numbers: dict[str, Any] = {
        "bound_nmse": _short(_bound(table, _covariance(table, centred=True), compressed.nbytes)),
        "bytes_by_part": bytes_by_part(compressed),
    }
    if frequencies is not None:
        chunks = torch.arange(len(table)).split(ROWS_PER_CHUNK)
        errors = torch.cat([(table[ids].double() - compressed.decode(ids)).square().mean(1) for ids in chunks])
        ordered = errors[frequencies.argsort(descending=True, stable=True)] / table_variance(table)
        numbers["nmse_by_frequency_tenth"] = [_short(float(tenth.mean())) for tenth in ordered.tensor_split(10)]
    return numbers


def bytes_by_part(compressed: CompressedTable) -> dict[str, int]:
    """Bytes of an artifact by part, largest first; they add up to `nbytes`. Scales count with their numbers."""
    sizes: dict[str, int] = {}
    for name, tensor in compressed.tensors.items():
        part = name.removesuffix(".scale")
        sizes[part] = sizes.get(part, 0) + tensor.numel() * tensor.element_size()
    sizes = dict(sorted(sizes.items(), key=lambda part: (-part[1], part[0])))
    return sizes | {"description": compressed.nbytes - sum(sizes.values())}


def common_frequencies(tokenizer: Any, rows: int) -> Tensor | None:
    """Share of each token in English text, (rows,): the `wordfreq` prior, whatever prior a codec has.

    So the tenths of all codecs hold the same rows. Tokens that the word list does not have come last, in the order of
    their ids. None for a tokenizer without a fast backend, or one that knows no English word. It takes seconds, once
    for a tokenizer and process.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else _common_frequencies(backend.to_str(), rows)


@lru_cache(maxsize=4)
def _common_frequencies(backend: str, rows: int) -> Tensor | None:
    try:
        return WordFrequency().frequencies(_Backend(backend), rows)
    except LighttokenError:
        return None


class _Backend:
    """The part of a transformers tokenizer that a prior uses, five times as fast: ids and nothing else."""

    def __init__(self, serialized: str):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_str(serialized)
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def __call__(self, texts: str | list[str], add_special_tokens: bool = True) -> dict[str, list]:
        if isinstance(texts, str):
            return {"input_ids": self.tokenizer.encode(texts, add_special_tokens=add_special_tokens).ids}
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return {"input_ids": [encoding.ids for encoding in encoded]}


def _covariance(table: Tensor, centred: bool) -> Tensor:
    """Eigenvalues (d,) float64, falling, of table.T @ table / V; with `centred`, those of the centred table."""
    table = table.detach().float().cpu()
    mean = table.mean(0, dtype=torch.float64) if centred else 0.0
    moments = torch.zeros(table.shape[1], table.shape[1], dtype=torch.float64)  # squares of any scale fit in
    for rows in table.split(ROWS_PER_CHUNK):
        rows = rows.double() - mean
        moments += rows.T @ rows
    return torch.linalg.eigvalsh(moments / len(table)).flip(0)


def _bound(table: Tensor, spectrum: Tensor, nbytes: float) -> float:
    """The Gaussian bound of the nmse of a table (V, d) whose centred spectrum is given, at that many bytes."""
    return reverse_water_filling(spectrum, 8 * nbytes / len(table))[0] / table_variance(table) / table.shape[1]


def _short(value: float) -> float:
    return float(f"{value:.5g}")
