"""How codecs and their variants look: colour, marker, dash and place in the legend, the same in all charts."""

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
MARKERS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "pentagon")
DASHES = ("solid", "dash", "dot")
CURVE_COLOURS = ("#2e86c8", "#d55e00", "#009e73", "#cc6699", "#8c7ae6", "#999933", "#e69f00", "#7f8c99")


def style(codec: str, variant: int = 0) -> dict[str, Any]:
    """Colour, marker, dash and width of the line of a codec; its variants, by number, share the colour alone."""
    if codec == "none":
        return {"colour": INK, "marker": None, "dash": "dash", "width": 1.5}
    number = OTHERS.index(codec) if codec in OTHERS else len(OTHERS) + crc32(codec.encode()) % len(OTHERS)
    cycle, colour = (0, None) if codec in OURS else divmod(number, len(COLOURS))
    return {
        "colour": OURS[codec] if colour is None else COLOURS[colour],
        "marker": MARKERS[(cycle + 2 * variant + variant // 4) % len(MARKERS)],
        "dash": DASHES[(variant + 2 * (cycle % 2)) % len(DASHES)],
        "width": (3.5 if codec == "lighttoken" else 2.5) if codec in OURS and variant == 0 else 1.5,
    }


def legend_position(codec: str) -> int:
    """The position of a codec in legends and tables: our two codecs first, unknown codecs last."""
    known = [*OURS, *OTHERS]
    return known.index(codec) if codec in known else len(known)
