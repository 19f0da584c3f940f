"""Every codec at the same measured bytes: table error, zero-shot score, seconds, memory, and the bound.

    pip install -e '.[baselines,benchmark,demo]'
    python -m experiments.rate_distortion experiments/DATED-FOLDER --data DIR [--model minilm_l6] [--task sst2]

`--model` is a file of conf/model; DIR holds GLUE as DIR/stsb/validation.parquet (and DIR/sst2 with `--task sst2`, which
adds a fine-tuning on 12,000 sentences to every row and takes minutes). Every point runs in a process of its own, one
after another; points in rate_distortion.csv are not computed again. Writes rate_distortion.csv, .md and .png.

The quantizers of faiss are those of lighttoken.codec.baselines, and faiss prq of experiments/quantizers.py: of the
sizes that fit a ratio, those of the least error.
"""

import argparse
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from tqdm import tqdm

from experiments.process import peak_mb, reset_peak_mb, run_alone
from experiments.quantizers import Quantized, faiss_prq, klt_lloyd_max
from experiments.rows import Row, RowFile, markdown
from experiments.similarity import spearman
from experiments.tables import bound_nmse
from lighttoken import compress_table, measure_importance
from lighttoken.artifact.table import CompressedTable
from lighttoken.backbone.source import Backbone
from lighttoken.codec.interface import Codec, Importance
from lighttoken.codec.lighttoken.method import LightToken
from lighttoken.codec.paper.method import LightTokenPaper
from lighttoken.config.schema import load_backbone
from lighttoken.errors import LighttokenError

matplotlib.use("agg")
import matplotlib.pyplot as plt

RATIOS = (5, 10, 25, 50, 103, 200)
ERRORS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1)  # marks of the axis
TENTHS = [f"nmse_tenth_{i}" for i in range(1, 11)]  # rows by rising frequency
COLUMNS = [
    *("model", "codec", "ratio_asked", "ratio", "bytes", "shape", "nmse", "weighted_nmse", "cosine"),
    *("bound_nmse", "gap_db", "stsb_spearman", "sst2_accuracy", "seconds", "peak_memory_mb"),
    *TENTHS,
]
Method = Callable[[torch.Tensor, float, Importance], Quantized]


# --- codecs: (table, ratio, importance) -> rows, bytes, sizes --------------------------------------------------------


def codec(name: str | Codec) -> Method:
    """A codec of the package with its default settings; all rows have the same weight."""
    return lambda table, ratio, importance: _quantized(compress_table(table, name, ratio, progress=False))


def lighttoken_default(table: torch.Tensor, ratio: float, importance: Importance) -> Quantized:
    """The default settings: the prior of word frequencies and the error metric of the backbone."""
    return _quantized(compress_table(table, "lighttoken", ratio, importance=importance, progress=False))


def lighttoken_unweighted(table: torch.Tensor, ratio: float, importance: Importance) -> Quantized:
    """The default settings with the same weight for all rows and the Euclidean distance; related rows are known."""
    uniform = Importance(torch.ones(len(table)), relations=importance.relations)
    return _quantized(compress_table(table, "lighttoken", ratio, importance=uniform, progress=False))


def _quantized(compressed: CompressedTable) -> Quantized:
    summary = compressed.summary
    if compressed.codec == "lighttoken":
        sizes = f"rank {summary['rank']}, {len(summary['tier_rows'])} tiers"
    else:
        names = [name for name in ("rank", "words", "word_bits", "bits", "rows") if name in summary]
        sizes = ", ".join(f"{name} {summary[name]}" for name in names)
    return compressed.decode(), compressed.nbytes, sizes


def uncompressed(table: torch.Tensor, ratio: float, importance: Importance) -> Quantized:
    """The original table in float32."""
    return table, table.numel() * 4, ""


def unweighted(method: Callable[[torch.Tensor, float], Quantized]) -> Method:
    """A quantizer that knows no importance."""
    return lambda table, ratio, importance: method(table, ratio)


