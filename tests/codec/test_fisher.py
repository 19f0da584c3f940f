"""The Fisher of a table: against the divergence of predictions that errors cause."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, GPT2Config

from lighttoken import LighttokenError
from lighttoken.backbone.replace import find_embedding, shares_table
from lighttoken.codec.fisher import table_fisher
from lighttoken.codec.texts import Texts

FREQUENCIES = 1 / (torch.arange(200).double() + 2.7)


@pytest.fixture
def texts(make_model, tokenizer):
    """Makes a tied language model, with rows of some size, and texts for it."""

    def make(architecture: str, count: int = 96, length: int = 10) -> Texts:
        sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 40, "bos_token_id": 2, "eos_token_id": 3}
        if architecture == "gpt2":
            model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=200, **sizes)).eval()
        else:
            model = make_model(architecture, AutoModelForMaskedLM, tie_word_embeddings=True)
        with torch.no_grad():
            find_embedding(model).weight.mul_(8)  # a new model predicts all tokens alike
        tokenizer.mask_token = "[UNK]"
        mask = None if architecture == "gpt2" else tokenizer.mask_token_id
        return Texts(model, tokenizer, mask, count, length, seed=0)

    return make


def divergence(model, other, batches) -> float:
    """Mean KL divergence of the predictions of another model, at a token of text."""
    total, tokens = 0.0, 0
    for ids, scored, counted in batches:
        with torch.no_grad():
            p, q = (each(input_ids=ids).logits[scored].log_softmax(1) for each in (model, other))
        total += float((p.exp() * (p - q)).sum())
        tokens += int(counted.sum())
    return total / tokens


@pytest.mark.parametrize("architecture", ["gpt2", "bert"])
def test_it_says_which_rows_cost_how_much(texts, architecture):
    made = texts(architecture)
    model, embedding = made.model, find_embedding(made.model)
    ids = made.make("prior", FREQUENCIES, None)
    fisher = table_fisher(model, embedding, True, made.batches(ids))
    counts = torch.zeros(200).double()
    for batch, _, counted in made.batches(ids):
        counts += torch.bincount(batch[counted], minlength=200)
    uses = fisher.uses(counts / counts.sum())
    # Errors that cost the same in all directions of the form, in a few rows at a time.
    values, directions = torch.linalg.eigh(fisher.form + 0.01 * torch.eye(32))
    root = (directions / values.sqrt() @ directions.T).float()
    measured, expected = [], []
    generator = torch.Generator().manual_seed(1)
    for rows in (4 + uses[4:].argsort()).view(7, 28):  # without special tokens; from the cheapest to the dearest
        costs = []
        for _ in range(12):
            other = copy.deepcopy(model)
            with torch.no_grad():
                find_embedding(other).weight[rows] += 0.02 * torch.randn(28, 32, generator=generator) @ root
            costs.append(divergence(model, other, made.batches(ids)))
        measured.append(sum(costs) / len(costs))
        expected.append(float(uses[rows].sum()))
    measured, expected = torch.tensor(measured), torch.tensor(expected)
    assert float(expected.max() / expected.min()) > 5
    torch.testing.assert_close(measured / measured.sum(), expected / expected.sum(), rtol=0.25, atol=0.01)


def test_the_form_is_of_the_input_alone_where_the_head_has_its_own_weights(texts):
    made = texts("gpt2")
    ids = made.make("prior", FREQUENCIES, None)
    both, alone = (
        table_fisher(made.model, find_embedding(made.model), tied, made.batches(ids)) for tied in (True, False)
    )
    assert shares_table(made.model)
    assert float(both.outputs.sum()) > 0
    assert not alone.outputs.any()
    torch.testing.assert_close(alone.uses(FREQUENCIES), FREQUENCIES / FREQUENCIES.sum())
    for fisher in (both, alone):
        assert float(fisher.form.trace()) == pytest.approx(32)
        assert float(torch.linalg.eigvalsh(fisher.form)[0]) > -1e-6


def test_rows_that_a_model_scales_as_it_reads_them_have_the_gradient_of_the_table(texts):
    made = texts("gpt2")
    embedding, ids = find_embedding(made.model), made.make("prior", FREQUENCIES, None)
    plain = table_fisher(made.model, embedding, True, made.batches(ids))
    with torch.no_grad():
        embedding.weight.div_(4)
    made.model.lm_head.register_forward_pre_hook(lambda _, arguments: (4 * arguments[0],))
    scale = embedding.register_forward_hook(lambda *arguments: 4 * arguments[2])
    scaled = table_fisher(made.model, embedding, True, made.batches(ids))
    scale.remove()
    # The same model, of a table that is a quarter as large: all of its gradients are four times as large.
    torch.testing.assert_close(scaled.form, plain.form, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(scaled.uses(FREQUENCIES), plain.uses(FREQUENCIES), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("architecture", ["gpt2", "bert"])
def test_texts_are_drawn_sampled_or_read(texts, tokenizer, architecture):
    made = texts(architecture, count=16)
    drawn = made.make("prior", FREQUENCIES, None)
    sampled, again = made.make("model", FREQUENCIES, None), made.make("model", FREQUENCIES, None)
    read = made.make("corpus", FREQUENCIES, ["a bad film"] * 60)
    assert drawn.shape == sampled.shape == read.shape == (16, 12)
    assert torch.equal(sampled, again)
    assert not torch.equal(sampled, drawn)
    assert read[0, 1:4].tolist() == tokenizer("a bad film", add_special_tokens=False)["input_ids"]
    with pytest.raises(LighttokenError, match=r"has 30 tokens and .* reads 160; set codec.error_metric_sequences=3,"):
        made.make("corpus", FREQUENCIES, ["a bad film"] * 10)
    with pytest.raises(LighttokenError, match="set codec/prior=corpus"):
        made.make("corpus", FREQUENCIES, None)
