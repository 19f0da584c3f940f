"""What healing brings: the hidden states of unlabelled texts and zero-shot STS-B, with a backbone as it is and healed.

    pip install -e '.[baselines,benchmark,demo]'
    python -m experiments.healing experiments/DATED-FOLDER --data DIR [--model minilm_l6] [--codecs lighttoken]
        [--ratios 103] [--texts none prior corpus] [--steps 1000] [--corpus FILE]

DIR has folders of GLUE and SQuAD in parquet. The corpus is FILE; if it is not there, it is written: the training texts
of SST-2, STS-B, RTE, MRPC, QNLI, MNLI, QQP and SQuAD in an order of hashes, without labels. It has no text of CoLA, and
none of those that the hidden states are compared on. Rows in healing.csv are not computed again.
"""

import argparse
import time
from itertools import product
from pathlib import Path

import torch
from datasets import load_dataset
from tqdm import tqdm

from experiments.hidden_states import TEXT_COLUMNS, cosine, evaluated_texts, hidden_states, read_batches
from experiments.rows import RowFile
from experiments.similarity import spearman
from lighttoken import Healing, compress_table, measure_importance
from lighttoken.codec import find_codec
from lighttoken.config.schema import load_backbone
from lighttoken.run.healing import heal
from lighttoken.tasks.data import position

COLUMNS_OF = {name: [column] for name, column in TEXT_COLUMNS.items() if name != "cola"} | {
    **{"mrpc": ["sentence1", "sentence2"], "qqp": ["question1", "question2"], "mnli": ["premise", "hypothesis"]},
    **{"qnli": ["question", "sentence"], "stsb": ["sentence1", "sentence2"], "rte": ["sentence1", "sentence2"]},
}
PER_TASK = 8000  # texts at most, so that no task fills the corpus
KEY = ("model", "codec", "ratio_asked", "texts", "steps", "seed")
COLUMNS = (*KEY, "ratio", *TEXT_COLUMNS, "cosine", "stsb_spearman", "seconds")


def write_corpus(data: Path, file: Path) -> None:
    texts: set[str] = set()
    for task, columns in COLUMNS_OF.items():
        split = load_dataset("parquet", data_files=str(data / task / "train.parquet"), split="train")
        own = {" ".join(text.split()) for column in columns for text in split[column]}
        texts |= set(sorted(own, key=position)[:PER_TASK])
    for task in TEXT_COLUMNS:
        texts -= {" ".join(text.split()) for text in evaluated_texts(data, task)}
    file.write_text("\n".join(sorted(texts, key=lambda text: position(f"corpus {text}"))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where healing.csv is written")
    parser.add_argument("--data", type=Path, required=True, help="folder with GLUE and SQuAD in parquet")
    parser.add_argument("--model", default="minilm_l6", help="a file of conf/model, or a checkpoint's folder")
    parser.add_argument("--codecs", nargs="+", default=["lighttoken"])
    parser.add_argument("--ratios", nargs="+", type=float, default=[103])
    parser.add_argument("--texts", nargs="+", default=["none", "prior", "corpus"])
    parser.add_argument("--steps", nargs="+", type=int, default=[1000])
    parser.add_argument("--corpus", type=Path, default=Path("outputs/healing_corpus.txt"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not arguments.corpus.is_file():
        arguments.corpus.parent.mkdir(parents=True, exist_ok=True)
        write_corpus(arguments.data, arguments.corpus)

    # 1. The hidden states with the original table.
    backbone = load_backbone(arguments.model)
    model, tokenizer, table = backbone.encoder().eval(), backbone.tokenizer(), backbone.table()
    batches = {task: read_batches(arguments.data, task, tokenizer) for task in TEXT_COLUMNS}
    original = {task: hidden_states(model, batches[task]) for task in TEXT_COLUMNS}

    # 2. Every point: the compressed table, and the body that is healed with it in.
    results = RowFile(arguments.folder / "healing.csv", COLUMNS, KEY)
    for codec, ratio in tqdm([(codec, ratio) for codec in arguments.codecs for ratio in arguments.ratios]):
        importance = measure_importance(backbone, find_codec(codec), len(table), arguments.seed)
        compressed = compress_table(table, codec, ratio, importance=importance, seed=arguments.seed, progress=False)
        if compressed.needs_tokenizer:
            compressed = compressed.with_tokenizer(tokenizer)
        for texts, steps in product(arguments.texts, arguments.steps):
            steps = 0 if texts == "none" else steps
            row = dict(zip(KEY, (arguments.model, codec, f"{ratio:g}", texts, steps, arguments.seed), strict=True))
            if tuple(row.values()) in results:
                continue
            start = time.perf_counter()
            body, healed = backbone.encoder().eval(), None
            with torch.no_grad():
                body.get_input_embeddings().weight.copy_(compressed.decode())
            if texts != "none":
                file = {"file": str(arguments.corpus)} if texts == "corpus" else {}
                healed = heal(backbone, compressed, Healing(texts, steps=steps, **file), seed=arguments.seed)
                healed.put_into(body)
            values = {task: cosine(hidden_states(body, batches[task]), original[task]) for task in TEXT_COLUMNS}
            values |= {"cosine": sum(values.values()) / len(values), "ratio": compressed.ratio}
            values["seconds"] = healed.summary["seconds"] if healed else time.perf_counter() - start
            pairs, change = arguments.data / "stsb/validation.parquet", healed.put_into if healed else None
            values["stsb_spearman"] = spearman(backbone, compressed.decode(), pairs, change)
            results.add(row | {key: f"{value:.5g}" for key, value in values.items()})


if __name__ == "__main__":
    main()