CODECS: dict[str, tuple[Method, tuple[float, ...]]] = {
    "none": (uncompressed, (1,)),
    "scalar": (codec("scalar"), (3.9, 7.5, 15, 28)),
    "svd": (codec("svd"), RATIOS),
    "klt lloyd-max": (unweighted(klt_lloyd_max), RATIOS),
    "faiss pq": (codec("pq"), RATIOS),
    "faiss opq": (codec("opq"), RATIOS),
    "faiss rq": (codec("rq"), RATIOS),
    "faiss lsq": (codec("lsq"), RATIOS[2:]),
    "faiss prq": (unweighted(faiss_prq), RATIOS),
    "lighttoken_paper": (codec("lighttoken_paper"), RATIOS),
    "lighttoken_paper, refined": (codec(LightTokenPaper(refine_rounds=20)), RATIOS),
    "lighttoken, unweighted": (lighttoken_unweighted, RATIOS),
    "lighttoken": (lighttoken_default, RATIOS),
}


# --- measures --------------------------------------------------------------------------------------------------------


def run_point(
    name: str, ratio: float, arguments: argparse.Namespace, file: str, importance: Importance
) -> dict[str, Any]:
    """One row of the results. In a process of its own, the peak memory is that of this point."""
    table = torch.from_numpy(np.load(file))
    before, start = reset_peak_mb(), time.perf_counter()
    rows, nbytes, sizes = CODECS[name][0](table, ratio, importance)
    seconds, memory = time.perf_counter() - start, peak_mb() - before
    backbone = load_backbone(arguments.model)  # only now: loading a model takes more memory than a codec does
    errors = (rows - table).square().mean(1) / table.var()
    by_frequency = errors[importance.weights.argsort(stable=True)].tensor_split(10)
    nmse, bound = float(errors.mean()), bound_nmse(table, nbytes)
    row = {
        "model": arguments.model,
        "codec": name,
        "ratio_asked": ratio,
        "ratio": round(table.numel() * 4 / nbytes, 3),
        "bytes": nbytes,
        "shape": sizes,
        "nmse": round(nmse, 5),
        "weighted_nmse": round(float((importance.weights * errors).mean()), 5),
        "cosine": round(float(torch.cosine_similarity(table, rows).mean()), 5),
        "bound_nmse": round(bound, 5),
        "gap_db": round(10 * math.log10(nmse / bound), 3) if nmse else "",
        "stsb_spearman": round(spearman(backbone, rows, Path(arguments.data) / "stsb/validation.parquet"), 4),
        "sst2_accuracy": sst2_accuracy(backbone, rows, arguments) if arguments.task == "sst2" else "",
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(memory),
    }
    return row | {name: round(float(part.mean()), 4) for name, part in zip(TENTHS, by_frequency, strict=True)}


