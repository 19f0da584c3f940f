"""Codecs: methods that turn a table into a compressed table."""

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from lighttoken.artifact import CompressedTable, hash_table
from lighttoken.errors import LighttokenError

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

CODECS = {  # by name, as in conf/codec
    "lighttoken": "lighttoken.codec.lighttoken.LightToken",
    "lighttoken_paper": "lighttoken.codec.paper.LightTokenPaper",
    "compositional_codes": "lighttoken.baselines.compositional_codes.CompositionalCodes",
    "hashing_trick": "lighttoken.baselines.hashing_trick.HashingTrick",
    "lsq": "lighttoken.baselines.lsq.LSQ",
    "near_lossless_binary": "lighttoken.baselines.near_lossless_binary.NearLosslessBinary",
    "opq": "lighttoken.baselines.opq.OPQ",
    "orientation_ae": "lighttoken.baselines.orientation_ae.OrientationAE",
    "pq": "lighttoken.baselines.pq.PQ",
    "rq": "lighttoken.baselines.rq.RQ",
    "scalar": "lighttoken.baselines.scalar.Scalar",
    "svd": "lighttoken.baselines.svd.SVD",
    "tensor_train": "lighttoken.baselines.tensor_train.TensorTrain",
    "vocabulary_pruning": "lighttoken.baselines.vocabulary_pruning.VocabularyPruning",
}
MEASURES = ("weighted_nmse", "nmse", "cosine")  # of a summary, that `compress_to_quality` can keep


@dataclass(frozen=True)
class Uncompressed:
    """`codec=none`: the original table, the reference that every codec is compared with."""

    name: str = "none"


class Codec(Protocol):
    """What a codec has: a name, its settings as plain JSON values, and the method itself."""

    @property
    def name(self) -> str: ...

    @property
    def prior(self) -> str: ...

    def frequencies(self, tokenizer: Any, rows: int) -> Tensor: ...

    def row_weights(self, frequencies: Tensor) -> Tensor: ...

    def settings(self) -> dict[str, Any]: ...

    def importance_settings(self) -> dict[str, Any]: ...

    def compress(
        self,
        table: Tensor,
        weights: Tensor,
        metric: Tensor | None,
        ratio: float,
        empty: CompressedTable,
        progress: bool,
        loggers: "Sequence[Logger]",
    ) -> CompressedTable: ...


