"""Every codec at the same measured bytes: table error, zero-shot score, seconds, memory, and the bound.

    pip install -e '.[baselines,benchmark,demo]'
    python -m experiments.rate_distortion experiments/DATED-FOLDER --data DIR [--model minilm_l6] [--task sst2]

`--model` is a file of conf/model; DIR holds GLUE as DIR/stsb/validation.parquet (and DIR/sst2 with `--task sst2`, which
adds a fine-tuning on 12,000 sentences for every row, minutes each). Every point runs in a process of its own, one after
another; points that are in rate_distortion.csv are not computed again. Writes rate_distortion.csv, .md and .png.

The quantizers of faiss are those of lighttoken.codec.baselines: of the shapes that fit a ratio (words
x bits), that of the least error.
"""

import argparse
import csv
import importlib.util
import itertools
import json
import math
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import hydra
import matplotlib
import numpy as np
import torch
from tqdm import tqdm

from lighttoken import compress_table, measure_importance
from lighttoken.backbone.source import Backbone
from lighttoken.codec.bound import reverse_water_filling
from lighttoken.codec.lighttoken.method import LightToken
from lighttoken.codec.lowrank import weighted_moments
from lighttoken.codec.paper.method import LightTokenPaper
from lighttoken.config.schema import config_dir, register
from lighttoken.errors import LighttokenError

matplotlib.use("agg")
import matplotlib.pyplot as plt

RATIOS = (5, 10, 25, 50, 103, 200)
TENTHS = [f"nmse_tenth_{i}" for i in range(1, 11)]  # rows by rising frequency
COLUMNS = [
    *("model", "codec", "ratio_asked", "ratio", "bytes", "shape", "nmse", "weighted_nmse", "cosine"),
    *("bound_nmse", "gap_db", "stsb_spearman", "sst2_accuracy", "seconds", "peak_memory_mb"),
    *TENTHS,
]
Made = tuple[torch.Tensor, int, str]  # rows (V, d), bytes, what was chosen


# --- codecs: (table, ratio, context) -> rows, bytes, shape -----------------------------------------------------------


def lighttoken_default(table: torch.Tensor, ratio: float, context: dict) -> Made:
    """The default settings: prior of word frequencies, metric of the backbone."""
    compressed = compress_table(
        table,
        "lighttoken",
        ratio,
        context["weights"],
        context["metric"],
        progress=False,
        importance={"prior": "default"},
    )
    return compressed.decode(), compressed.nbytes, _plan(compressed.summary)


def lighttoken_unweighted(table: torch.Tensor, ratio: float, context: dict) -> Made:
    compressed = compress_table(table, "lighttoken", ratio, progress=False)
    return compressed.decode(), compressed.nbytes, _plan(compressed.summary)


def codec(name: str | LightTokenPaper) -> Callable[[torch.Tensor, float, dict], Made]:
    """A codec of the package, its settings by default."""

    def made(table: torch.Tensor, ratio: float, context: dict) -> Made:
        compressed = compress_table(table, name, ratio, progress=False)
        sizes = (each for each in ("rank", "words", "word_bits", "bits", "rows") if each in compressed.summary)
        told = ", ".join(f"{each} {compressed.summary[each]}" for each in sizes)
        return compressed.decode(), compressed.nbytes, told

    return made


def klt_lloyd_max(table: torch.Tensor, ratio: float, context: dict) -> Made:
    """Principal directions in float16, Lloyd-Max levels for each, bits dealt out to the largest gain."""
    vocab_size, dim = table.shape
    mean, covariance = weighted_moments(table, torch.ones(vocab_size))
    variances, directions = torch.linalg.eigh(covariance)
    variances, directions = variances.flip(0).clamp_min(1e-12), directions.flip(1).half().float()
    levels = {bits: _lloyd_max(2**bits) for bits in range(1, 9)}
    left = [1.0, *(error for _, error in levels.values())]
    budget = vocab_size * dim * 4 / ratio - 4 * dim
    gains = sorted(
        ((float(variances[i]) * (left[b] - left[b + 1]), i, b) for i in range(dim) for b in range(8)), reverse=True
    )
    bits, spent = [0] * dim, 0.0
    for _, i, b in gains:  # concave, so that a direction's first bit comes before its second
        cost = vocab_size / 8 + (2 * dim + 4 if b == 0 else 0)
        if spent + cost <= budget and bits[i] == b:
            bits[i], spent = b + 1, spent + cost
    centred = table - mean
    rows = mean.expand_as(table).clone()
    for i in (i for i in range(dim) if bits[i]):
        scale, (codes, _) = variances[i].sqrt().float(), levels[bits[i]]
        coordinate = centred @ directions[:, i] / scale
        nearest = codes[torch.searchsorted((codes[1:] + codes[:-1]) / 2, coordinate)]
        rows += torch.outer(nearest * scale, directions[:, i])
    return rows, math.ceil(spent + 4 * dim), f"{sum(b > 0 for b in bits)} directions, {sum(bits)} bits"