def sst2_accuracy(backbone: Backbone, rows: torch.Tensor, arguments: argparse.Namespace) -> float:
    """SST-2 after 2 epochs of 12,000 sentences, the table frozen: the model is saved with these rows in its table."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model = backbone.encoder()
        model.get_input_embeddings().weight.copy_(rows)
        model.save_pretrained(folder)
        backbone.tokenizer().save_pretrained(folder)
        command = [sys.executable, "-m", "lighttoken.train", "+experiment=glue_sst2", "codec=none", "logger=none"]
        command += [f"model.path={folder}", f"task.data_dir={Path(arguments.data).resolve()}/sst2", "progress=false"]
        command += ["task.train_rows=12000", "trainer.max_epochs=2", "finetune.learning_rate=1e-4"]
        subprocess.run([*command, f"output_dir={folder}/outputs"], check=True, stdout=subprocess.DEVNULL)
        (record,) = Path(folder).glob("outputs/runs/*/record.json")
        return round(json.loads(record.read_text())["metrics"]["val/accuracy"], 4)


# --- the table and the figure ----------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the results are written")
    parser.add_argument("--data", required=True, help="folder with GLUE in parquet: stsb/, sst2/")
    parser.add_argument("--model", default="minilm_l6", help="a file of conf/model, or a checkpoint's folder")
    parser.add_argument("--task", choices=["sst2"], help="fine-tune for every row too")
    parser.add_argument("--codecs", nargs="+", default=list(CODECS), choices=list(CODECS), help="only these")
    parser.add_argument("--ratios", nargs="+", type=float, help="only these")
    arguments = parser.parse_args()
    if any(name.startswith("faiss") for name in arguments.codecs) and importlib.util.find_spec("faiss") is None:
        parser.error("the quantizers of faiss are not installed; run pip install -e '.[baselines,benchmark,demo]'")
    known = {ratio for name in arguments.codecs for ratio in CODECS[name][1]}
    if unknown := sorted(set(arguments.ratios or ()) - known):
        parser.error(f"these codecs are not run at {unknown}; choose among {sorted(known)}")
    if not (Path(arguments.data) / "stsb/validation.parquet").is_file():
        parser.error(f"there is no stsb/validation.parquet in --data {arguments.data}; give the folder of GLUE")
    results = RowFile(arguments.folder / "rate_distortion.csv", COLUMNS, ("codec", "ratio_asked"), model="minilm_l6")
    if others := {row["model"] for row in results.rows} - {arguments.model}:
        parser.error(
            f"{results.path} has rows of {', '.join(others)}; give --model {arguments.model} a folder of its own"
        )
    points = [(name, ratio) for name in arguments.codecs for ratio in CODECS[name][1]]
    points = [point for point in points if point not in results]
    points = [point for point in points if not arguments.ratios or point[1] in arguments.ratios]
    if points:
        backbone = load_backbone(arguments.model)
        importance = measure_importance(backbone, LightToken(), len(backbone.table()))
        file = f"{tempfile.mkdtemp()}/table.npy"
        np.save(file, backbone.table().numpy())
    for name, ratio in (bar := tqdm(points, unit="point")):
        bar.set_postfix_str(f"{name} {ratio:g}x")
        try:
            row = run_alone(run_point, name, ratio, arguments, file, importance)
        except LighttokenError as error:
            tqdm.write(f"{name} {ratio:g}x: {error}")
        else:
            results.add(row, lambda row: (list(CODECS).index(row["codec"]), float(row["ratio_asked"])))
    # The Markdown table has the most important columns; the CSV has all.
    columns = [name for name in COLUMNS if name not in ("model", "ratio_asked", "bytes", *TENTHS)]
    columns = [name for name in columns if any(row[name] for row in results.rows)]
    (arguments.folder / "rate_distortion.md").write_text(markdown(results.rows, columns) + "\n")
    draw(results.rows, arguments.folder / "rate_distortion.png")


def draw(rows: list[Row], path: Path) -> None:
    """The table's error with the bound, the same with row weights, and the zero-shot score."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    colours = dict(zip(CODECS, plt.get_cmap("tab20").colors, strict=False))
    colours |= {"lighttoken": "crimson", "lighttoken, unweighted": "royalblue"}
    for name in dict.fromkeys(row["codec"] for row in rows):
        points = sorted((row for row in rows if row["codec"] == name), key=lambda row: float(row["ratio"]))
        ours = name.startswith("lighttoken")
        style = {"color": colours[name], "marker": "o" if ours else "s", "markersize": 4, "label": name}
        style |= {"linewidth": 2.2 if name in ("lighttoken", "lighttoken, unweighted") else 1.0}
        x = [float(row["ratio"]) for row in points]
        if name != "none":
            left.plot(x, [float(row["nmse"]) for row in points], **style)
            middle.plot(x, [float(row["weighted_nmse"]) for row in points], **style)
            right.plot(x, [float(row["stsb_spearman"]) for row in points], **style)
        else:
            right.axhline(float(points[0]["stsb_spearman"]), color="black", linestyle=":", label="uncompressed")
    compressed = [row for row in rows if row["codec"] != "none"]
    bound = sorted({(float(row["ratio"]), float(row["bound_nmse"])) for row in compressed})
    left.plot(*zip(*bound, strict=True), "k--", linewidth=1, label="Gaussian bound, all bytes in codes")
    for axis, name, label in ((left, "nmse", "nmse of the table"), (middle, "weighted_nmse", "nmse, rows by weight")):
        axis.set(xscale="log", yscale="log", ylabel=label)
        axis.set_yticks(ERRORS, map(str, ERRORS))
        axis.set_ylim(0.8 * min(float(row[name]) for row in compressed), 1)
    right.set(xscale="log", ylabel="zero-shot STS-B, Spearman", ylim=(0.5, None))
    least = 0.9 * min(float(row["ratio"]) for row in compressed)
    for axis in (left, middle, right):
        axis.set_xlabel("ratio (bytes of the table / bytes on disk)")
        axis.set_xticks(RATIOS, [f"{ratio}x" for ratio in RATIOS])
        axis.set_xlim(least, None)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    right.legend(frameon=False, fontsize=7, loc="lower left")
    handles, labels = left.get_legend_handles_labels()
    left.legend(handles[-1:], labels[-1:], frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
