"""Table error at high rates, 2 to 8 bits a number, against the rate-distortion bound and the formats of llama.cpp.

    python -m experiments.high_rates experiments/DATED-FOLDER --model minilm_l6

All rows and errors count alike, so that the bound applies: that of independent Gaussian rows with the table's
covariance and all bytes of the artifact spent on codes. Writes high_rates.csv; points in it are not computed again.
"""

import argparse
import math
import time
from pathlib import Path

from tqdm import tqdm

from experiments.rows import RowFile
from experiments.tables import bound_nmse
from lighttoken import compress_table
from lighttoken.codec import Codec
from lighttoken.codec.baselines.gguf import GGUF
from lighttoken.codec.baselines.scalar import Scalar
from lighttoken.codec.lighttoken.method import LightToken
from lighttoken.codec.prior import Uniform
from lighttoken.config.schema import load_backbone

COLUMNS = ("model", "codec", "setting", "ratio_asked", "ratio", "bytes", "bits", "nmse", "bound", "gap_db", "seconds")
KEY = ("model", "codec", "setting", "ratio_asked")
FORMATS = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q3_K", "Q2_K")


def points(state_bits: int) -> list[tuple[str, str, float, Codec]]:
    """Codec, setting, ratio asked, and the codec itself."""
    ours = LightToken(prior=Uniform(), error_metric="euclidean", state_bits=state_bits)
    listed: list[tuple[str, str, float, Codec]] = [
        ("lighttoken", f"{state_bits} state bits", ratio, ours) for ratio in (4, 5, 6, 8, 10, 12, 16, 25)
    ]
    listed += [("gguf", name, 2, GGUF(format=name)) for name in FORMATS]
    return listed + [("scalar", f"int{bits}, groups of 32", 2, Scalar(bits=bits, group_size=32)) for bits in (4, 3, 2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where high_rates.csv is written")
    parser.add_argument("--model", default="minilm_l6", help="a file of conf/model, or a checkpoint's folder")
    parser.add_argument("--state-bits", type=int, default=12, help="of the trellis code")
    arguments = parser.parse_args()
    backbone = load_backbone(arguments.model)
    table = backbone.table()
    results = RowFile(arguments.folder / "high_rates.csv", COLUMNS, KEY)
    for codec, setting, ratio, settings in tqdm(points(arguments.state_bits), unit="artifact"):
        if (backbone.label, codec, setting, f"{ratio:g}") in results:
            continue
        start = time.perf_counter()
        compressed = compress_table(table, settings, ratio, progress=False)
        seconds = time.perf_counter() - start
        nmse, bound = compressed.summary["nmse"], bound_nmse(table, compressed.nbytes)
        row = {"model": backbone.label, "codec": codec, "setting": setting, "ratio_asked": f"{ratio:g}"}
        row |= {
            "ratio": round(compressed.ratio, 3),
            "bytes": compressed.nbytes,
            "bits": round(32 / compressed.ratio, 3),
        }
        row |= {"nmse": nmse, "bound": f"{bound:.3g}", "gap_db": round(10 * math.log10(nmse / bound), 2)}
        results.add(row | {"seconds": round(seconds)})


if __name__ == "__main__":
    main()
