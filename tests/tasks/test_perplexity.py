"""Perplexity, against plain loops over small random models, and as a run."""

import math
from pathlib import Path

import lightning as L
import pandas
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from lighttoken import LighttokenError, compress_table, swap_embedding
from lighttoken.backbone.language_model import shared_copy
from lighttoken.backbone.source import Backbone
from lighttoken.codec.baselines.svd import SVD
from lighttoken.dashboard.gather import gather
from lighttoken.tasks import perplexity
from lighttoken.tasks.perplexity import Mean, Perplexity, PerplexityData
from tests.conftest import SIZES
from tests.tasks.conftest import read_record

SVD_FLOAT16 = SVD(coefficient_precision="float16", matrix_precision="float16")

TEXT = " ".join(f"word{i * i % 184} the" for i in range(50)) + " film"  # 101 tokens
TIED = {"tie_word_embeddings": True, "initializer_range": 0.3}


@pytest.fixture
def save(tokenizer, tmp_path):
    """Saves a model with a tokenizer; returns the folder as a backbone."""

    def save(model, special: bool = True) -> Backbone:
        if not special:  # as GPT-2's: nothing around a text, and no padding
            tokenizer.backend_tokenizer.post_processor = None
            tokenizer.pad_token = None
        folder = tmp_path / f"tiny_{model.config.model_type}"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return Backbone("tiny", path=str(folder))

    return save


@pytest.fixture
def gpt2(save) -> Backbone:
    config = GPT2Config(vocab_size=200, n_embd=32, n_layer=1, n_head=2, n_positions=40, initializer_range=0.3)
    return save(GPT2LMHeadModel(config), special=False)


def task_of(backbone: Backbone, text: str = TEXT, **settings) -> PerplexityData:
    Path("text.txt").write_text(text)
    metrics = {"perplexity": Perplexity(), "kl_divergence": Mean(), "top1_agreement": Mean()}
    settings = {"file": "text.txt", "window": 16, "eval_batch_size": 3} | settings
    data = PerplexityData(backbone.tokenizer(padding=False), "perplexity", metrics, **settings)
    data.setup()
    return data


def scores_of(data: PerplexityData, model, original) -> dict[str, float]:
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    (scores,) = trainer.validate(data.scorer(model, original), data, verbose=False)
    return {name.removeprefix("val/"): value for name, value in scores.items()}


def expected(pairs: list[tuple[torch.Tensor, torch.Tensor, int]]) -> dict[str, float]:
    """The scores of logits (V,) of a model and of the original at every scored token."""
    losses, distances, same = [], [], []
    for ours, theirs, token in pairs:
        p, q = ours.double().softmax(0), theirs.double().softmax(0)
        losses.append(-float(p[token].log()))
        distances.append(float((q * (q.log() - p.log())).sum()))
        same.append(float(p.argmax() == q.argmax()))
    n = len(pairs)
    return {
        "perplexity": math.exp(sum(losses) / n),
        "kl_divergence": sum(distances) / n,
        "top1_agreement": sum(same) / n,
    }


def test_a_model_that_fails_on_some_tokens_has_no_perplexity(gpt2):
    data = task_of(gpt2)
    model, original = data.make_model(gpt2), data.make_model(gpt2)
    with torch.no_grad():
        model.transformer.wpe.weight[12] = math.nan  # three of the 15 scored positions of a window
    scores = scores_of(data, model, original)
    assert math.isnan(scores["perplexity"])
    assert math.isnan(scores["kl_divergence"])


