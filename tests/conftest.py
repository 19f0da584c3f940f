"""Small random models, tokenizers and data, made on the spot; no network (pytest-socket, see pyproject.toml)."""

import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}
os.environ["TRITON_INTERPRET"] = "1"  # kernels for a GPU run on the CPU

import pytest
import torch
from datasets import Dataset
from jaxtyping import install_import_hook
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, BertConfig, DebertaV2Config, PreTrainedModel, PreTrainedTokenizerFast, RobertaConfig

# Shapes and types in annotations are checked while tests run, at no cost in use. Left out are the modules that take
# arguments of users, which tests call with wrong types on purpose.
SHAPED = ("artifact.forms", "artifact.packing", "artifact.trellis", "artifact.trellis_form", "backbone.embedding")
SHAPED += ("codec.baselines", "codec.bound", "codec.error_metric", "codec.lighttoken", "codec.loss", "codec.lowrank")
SHAPED += ("codec.paper", "codec.refine")
install_import_hook([f"lighttoken.{name}" for name in SHAPED], "beartype.beartype")

WORDS = ["a", "bad", "film", "good", "great", "movie", "not", "plot", "the", "very", "was", "worst"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *(f"word{i}" for i in range(183)), "[MASK]"]
SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
CONFIGS = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES, type_vocab_size=1),
    "deberta": DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["c2p", "p2c"]),
}


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory and a data-set cache of its own, and a fixed random state, for every test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))  # of processes that a test starts
    # Token frequencies take seconds otherwise.
    monkeypatch.setattr("lighttoken.codec.prior.WORDS", 5_000)
    monkeypatch.setattr("lighttoken.codec.prior.MIXED_WORDS", 2_000)
    monkeypatch.setattr("lighttoken.codec.languages.WORDS", 200)
    torch.manual_seed(0)


@pytest.fixture
def table() -> torch.Tensor:
    """A table (1200, 32) with a falling spectrum and a mean, as token tables have."""
    return torch.randn(1200, 32) * torch.linspace(1.5, 0.2, 32) + torch.randn(32) * 0.3


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


@pytest.fixture(params=list(CONFIGS))
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    """A small random model of an architecture, under any Auto class."""

    def make(architecture: str = "bert", auto_class: type = AutoModel, **settings: Any) -> PreTrainedModel:
        config = copy.deepcopy(CONFIGS[architecture])  # a swap writes into it
        config.update(settings)
        return auto_class.from_config(config).eval()

    return make


@pytest.fixture
def checkpoint(tmp_path: Path, make_model: Callable, tokenizer: PreTrainedTokenizerFast) -> Callable[[str], Path]:
    """The folder of a saved small random model with its tokenizer."""

    def save(architecture: str = "bert") -> Path:
        folder = tmp_path / f"tiny_{architecture}"
        if not folder.exists():
            make_model(architecture).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def saved_model(make_model: Callable, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A small random BERT with a table (8000, 32), saved with its tokenizer in the folder CHECKPOINT."""
    tokenizer.add_tokens([f"token{i}" for i in range(8000 - len(tokenizer))])
    model = make_model()
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained("CHECKPOINT")
    tokenizer.save_pretrained("CHECKPOINT")
    return model


@pytest.fixture
def sst2(tmp_path: Path) -> Path:
    """A folder with SST-2 in small: 64 rows to train on, 24 to validate on."""
    folder = tmp_path / "sst2"
    folder.mkdir()
    for split, rows in (("train", 64), ("validation", 24)):
        sentences = [" ".join([WORDS[i % 12], WORDS[(i * 5) % 12], *["film"] * (i % 7)]) for i in range(rows)]
        columns = {"sentence": sentences, "label": [i % 2 for i in range(rows)], "idx": list(range(rows))}
        Dataset.from_dict(columns).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture
def compose() -> Callable:
    """Composes a config as a command does, without running it."""

    def call(*overrides: str, name: str = "train"):
        import hydra
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf, open_dict

        from lighttoken.config.schema import config_dir, register

        register()
        with hydra.initialize_config_dir(config_dir(), version_base="1.3"):
            config = hydra.compose(name, list(overrides), return_hydra_config=True)
        OmegaConf.set_readonly(config.hydra, False)
        config.hydra.runtime.output_dir = "run"
        HydraConfig.instance().set_config(config)
        config = copy.deepcopy(config)  # which keeps the type of the schema
        with open_dict(config):
            del config["hydra"]
        return config

    return call


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """Runs a command as the command line does, in this process; returns exit code, standard output, standard error."""

    def call(name: str, *arguments: str) -> tuple[int, str, str]:
        from importlib import import_module

        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        code = 0
        try:
            import_module(f"lighttoken.{name}").main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
