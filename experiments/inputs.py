"""A tiny random model and made-up sentences, for scripts that run commands on them."""

from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "bad", "film", "good", "great", "movie", "not", "plot", "the", "was"]
WORDS += [f"word{i}" for i in range(186)]


def make_inputs(folder: Path) -> Path:
    """A tiny model and tiny SST-2 in `model` and `sst2` of a folder; returns the folder."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder / "model")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=40, **sizes)).save_pretrained(folder / "model")
    (folder / "sst2").mkdir()
    for split, rows in (("train", 256), ("validation", 64)):
        sentences = [" ".join([WORDS[4 + i % 10], WORDS[4 + i * 5 % 10], *["film"] * (i % 7)]) for i in range(rows)]
        columns = {"sentence": sentences, "label": [i % 2 for i in range(rows)], "idx": list(range(rows))}
        Dataset.from_dict(columns).to_parquet(folder / "sst2" / f"{split}.parquet")
    return folder