@torch.no_grad()
@pytest.mark.parametrize("stride", [None, 5])
def test_a_decoders_scores_are_those_of_a_plain_loop(gpt2, monkeypatch, stride):
    monkeypatch.setattr(perplexity, "LOGITS", 7 * 200)  # slices of 7 positions
    data = task_of(gpt2, stride=stride)
    model = data.make_model(gpt2)
    original = shared_copy(model)
    swap_embedding(model, compress_table(model.transformer.wte.weight, SVD_FLOAT16, ratio=2.5, progress=False))
    # The loop of transformers' guide to perplexity: a window scores what no window before it has scored.
    ids = torch.tensor(data.tokenizer(TEXT)["input_ids"])
    pairs, done = [], 0
    for begin in range(0, len(ids), stride or 16):
        end = min(begin + 16, len(ids))
        ours, theirs = (net(ids[begin:end].unsqueeze(0)).logits[0] for net in (model, original))
        pairs += [(ours[i - 1 - begin], theirs[i - 1 - begin], ids[i]) for i in range(max(done, begin + 1), end)]
        done = end
        if end == len(ids):
            break
    assert len(pairs) == (100 if stride else 101 - 7)  # the first token of a text, or of every window, has no context
    scores = scores_of(data, model, original)
    assert scores == pytest.approx(expected(pairs), rel=1e-4)
    assert scores["kl_divergence"] > 0.01
    assert scores["top1_agreement"] < 1


@torch.no_grad()
@pytest.mark.parametrize("mask_every", [None, 3])
def test_a_masked_models_scores_are_those_of_a_plain_loop(save, make_model, tokenizer, mask_every):
    tokenizer.add_special_tokens({"mask_token": "[UNK]"})
    backbone = save(make_model("bert", AutoModelForMaskedLM, initializer_range=0.3))
    data = task_of(backbone, mask_every=mask_every, max_tokens=40)
    model = data.make_model(backbone)
    original = shared_copy(model)
    swap_embedding(model, compress_table(model.get_input_embeddings().weight, SVD_FLOAT16, ratio=2.5, progress=False))
    ids, pairs = tokenizer(TEXT, add_special_tokens=False)["input_ids"][:40], []
    for begin in range(0, 40, 14):
        window = torch.tensor([2, *ids[begin : begin + 14], 3])
        inner = range(1, len(window) - 1)
        for turn in range(mask_every or len(inner)):
            masked = list(inner)[turn :: mask_every or len(inner)]
            copy = window.clone()
            copy[masked] = tokenizer.mask_token_id
            ours, theirs = (net(copy.unsqueeze(0)).logits[0] for net in (model, original))
            pairs += [(ours[i], theirs[i], window[i]) for i in masked]
    assert len(pairs) == 40
    assert scores_of(data, model, original) == pytest.approx(expected(pairs), rel=1e-4)


def test_a_model_against_itself_has_no_distance(gpt2):
    data = task_of(gpt2)
    model = data.make_model(gpt2)
    scores, copied = scores_of(data, model, model), scores_of(data, model, shared_copy(model))
    assert scores == copied
    assert (scores["kl_divergence"], scores["top1_agreement"]) == (0, 1)


def test_windows_begin_with_the_special_tokens_and_score_every_token_once(save, tokenizer):
    backbone = save(AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, **TIED)))
    data = task_of(backbone, stride=5)
    (loader,) = data.val_dataloader()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    labels = [label for batch in loader for row in batch["labels"].tolist() for label in row if label >= 0]
    assert labels == ids  # [CLS] is the context of the first one
    assert {tuple(row[:1]) for batch in loader for row in batch["input_ids"].tolist()} == {(2,)}


def test_a_column_of_texts_is_joined_by_empty_lines(gpt2):
    texts = ["the film", "a bad plot"]
    pandas.DataFrame({"line": texts}).to_csv("texts.csv")
    data = task_of(gpt2, file="texts.csv", column="line")
    assert data.splits["validation"]["input_ids"][0] == data.tokenizer("\n\n".join(texts))["input_ids"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 17}, "task.stride=17; give a text of 2 tokens or more, and a stride of 1 to 16"),
        ({"text": "film"}, "a text of 1 tokens"),
        ({"window": 0}, "task.window is 0; it must be 1 or above"),
        ({"max_tokens": 0}, "task.max_tokens is 0; it must be 1 or above, or null"),
        ({"file": "text.pdf"}, "task.file=text.pdf has no known format; choose a file in .txt"),
        ({"file": None}, "task=perplexity has no rows; set task.file=FILE"),
    ],
)
def test_a_number_or_a_file_that_cannot_be_is_refused(gpt2, settings, message):
    with pytest.raises(LighttokenError) as error:
        task_of(gpt2, **settings)
    assert message in str(error.value)