@contextmanager
def _plain_arithmetic() -> Iterator[None]:
    """Float32 on the CPU with gradients, unless told otherwise, whatever the code around has switched on or off."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.device("cpu"),
        ):
            yield
    finally:
        torch.set_default_dtype(default)


@_plain_arithmetic()
def compress_table(
    table: Tensor,
    codec: "str | Codec" = "lighttoken",
    ratio: float = 25.0,
    weights: Tensor | None = None,
    metric: Tensor | None = None,
    importance: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: bool = True,
    loggers: "Sequence[Logger]" = (),
) -> CompressedTable:
    """Compress a table (V, d) so that V * d * 4 bytes over the bytes of the artifact's files is at least `ratio`.

    `codec` is a name out of `CODECS`, with that codec's default settings, or a codec; `weights` (V,) says how much each
    row matters (any positive numbers; None: all the same), `metric` (d, d), symmetric, how much each direction of
    an error e does, e @ metric @ e (None: Euclidean; `lighttoken` alone uses it). `importance` is kept in the artifact
    and says how the two were made. A table alone tells nothing of either: a codec's own `prior` and `metric` need the
    backbone, and `python -m lighttoken.compress` or `lighttoken.measure_importance` to be followed. The same arguments
    on the same machine give the same bytes. The caller's random state is left as it was. Lightning `loggers` receive
    the codec's curves.

    Raises LighttokenError for an unknown codec, a table that is not a finite matrix, a ratio that is not above 1 or
    cannot be met, and weights that do not fit the table.
    """
    if isinstance(codec, str) and codec in CODECS:
        codec = _default_codec(codec)
    if isinstance(codec, str) or not hasattr(codec, "compress"):
        raise LighttokenError(f"unknown codec {codec!r}; choose one of {', '.join(CODECS)}")
    table = _checked_table(table)
    weights = _checked_weights(weights, len(table))
    metric = _checked_metric(metric, table.shape[1])
    if not (isinstance(ratio, Real) and math.isfinite(ratio) and ratio > 1):
        raise LighttokenError(f"ratio {ratio!r} does not compress: it must be a number above 1, for example ratio=25")
    told = {"prior": "given" if bool((weights != 1).any()) else "uniform"}
    told |= {"metric": "euclidean" if metric is None else "given"}
    empty = CompressedTable(
        codec=codec.name,
        shape=(table.shape[0], table.shape[1]),
        tensors={},
        source_sha256=hash_table(table),
        settings=codec.settings() | {"ratio": float(ratio), "seed": int(seed), "importance": dict(importance or told)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        compressed = codec.compress(table, weights, metric, float(ratio), empty, progress, loggers)
    if not math.isfinite(compressed.summary["nmse"]):
        cure = "choose int8 or float32 for coefficient_precision and matrix_precision"
        if not hasattr(codec, "matrix_precision"):
            cure = "scale the table down"
        raise LighttokenError(
            f"the table's values, up to {float(table.abs().max()):g}, overflow what {codec.name} stores them in; {cure}"
        )
    assert compressed.ratio >= ratio, f"{codec.name} was asked for {ratio}x and wrote {compressed.ratio}x"
    return compressed


def compress_to_quality(
    table: Tensor,
    codec: "str | Codec" = "lighttoken",
    *,
    measure: str,
    bound: float,
    tolerance: float = 0.01,
    progress: bool = True,
    **settings: Any,
) -> CompressedTable:
    """The smallest artifact whose `measure` keeps a bound: the inverse of `compress_table`.

    `measure` is one of `MEASURES`, as the summary tells it; errors stay at or under `bound`, the cosine at or above.
    The table is compressed at several ratios, interpolated between on logarithmic scales, until the measure has come
    within a share `tolerance` of the bound, or the ratio within that share of one that is too large. `settings` are
    passed on to `compress_table`. Raises LighttokenError for an unknown measure and a bound that no ratio from 1.5 on
    keeps.
    """
    check_quality(measure, bound)

    def error(compressed: CompressedTable) -> float:  # falls with the bytes, whatever the measure
        value = float(compressed.summary[measure])
        return max(1 - value if measure == "cosine" else value, 1e-9)

    wanted = 1 - bound if measure == "cosine" else bound
    best, ratio = None, 25.0
    failure = LighttokenError(f"no artifact keeps {measure} at {bound:g}; choose another quality")
    # Ratio and error: of the largest ratio seen to keep the bound, of the smallest seen not to.
    low, high, width = (1.5, 0.0), (math.inf, 1.0), math.inf
    for _ in range(12):
        try:
            compressed = compress_table(table, codec, ratio, progress=progress, **settings)
        except LighttokenError as caught:  # a ratio out of reach, or what no ratio cures
            failure = caught
            high = (ratio, 1.0)
            ratio = math.sqrt(low[0] * ratio)
            continue
        got = error(compressed)
        if got <= wanted:
            low = (compressed.ratio, got)
            best = compressed if best is None or compressed.nbytes < best.nbytes else best
            if got >= wanted * (1 - tolerance):
                break
        else:
            high = (ratio, got)
            if ratio <= 1.5:
                raise LighttokenError(
                    f"no artifact keeps {measure} at {bound:g}: at ratio 1.5 it is {compressed.summary[measure]:g}; "
                    "choose another quality"
                )
        if high[0] < low[0] * (1 + tolerance):
            break
        before, width = width, high[0] / low[0]
        # Where the line misleads, as from an error of about 0, every other step halves what is left.
        ratio = math.sqrt(low[0] * high[0]) if width > math.sqrt(before) else _between(low, high, wanted)
    if best is None:
        raise failure
    return best


def check_quality(measure: str, bound: float) -> None:
    """Raise LighttokenError for an unknown measure and a bound where it cannot lie."""
    if measure not in MEASURES:
        raise LighttokenError(f"unknown measure {measure!r}; choose one of {', '.join(MEASURES)}")
    if not 0 < bound < 1:
        raise LighttokenError(f"quality {bound:g} is not between 0 and 1, where {measure} lies; choose one that is")


def _between(low: tuple[float, float], high: tuple[float, float], wanted: float) -> float:
    """Ratio to try next: on the line through both ends on logarithmic scales, kept off the ends."""
    if math.isinf(high[0]):
        return low[0] * 2
    if low[1] <= 0:
        return max(1.5, high[0] / 2)
    share = math.log(wanted / low[1]) / math.log(high[1] / low[1])
    share = min(0.95, max(0.05, share))
    return low[0] * (high[0] / low[0]) ** share


def _default_codec(name: str) -> Codec:
    module, _, attribute = CODECS[name].rpartition(".")  # imported only now: some bring in Lightning
    return getattr(importlib.import_module(module), attribute)()


def _tensor(values: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LighttokenError(f"{name} of type {type(values).__name__} is no tensor; pass a torch.Tensor") from error


def _checked_table(table: Any) -> Tensor:
    table = _tensor(table, "a table")
    if table.ndim != 2 or 0 in table.shape or not table.is_floating_point():
        raise LighttokenError(
            f"a table is a float matrix (V, d), got {table.dtype} of shape {tuple(table.shape)}; "
            "pass model.get_input_embeddings().weight"
        )
    table = table.detach().float().cpu()
    table = table.clone() if table.is_inference() else table  # else nothing that is trained could see it
    bad_rows = (~table.isfinite()).any(1).nonzero().flatten()
    if len(bad_rows):
        raise LighttokenError(
            f"the table has NaN or infinite values in {len(bad_rows)} of {len(table)} rows, the first in row "
            f"{int(bad_rows[0])}; repair the checkpoint before compressing it"
        )
    return table


def _checked_metric(metric: Any, dim: int) -> Tensor | None:
    if metric is None:
        return None
    metric = _tensor(metric, "a metric")
    if metric.shape != (dim, dim):
        raise LighttokenError(
            f"the metric has shape {tuple(metric.shape)}, a table of width {dim} needs ({dim}, {dim})"
        )
    metric = metric.double().cpu()
    if not bool(metric.isfinite().all()):
        raise LighttokenError("the metric has NaN or infinite values; pass None for the Euclidean distance")
    if not torch.allclose(metric, metric.T, rtol=1e-4, atol=1e-6 * float(metric.abs().max())):
        raise LighttokenError("the metric is not symmetric; pass (metric + metric.T) / 2")
    if not float(torch.linalg.eigvalsh(metric)[-1]) > 0:
        raise LighttokenError("the metric has no positive eigenvalue; pass None for the Euclidean distance")
    return metric


def _checked_weights(weights: Any, rows: int) -> Tensor:
    if weights is None:
        return torch.ones(rows)
    weights = _tensor(weights, "weights")
    if weights.shape != (rows,):
        raise LighttokenError(f"weights have shape {tuple(weights.shape)} and the table {rows} rows; pass one per row")
    if not bool((weights.isfinite() & (weights > 0)).all()):
        raise LighttokenError(f"weights must be positive numbers, got a minimum of {float(weights.min()):g}")
    return weights.float().cpu() / weights.float().mean().cpu()
