"""The smallest artifact that keeps an error: the inverse of `compress_table`."""

import math
from typing import Any

from torch import Tensor

from lighttoken.artifact.table import CompressedTable
from lighttoken.codec import Codec, compress_table
from lighttoken.errors import LighttokenError

MEASURES = ("weighted_nmse", "nmse", "cosine")  # of a summary, that `compress_to_quality` can keep


def compress_to_quality(
    table: Tensor,
    codec: str | Codec = "lighttoken",
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
