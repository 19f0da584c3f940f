"""What loading does with damaged and hostile files: artifacts of every form, and a checkpoint.

    python -m experiments.damaged_files experiments/DATED-FOLDER [--iterations 1000] [--start 0]

Every iteration damages one of eight small artifacts, or the checkpoint, in one way that its number draws, half of them
with the hash made to fit again. It then loads the files, decodes all rows and shows the content, as `lighttoken.show`
does. Prints the number of each outcome; writes damaged_files.csv, with the first iteration of each kind:
`--start N --iterations 1` runs that one again and prints its message. Exit code 1: an outcome that must not be.

    refused                 a LighttokenError of one line, below 300 characters
    refused by transformers from_pretrained fails where no code of lighttoken runs
    equal rows              harmless
    other rows              the files are those of another table
    the other outcomes      must not be: a foreign exception, a long message, infinite rows, more than 100 MB of memory
                            beyond the files and the decoded rows, a model that loads without its compressed table
"""

import argparse
import contextlib
import copy
import io
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, BertConfig, BertModel
from transformers.utils import logging

from experiments.damages import DAMAGES, Files
from experiments.process import peak_mb, reset_peak_mb, run_alone
from experiments.rows import RowFile
from lighttoken import CompressedTable, LighttokenError, compress_table, load_table, swap_embedding
from lighttoken.artifact.forms import Bits, Codebooks, Cores, Form, Levels
from lighttoken.artifact.packing import pack_bits, quantize
from lighttoken.backbone.checkpoint import read_checkpoint
from lighttoken.backbone.embedding import CompressedEmbedding
from lighttoken.codec.baselines.scalar import quantize_rows
from lighttoken.codec.lighttoken.method import LightToken
from lighttoken.run.inspection import show

GOOD = ("refused", "refused by transformers", "equal rows", "other rows")
COLUMNS = ("files", "damage", "hash", "outcome", "count", "first", "message")
ROWS, DIM = 200, 8
CHECKPOINT_SHARE = 10  # one iteration of so many damages the checkpoint, which takes longer to load