def _lloyd_max(count: int) -> tuple[torch.Tensor, float]:
    """Levels of least squared error for a unit Gaussian, and that error (Lloyd 1957, Max 1960)."""
    normal = torch.distributions.Normal(0.0, 1.0)
    sample = normal.icdf((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000).float()
    levels = normal.icdf((torch.arange(count) + 0.5) / count)
    for _ in range(300):
        place = torch.searchsorted((levels[1:] + levels[:-1]) / 2, sample)
        sums = torch.zeros(count).index_add_(0, place, sample)
        levels = sums / torch.bincount(place, minlength=count).clamp_min(1)
    place = torch.searchsorted((levels[1:] + levels[:-1]) / 2, sample)
    return levels, float((sample - levels[place]).square().mean())


def faiss_prq(table: torch.Tensor, ratio: float, context: dict) -> Made:
    """The product-residual quantizer of faiss, fitted to the centred table: of the shapes that fit, the best.

    Codes, float16 codebooks and mean count.
    """
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    (vocab_size, dim), best = table.shape, None
    mean = table.mean(0)
    centred = np.ascontiguousarray((table - mean).numpy())
    for bits, splits in itertools.product((4, 6, 8), (8, 16, 32, 64)):
        if dim % splits:
            continue

        def nbytes(m: int, bits: int = bits, splits: int = splits) -> int:
            return vocab_size * -(-m * splits * bits // 8) + 2 * 2**bits * m * dim + 4 * dim

        m = max((m for m in range(1, 65) if nbytes(m) <= table.numel() * 4 / ratio), default=0)
        if m:
            quantizer = faiss.ProductResidualQuantizer(dim, splits, m, bits)
            quantizer.train(centred)
            rows = torch.from_numpy(quantizer.decode(quantizer.compute_codes(centred))) + mean
            error = float((rows - table).square().mean())
            if best is None or error < best[0]:
                best = (error, rows, nbytes(m), f"{splits}x{m}x{bits}")
    if best is None:
        raise LighttokenError(f"no shape of faiss prq fits {ratio:g}x")
    return best[1:]


CODECS: dict[str, tuple[Callable[[torch.Tensor, float, dict], Made], tuple[float, ...]]] = {
    "none": (lambda table, ratio, context: (table, table.numel() * 4, ""), (1,)),
    "scalar": (codec("scalar"), (3.9, 7.5, 15, 28)),
    "svd": (codec("svd"), RATIOS),
    "klt lloyd-max": (klt_lloyd_max, RATIOS),
    "faiss pq": (codec("pq"), RATIOS),
    "faiss opq": (codec("opq"), RATIOS),
    "faiss rq": (codec("rq"), RATIOS),
    "faiss lsq": (codec("lsq"), RATIOS[2:]),
    "faiss prq": (faiss_prq, RATIOS),
    "lighttoken_paper": (codec("lighttoken_paper"), RATIOS),
    "lighttoken_paper, refined": (codec(LightTokenPaper(refine_rounds=20)), RATIOS),
    "lighttoken, unweighted": (lighttoken_unweighted, RATIOS),
    "lighttoken": (lighttoken_default, RATIOS),
}


def _plan(summary: dict) -> str:
    return f"rank {summary['rank']}, {len(summary['tier_rows'])} tiers, {summary['decoder_precision']}"


# --- measures --------------------------------------------------------------------------------------------------------


def run_point(name: str, ratio: float, arguments: argparse.Namespace, context: dict) -> dict:
    """One row of the table; in a process of its own, whose peak memory is this point's."""
    table = torch.from_numpy(np.load(context["table"]))
    before, start = reset_peak_mb(), time.perf_counter()
    rows, nbytes, shape = CODECS[name][0](table, ratio, context)
    seconds, memory = time.perf_counter() - start, peak_mb() - before
    backbone = load_backbone(arguments.model)  # only now: loading a model takes more memory than a codec does
    errors = (rows - table).square().mean(1) / table.var()
    by_frequency = errors[context["weights"].argsort(stable=True)].tensor_split(10)
    spectrum = torch.linalg.eigvalsh(weighted_moments(table, torch.ones(len(table)))[1])
    bound = reverse_water_filling(spectrum, 8 * nbytes / len(table))[0] / float(table.var()) / table.shape[1]
    nmse = float(errors.mean())
    told = {
        "model": arguments.model,
        "codec": name,
        "ratio_asked": ratio,
        "ratio": round(table.numel() * 4 / nbytes, 3),
        "bytes": nbytes,
        "shape": shape,
        "nmse": round(nmse, 5),
        "weighted_nmse": round(float((context["weights"] * errors).mean()), 5),
        "cosine": round(float(torch.cosine_similarity(table, rows).mean()), 5),
        "bound_nmse": round(bound, 5),
        "gap_db": round(10 * math.log10(nmse / bound), 3) if nmse else "",
        "stsb_spearman": round(stsb_spearman(backbone, rows, Path(arguments.data) / "stsb/validation.parquet"), 4),
        "sst2_accuracy": sst2_accuracy(backbone, rows, arguments) if arguments.task == "sst2" else "",
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(memory),
    }
    return told | {name: round(float(part.mean()), 4) for name, part in zip(TENTHS, by_frequency, strict=True)}


def peak_mb() -> float:
    """Peak resident memory since the last reset. Linux only: what getrusage tells cannot be reset."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def reset_peak_mb() -> float:
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


@torch.no_grad()
def stsb_spearman(backbone: Backbone, rows: torch.Tensor, path: Path) -> float:
    """Zero-shot: cosine of mean-pooled last hidden states against the similarity of STS-B's validation pairs."""
    import pandas as pd
    from torchmetrics.functional import spearman_corrcoef

    frame = pd.read_parquet(path)
    model, tokenizer = backbone.encoder().eval(), backbone.tokenizer()
    model.get_input_embeddings().weight.copy_(rows)
    texts = [*frame.sentence1, *frame.sentence2]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors = torch.empty(len(texts), model.config.hidden_size)
    for places in (order[i : i + 64] for i in range(0, len(order), 64)):
        batch = tokenizer([texts[i] for i in places], padding=True, truncation=True, return_tensors="pt")
        mask = batch["attention_mask"].unsqueeze(2)
        vectors[places] = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    first, second = vectors.split(len(frame))
    similarity = torch.cosine_similarity(first, second)
    return float(spearman_corrcoef(similarity, torch.tensor(frame.label.to_numpy())))


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


def load_backbone(name: str) -> Backbone:
    """A backbone by the name of its file in conf/model, or a checkpoint's folder."""
    if Path(name).is_dir():
        return Backbone(Path(name).name, path=name)
    register()
    with hydra.initialize_config_dir(config_dir(), version_base="1.3"):
        return hydra.utils.instantiate(hydra.compose("compress", [f"model={name}", "output=none"]).model)


# --- the table and the figure ----------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
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
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = arguments.folder / "rate_distortion.csv"
    rows = [{"model": "minilm_l6"} | row for row in (read(results) if results.exists() else [])]
    if others := {row["model"] for row in rows} - {arguments.model}:
        parser.error(f"{results} has rows of {', '.join(others)}; give --model {arguments.model} a folder of its own")
    done = {(row["codec"], float(row["ratio_asked"])) for row in rows}
    points = [(name, ratio) for name in arguments.codecs for ratio in CODECS[name][1]]
    points = [point for point in points if point not in done and (not arguments.ratios or point[1] in arguments.ratios)]
    if points:
        backbone = load_backbone(arguments.model)
        weights, metric = measure_importance(backbone, LightToken(), len(backbone.table()))
        context = {"weights": weights, "metric": metric, "table": f"{tempfile.mkdtemp()}/table.npy"}
        np.save(context["table"], backbone.table().numpy())
    for name, ratio in (bar := tqdm(points, unit="point")):
        bar.set_postfix_str(f"{name} {ratio:g}x")
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            try:
                row = pool.submit(run_point, name, ratio, arguments, context).result()
            except LighttokenError as error:
                tqdm.write(f"{name} {ratio:g}x: {error}")
                continue
        rows.append({key: str(value) for key, value in row.items()})
        rows.sort(key=lambda row: (list(CODECS).index(row["codec"]), float(row["ratio_asked"])))
        with results.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    write_markdown(rows, arguments.folder / "rate_distortion.md")
    draw(rows, arguments.folder / "rate_distortion.png")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_markdown(rows: list[dict[str, str]], path: Path) -> None:
    """The columns one looks at first; the CSV has them all."""
    columns = [name for name in COLUMNS if name not in ("model", "ratio_asked", "bytes", *TENTHS)]
    columns = [name for name in columns if any(row[name] for row in rows)]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row[name] for name in columns) + " |" for row in rows]
    path.write_text("\n".join(lines) + "\n")


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """Left: table error with the bound. Right: zero-shot score."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
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
            right.plot(x, [float(row["stsb_spearman"]) for row in points], **style)
        else:
            right.axhline(float(points[0]["stsb_spearman"]), color="black", linestyle=":", label="uncompressed")
    bound = sorted({(float(row["ratio"]), float(row["bound_nmse"])) for row in rows if row["codec"] != "none"})
    left.plot(*zip(*bound, strict=True), "k--", linewidth=1, label="Gaussian bound, all bytes in codes")
    left.set(xscale="log", yscale="log", ylabel="nmse of the table", ylim=(1e-3, 1.2))
    right.set(xscale="log", ylabel="zero-shot STS-B, Spearman", ylim=(0.5, None))
    for axis in (left, right):
        axis.set_xlabel("ratio (bytes of the table / bytes on disk)")
        axis.set_xticks(RATIOS, [f"{ratio}x" for ratio in RATIOS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    right.legend(frameon=False, fontsize=7, loc="lower left")
    handles, labels = left.get_legend_handles_labels()
    left.legend(handles[-1:], labels[-1:], frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