def test_a_checkpoint_without_a_head_and_an_encoder_decoder_are_refused(checkpoint, save):
    with pytest.raises(LighttokenError, match="tiny_bert has no head that predicts tokens: it lacks cls.predictions"):
        Backbone("tiny", path=str(checkpoint())).language_model()
    sizes = {"vocab_size": 200, "d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    with pytest.raises(LighttokenError, match="tiny_t5 is an encoder-decoder"):
        save(T5ForConditionalGeneration(T5Config(**sizes))).language_model()


def test_a_run_scores_without_training_and_pairs_up_with_the_original(save, train):
    Path("text.txt").write_text(TEXT)
    path = save(AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, **TIED))).path
    arguments = ["task=perplexity", "task.file=text.txt", "task.window=16", f"model.path={path}"]
    records = []
    # A recipe and a resumption make a difference to a training alone.
    for extra in (["codec=none", "recipe=roberta"], ["tie=compressed", "resume=true"], ["tie=untie"]):
        code, out, err = train(*arguments, *extra)
        assert code == 0, err
        folder, record = read_record()
        folder.rename(Path("outputs", str(len(records))))  # where the runs after it find it
        records.append(record)
        assert ("retention of val/perplexity" in out) == (record["codec"] != "none")
        assert "retention of val/kl_divergence" not in out
    original, *compressed = records
    assert original["metrics"].keys() == {"val/perplexity", "val/kl_divergence", "val/top1_agreement"}
    assert (original["tie"], original["config"]["finetune"]) == (None, {})
    assert "finetune" not in original["seconds"]
    assert [record["tie"] for record in compressed] == ["compressed", "untie"]
    assert len({record["metrics"]["val/perplexity"] for record in records}) == 3
    kept = original["metrics"]["val/perplexity"] / compressed[1]["metrics"]["val/perplexity"]
    assert f"{kept:.4f} of {original['metrics']['val/perplexity']:.4f}" in out
    runs = {run.record["tie"]: run for run in gather([Path("outputs")])}
    assert runs["untie"].retention == pytest.approx(kept)
    assert runs["untie"].label == "svd (tie=untie)"


@pytest.mark.parametrize("tie", ["compressed", "untie"])
def test_a_compressed_decoder_scores_as_in_the_run_that_compressed_it(save, train, command, tie):
    Path("text.txt").write_text(TEXT)
    path = save(AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, **TIED))).path
    arguments = ["task=perplexity", "task.file=text.txt", "task.window=16"]
    assert train(*arguments, f"model.path={path}", f"tie={tie}")[0] == 0
    folder, run = read_record()
    folder.rename("run")
    settings = ["codec=svd", "ratio=2.5", "checkpoint=true", "progress=false", f"tie={tie}"]
    assert command("compress", f"model.path={path}", "output=packed", *settings)[0] == 0
    comparisons = ["~task.metrics.kl_divergence", "~task.metrics.top1_agreement"]
    code, _, err = train(*arguments, "model.path=packed", "codec=stored", *comparisons)
    assert code == 0, err
    stored = read_record()[1]
    assert stored["metrics"] == {"val/perplexity": run["metrics"]["val/perplexity"]}
    assert stored["tie"] == ("compressed" if tie == "compressed" else None)
    assert stored["artifact_bytes"] == run["artifact_bytes"]


def test_what_only_a_training_reads_is_refused_or_ignored(gpt2, train):
    Path("text.txt").write_text(TEXT)
    arguments = ["task=perplexity", "task.file=text.txt", "task.window=16", f"model.path={gpt2.path}"]
    for extra, message in (
        ("distill=somewhere", "task=perplexity trains nothing; leave out distill="),
        ("predict=true", "task=perplexity has no test split to answer"),
        ("task.window=64", "set task.window=40"),
        ("tie=maybe", "unknown tie='maybe'; choose one of compressed, untie"),
        ("task.file=missing.txt", "task.file=missing.txt is no file"),
    ):
        code, _, err = train(*arguments, extra)
        assert (code, message in err) == (2, True), err