def make_folders(folder: Path) -> list[Path]:
    """An artifact of each form, two of the forms trellis and levels, and a checkpoint. Returns their folders."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(ROWS, DIM, generator=generator) * torch.linspace(2, 0.2, DIM)

    def floats(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def codes(*shape: int) -> Tensor:
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator)

    def by_hand(form: Form, **tensors: Tensor) -> CompressedTable:
        stored = {
            name.replace("r_scale", "r.scale").replace("t_scale", "t.scale"): tensor for name, tensor in tensors.items()
        }
        return CompressedTable(
            form.name, form, (ROWS, DIM), stored | {"bias": floats(DIM)}, "0" * 64, {}, {"nmse": 0.5}
        )

    (left, left_scale), (decoder, decoder_scale) = (
        quantize(floats(ROWS, 3), "int4", 1),
        quantize(floats(16, DIM), "int8"),
    )
    bits = pack_bits(floats(ROWS, 16) > 0)
    factors = {"left": left, "left_scale": left_scale, "right": floats(3, DIM).half()}
    cores = {"codes": floats(1, 6, 2, 3), "core1": floats(3, 6, 2, 4), "core2": floats(4, 6, 2, 1)}
    books = {"codebooks": floats(4, 16, 2).half(), "rotation": floats(DIM, DIM).half()}
    trellis = LightToken(state_bits=6, tiers=2)
    tables = {
        "bits": by_hand(Bits(), codes=bits, decoder=decoder, decoder_scale=decoder_scale, **factors),
        "trellis": compress_table(table, trellis, 2.0, progress=False),
        "integers": compress_table(floats(ROWS, 32), trellis, 2.0, progress=False),
        "blocks": compress_table(floats(ROWS, 32), "gguf", 2.0, progress=False),
        "codebooks": by_hand(Codebooks(), codes=codes(ROWS, 2), **books),
        "levels": by_hand(Levels(), **quantize_rows(floats(50, DIM), 4)),
        "levels, kept": by_hand(Levels(), **quantize_rows(floats(50, DIM), 8), kept=pack_bits(torch.arange(ROWS) < 49)),
        "cores": by_hand(Cores(), **{name: core.half() for name, core in cores.items()}),
    }
    assert "integers" in tables["integers"].tensors
    sizes = {"hidden_size": DIM, "intermediate_size": DIM, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(BertConfig(vocab_size=ROWS, max_position_embeddings=8, **sizes))
    swap_embedding(model, tables["trellis"]).save_pretrained(folder / "checkpoint")
    return [*(made.save(folder / name) for name, made in tables.items()), folder / "checkpoint"]


def load_rows(folder: Path, is_checkpoint: bool) -> Tensor:
    """All rows, read in every way there is; raises what these raise."""
    if is_checkpoint:
        model = AutoModel.from_pretrained(folder)
        embedding = model.get_input_embeddings()
        if not isinstance(embedding, CompressedEmbedding):
            raise AssertionError("loads without its compressed table")
        rows = embedding.weight
        if not torch.equal(read_checkpoint(folder).decode(), rows):
            raise AssertionError("two readers, two tables")
    else:
        rows = load_table(folder).decode()
    with contextlib.redirect_stdout(io.StringIO()):
        show(folder)
    return rows


def outcome_of(files: Files, folder: Path) -> tuple[str, str]:
    """What loading damaged files does: the outcome, and the message if there is one."""
    nbytes, before, outcome, message, decoded = files.write(folder), reset_peak_mb(), "other rows", "", 0
    try:
        rows = load_rows(folder, files.is_checkpoint)
        decoded = rows.numel() * 4
        if not all(bound.isfinite() for bound in rows.aminmax()):  # isfinite of all takes memory
            outcome = "infinite rows"
        elif torch.equal(rows, files.rows):
            outcome = "equal rows"
    except LighttokenError as error:
        message = str(error)
        outcome = "refused" if len(message.splitlines()) == 1 and len(message) < 300 else "long message"
    except Exception as error:
        message, frames = f"{type(error).__name__}: {error}", traceback.extract_tb(error.__traceback__)
        ours = any("/lighttoken/" in frame.filename for frame in frames) or isinstance(error, AssertionError)
        outcome = "refused by transformers" if files.is_checkpoint and not ours else "foreign exception"
    grown = peak_mb() - before - (nbytes + decoded) / 2**20
    if grown > 100 or "allocate memory" in message or "MemoryError" in message:
        return "more than 100 MB", f"{grown:.0f} MB; {message}"
    return outcome, message


def run_limited(folder: Path, iterations: range) -> Counter[tuple[str, ...]]:
    """`run` in a process of its own, whose address space is limited, so that room that is never used counts too."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, used + 2**31))
    logging.set_verbosity(50)
    logging.disable_progress_bar()
    return run(folder, iterations)


def run(folder: Path, iterations: range) -> Counter[tuple[str, ...]]:
    """Counts by files, damage, hash, outcome, first iteration and its message."""
    originals, damaged = [(path.name, Files(path)) for path in make_folders(folder)], folder / "damaged"
    counts: Counter[tuple[str, ...]] = Counter()
    examples = {}
    for i in iterations:
        draw = random.Random(i)
        name, original = originals[-1] if i % CHECKPOINT_SHARE == 0 else draw.choice(originals[:-1])
        files, damage, fit = copy.copy(original), draw.choice(DAMAGES), draw.random() < 0.5
        damage(files, draw)
        if fit:
            files.fit_hash(damaged)
        outcome, message = outcome_of(files, damaged)
        kind = (name, damage.__name__, "made to fit" if fit else "left", outcome)
        counts[kind] += 1
        examples.setdefault(kind, (i, " ".join(message.replace(str(damaged), "DIR").split())[:400]))
    return Counter({(*kind, *map(str, examples[kind])): count for kind, count in counts.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where damaged_files.csv is written")
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0, help="number of the first iteration")
    arguments = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        iterations = range(arguments.start, arguments.start + arguments.iterations)
        counts = run_alone(run_limited, Path(folder), iterations)
    results = RowFile(arguments.folder / "damaged_files.csv", COLUMNS)
    for row, count in sorted(counts.items()):
        results.add(
            dict(zip(("files", "damage", "hash", "outcome", "first", "message"), row, strict=True), count=count)
        )
    totals: Counter[str] = Counter()
    for row in results.rows:
        totals[row["outcome"]] += int(row["count"])
        if row["outcome"] not in GOOD or arguments.iterations == 1:
            print(", ".join(row.values()))
    for outcome, count in totals.most_common():
        print(f"{count:6} {outcome}")
    print(f"{arguments.iterations} iterations in {time.perf_counter() - start:.0f} seconds")
    sys.exit(0 if totals.keys() <= set(GOOD) else 1)


if __name__ == "__main__":
    main()
