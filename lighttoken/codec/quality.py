"""The smallest artifact that keeps an error: the inverse of `compress_table`."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lighttoken.artifact.table import CompressedTable
from lighttoken.codec import compress_table
from lighttoken.codec.interface import Codec
from lighttoken.errors import LighttokenError

MEASURES = ("weighted_nmse", "nmse", "cosine")  # of a summary, that `compress_to_quality` can keep
LEAST_RATIO = 1.5
ATTEMPTS = 12


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

    `measure` is one of `MEASURES`, as in the summary; errors stay at or under `bound`, the cosine at or above. The
    table is compressed at several ratios until the measure has come within a share `tolerance` of the bound, or the
    ratio within that share of one that is too large. `settings` go to `compress_table`. Raises LighttokenError for an
    unknown measure and for a bound that no ratio from 1.5 on keeps.
    """
    check_quality(measure, bound)

    def error(compressed: CompressedTable) -> float:  # falls with the bytes, whatever the measure
        value = float(compressed.summary[measure])
        return max(1 - value if measure == "cosine" else value, 1e-9)

    target = 1 - bound if measure == "cosine" else bound
    bracket, best, ratio = Bracket(), None, 25.0
    failure = LighttokenError(f"no artifact keeps {measure} at {bound:g}; choose another quality")
    for _ in range(ATTEMPTS):
        # 1. Compress at this ratio. One that is out of reach is too large; so is one whose error is.
        try:
            compressed = compress_table(table, codec, ratio, progress=progress, **settings)
        except LighttokenError as caught:  # or an error that no ratio cures
            failure = caught
            bracket.high = (ratio, 1.0)
            ratio = math.sqrt(bracket.low[0] * ratio)
            continue
        # 2. Move one end of the bracket to it.
        if error(compressed) > target:
            bracket.high = (ratio, error(compressed))
            if ratio <= LEAST_RATIO:
                raise LighttokenError(
                    f"no artifact keeps {measure} at {bound:g}: at ratio {LEAST_RATIO} it is "
                    f"{compressed.summary[measure]:g}; choose another quality"
                )
        else:
            bracket.low = (compressed.ratio, error(compressed))
            best = compressed if best is None or compressed.nbytes < best.nbytes else best
            if error(compressed) >= target * (1 - tolerance):
                break
        # 3. Stop when the bracket is narrow; else try a ratio inside it.
        if bracket.high[0] < bracket.low[0] * (1 + tolerance):
            break
        ratio = bracket.next_ratio(target)
    if best is None:
        raise failure
    return best


@dataclass
class Bracket:
    """Ratio and error of the largest ratio seen that keeps the bound (`low`) and of the smallest that does not."""

    low: tuple[float, float] = (LEAST_RATIO, 0.0)
    high: tuple[float, float] = (math.inf, 1.0)
    width: float = math.inf  # of the last step

    def next_ratio(self, target: float) -> float:
        """The ratio to try next: where a line through both ends, on logarithmic scales, has the target error.

        Where the line misleads, as from an error of about 0, every other step halves the bracket instead.
        """
        before, self.width = self.width, self.high[0] / self.low[0]
        if self.width > math.sqrt(before):
            return math.sqrt(self.low[0] * self.high[0])
        if math.isinf(self.high[0]):
            return self.low[0] * 2
        if self.low[1] <= 0:
            return max(LEAST_RATIO, self.high[0] / 2)
        share = math.log(target / self.low[1]) / math.log(self.high[1] / self.low[1])
        share = min(0.95, max(0.05, share))  # off the ends
        return self.low[0] * (self.high[0] / self.low[0]) ** share


def check_quality(measure: str, bound: float) -> None:
    """Raise LighttokenError for an unknown measure and for a bound outside the measure's range."""
    if measure not in MEASURES:
        raise LighttokenError(f"unknown measure {measure!r}; choose one of {', '.join(MEASURES)}")
    if not 0 < bound < 1:
        raise LighttokenError(f"quality {bound:g} is not between 0 and 1, where {measure} lies; choose one that is")
