"""How codecs look: one colour, marker and place in the legend, the same in every chart and on every page."""

from typing import Any
from zlib import crc32

INK = "ink"  # the colour of text, in the light and in the dark theme
# Colours that the colour-blind can tell apart, on white and on black (after Okabe and Ito, and Tol). The two forms of
# the method have the warm colours. The other codecs share six colours and differ in their markers.
OURS = {"lighttoken": "#d55e00", "lighttoken_paper": "#e69f00"}
COLOURS = ("#2e86c8", "#009e73", "#cc6699", "#8c7ae6", "#999933", "#7f8c99")
OTHERS = (
    *("svd", "pq", "rq", "scalar", "orientation_ae", "hashing_trick"),
    *("opq", "lsq", "compositional_codes", "tensor_train", "near_lossless_binary", "vocabulary_pruning"),
)
MARKERS = ("circle", "square", "triangle-up", "diamond")
CURVE_COLOURS = ("#2e86c8", "#d55e00", "#009e73", "#cc6699", "#8c7ae6", "#999933", "#e69f00", "#7f8c99")


def style(codec: str) -> dict[str, Any]:
    """Colour, marker, dash and width of the line of a codec."""
    if codec in OURS:
        return {"colour": OURS[codec], "marker": "circle", "width": 3.5 if codec == "lighttoken" else 2.5}
    if codec == "none":
        return {"colour": INK, "marker": None, "dash": "dash"}
    number = OTHERS.index(codec) if codec in OTHERS else len(OTHERS) + crc32(codec.encode()) % len(OTHERS)
    cycle, colour = divmod(number, len(COLOURS))
    return {"colour": COLOURS[colour], "marker": MARKERS[cycle], "dash": "solid" if cycle % 2 == 0 else "dot"}


def legend_position(codec: str) -> int:
    """The position of a codec in legends and tables: our two codecs first, unknown codecs last."""
    known = [*OURS, *OTHERS]
    return known.index(codec) if codec in known else len(known)
