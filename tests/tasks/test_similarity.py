"""Sentence similarity, against a plain loop over a small random model, and as a run."""

import json
import math
from pathlib import Path

import lightning as L
import pandas
import pytest
import torch
from scipy.stats import spearmanr
from torchmetrics.regression import SpearmanCorrCoef

from lighttoken import LighttokenError
from lighttoken.backbone.source import Backbone
from lighttoken.tasks.similarity import SentenceSimilarity
from tests.conftest import WORDS
from tests.tasks.conftest import read_record

PAIRS = [(f"{WORDS[i]} {WORDS[i * 5 % 12]}", f"{WORDS[i * 7 % 12]} film" + " plot" * (i % 4), i % 5) for i in range(12)]


@pytest.fixture
def backbone(checkpoint) -> Backbone:
    pandas.DataFrame(PAIRS, columns=["left", "right", "score"]).to_csv("pairs.csv")
    return Backbone("tiny", path=str(checkpoint()))


def score(backbone: Backbone, **settings) -> float:
    columns = {"text_columns": ["left", "right"], "label_column": "score", "file": "pairs.csv"}
    settings = columns | {"metrics": {"spearman": SpearmanCorrCoef()}, "eval_batch_size": 5} | settings
    data = SentenceSimilarity(backbone.tokenizer(), "sts", **settings)
    data.setup()
    model = data.make_model(backbone)
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    (scores,) = trainer.validate(data.scorer(model, model), data, verbose=False)
    return scores["val/spearman"]


@pytest.mark.parametrize("columns", [["left"], ["left", "right", "score"]])
def test_other_than_two_texts_are_refused(backbone, columns):
    with pytest.raises(LighttokenError, match=f"text_columns has {len(columns)} columns, left.*; give the two whose"):
        score(backbone, text_columns=columns)


@torch.no_grad()
def plain(backbone: Backbone, pooling: str, prefix: str = "") -> float:
    """One sentence at a time."""
    model, tokenizer = backbone.encoder().eval(), backbone.tokenizer()

    def vector(text: str) -> torch.Tensor:
        states = model(**tokenizer(prefix + text, return_tensors="pt")).last_hidden_state[0]
        return states[0] if pooling == "cls" else states.mean(0)

    cosines = [float(torch.cosine_similarity(vector(left), vector(right), 0)) for left, right, _ in PAIRS]
    return spearmanr(cosines, [label for _, _, label in PAIRS]).statistic


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_score_is_that_of_a_plain_loop(backbone, pooling):
    assert score(backbone, pooling=pooling) == pytest.approx(plain(backbone, pooling), abs=1e-4)
    prefixed = score(backbone, pooling=pooling, prefix="worst ")
    assert prefixed == pytest.approx(plain(backbone, pooling, "worst "), abs=1e-4)
    assert prefixed != pytest.approx(plain(backbone, pooling), abs=1e-3)


@pytest.mark.parametrize("settings", [{"pooling_mode_cls_token": True, "word": 32}, {"pooling_mode": "cls"}])
def test_the_folders_own_pooling_is_the_default(backbone, settings):
    assert score(backbone) == pytest.approx(plain(backbone, "mean"), abs=1e-4)
    write_modules(backbone, settings)
    assert score(backbone) == pytest.approx(plain(backbone, "cls"), abs=1e-4)
    assert score(backbone, pooling="mean") == pytest.approx(plain(backbone, "mean"), abs=1e-4)


def write_modules(backbone: Backbone, settings: dict, *more: str) -> None:
    folder = Path(str(backbone.path), "1_Pooling")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    names = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2"} | dict.fromkeys(more, "3")
    modules = [{"type": f"sentence_transformers.models.{name}", "path": path} for name, path in names.items()]
    Path(str(backbone.path), "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        ({"pooling_mode_mean_sqrt_len_tokens": True}, [], "has the pooling 'mean_sqrt_len'; set task.pooling=mean"),
        ({"pooling_mode": "mean"}, ["Dense"], "has Dense behind the model, which is not supported"),
    ],
)
def test_another_pooling_of_the_folder_is_refused(backbone, settings, more, message):
    write_modules(backbone, settings, *more)
    with pytest.raises(LighttokenError, match=message):
        score(backbone)


def test_rows_without_a_text_or_a_number_are_refused(backbone):
    for row, message in (
        (("a", None, 1.0), "row 1 of task=sts lacks a text"),
        (("a", "b", math.nan), "must be a number"),
    ):
        pandas.DataFrame([("a", "b", 1.0), row], columns=["left", "right", "score"]).to_parquet("odd.parquet")
        with pytest.raises(LighttokenError, match=message):
            score(backbone, file="odd.parquet")
    with pytest.raises(LighttokenError, match="lacks the column label; found"):
        score(backbone, label_column="label")


def test_a_run_scores_without_training(backbone, train):
    code, out, err = train(
        "task=sts", "task.file=pairs.csv", "task.text_columns=[left,right]", "task.label_column=score"
    )
    assert code == 0, err
    _, record = read_record()
    assert record["metrics"].keys() == {"val/pearson", "val/spearman"}
    assert record["tie"] is None
    assert "output head" not in out
    assert record["ratio"] > 2.5
