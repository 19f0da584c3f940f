"""Every family of models: a swap equals overwriting the table, a checkpoint loads, a step moves what should move."""

import copy

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from lighttoken import CompressedEmbedding, LighttokenError, compress_table, swap_embedding
from lighttoken.backbone.embedding import CompressedHead, set_trainable
from lighttoken.backbone.replace import find_embedding
from lighttoken.codec.lighttoken.method import LightToken

TRELLIS = LightToken(state_bits=6, tiers=2)  # a plan without a search
ENCODER = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
DECODER = ENCODER | {"num_key_value_heads": 1, "eos_token_id": 199, "tie_word_embeddings": True}
T5 = {"vocab_size": 200, "d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}
T5 |= {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 199}
BART = {"vocab_size": 200, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "eos_token_id": 199}
DISTIL = {"vocab_size": 200, "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 40}
GPT2 = {"vocab_size": 200, "n_embd": 32, "n_layer": 1, "n_head": 2, "pad_token_id": 0, "eos_token_id": 199}
MASKED, CAUSAL, SEQ2SEQ = AutoModelForMaskedLM, AutoModelForCausalLM, AutoModelForSeq2SeqLM
FAMILIES = {
    "Bert": (ENCODER, MASKED),
    "Roberta": (ENCODER, MASKED),
    "XLMRoberta": (ENCODER, MASKED),
    "DebertaV2": (ENCODER, MASKED),
    "DistilBert": (DISTIL, MASKED),
    "MPNet": (ENCODER, MASKED),
    "Electra": (ENCODER | {"embedding_size": 16}, MASKED),
    "Albert": (ENCODER | {"embedding_size": 16}, MASKED),
    "ModernBert": (ENCODER | {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}, MASKED),
    "T5": (T5, SEQ2SEQ),
    "Bart": (BART | {"scale_embedding": True}, SEQ2SEQ),
    "GPT2": (GPT2, CAUSAL),
    "Llama": (DECODER, CAUSAL),
    "Gemma": (DECODER | {"head_dim": 16}, CAUSAL),
    "Gemma3Text": (DECODER | {"head_dim": 16}, CAUSAL),
}
# Models that others stand for, but for `make test-all`.
ALIKE = {"Roberta", "XLMRoberta", "DistilBert", "Electra", "ModernBert", "Bart", "Llama", "Gemma"}
IDS = torch.cat([torch.randint(3, 190, (2, 8), generator=torch.Generator().manual_seed(0)), torch.full((2, 1), 199)], 1)


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE)) for name in FAMILIES])
def family(request):
    return request.param


@pytest.fixture(params=["body", "classifier", "language model"])
def model(request, family):
    settings, language_model = FAMILIES[family]
    auto_class = {"body": AutoModel, "classifier": AutoModelForSequenceClassification}.get(
        request.param, language_model
    )
    return auto_class.from_config(getattr(transformers, f"{family}Config")(**settings)).eval()


def compress(model, codec=TRELLIS):
    return compress_table(find_embedding(model).weight, codec, 2.0, progress=False)


@torch.no_grad()
def outputs(model):
    both = model.config.is_encoder_decoder and "Classification" not in type(model).__name__
    return model.eval()(IDS, **({"decoder_input_ids": IDS[:, :5]} if both else {}))[0]


def overwritten(model, table):
    """The model with another table everywhere, heads included, where it is shared."""
    copied = copy.deepcopy(model)
    find_embedding(copied).weight.data = table
    copied.tie_weights()
    return copied


def untied_head(model):
    """The model with the weight of a tied head on its own."""
    copied = copy.deepcopy(model)
    head = copied.get_output_embeddings()
    if head is not None and head.weight is find_embedding(copied).weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
    return copied


@pytest.mark.parametrize("codec", ["svd", TRELLIS], ids=["svd", "lighttoken"])
def test_a_swap_with_a_tied_head_equals_overwriting_the_table(model, codec):
    compressed = compress(model, codec)
    expected = outputs(overwritten(model, compressed.decode()))
    torch.testing.assert_close(outputs(swap_embedding(model, compressed)), expected, atol=1e-5, rtol=1e-5)


def test_an_untied_head_keeps_the_original_weights(family):
    settings, language_model = FAMILIES[family]
    model = language_model.from_config(getattr(transformers, f"{family}Config")(**settings))
    compressed = compress(model)
    reference = untied_head(model)
    embedding = find_embedding(reference)
    for module in reference.modules():  # of a model that has its table in several places
        if isinstance(module, nn.Embedding) and module.weight is embedding.weight and module is not embedding:
            module.weight = embedding.weight
    embedding.weight.data = compressed.decode()
    swap_embedding(model, compressed, tie="untie")
    assert type(model.get_output_embeddings()) is nn.Linear
    torch.testing.assert_close(outputs(model), outputs(reference), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tie", ["compressed", "untie"])
def test_a_checkpoint_loads_and_gives_the_same_outputs_again_and_again(model, tie, tmp_path):
    swap_embedding(model, compress(model), tie=tie)
    expected, state = outputs(model), model.state_dict()
    for generation in range(2):
        model.save_pretrained(tmp_path / str(generation))
        model, report = type(model).from_pretrained(tmp_path / str(generation), output_loading_info=True)
        assert not any(report.values()), report
        assert isinstance(model.get_input_embeddings(), CompressedEmbedding)
        loaded = model.state_dict()
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[name], state[name]) for name in state)
        # Not to the bit: with several threads, T5 and BART differ by 1e-7 although all that is stored is the same.
        torch.testing.assert_close(outputs(model), expected, atol=1e-5, rtol=1e-5)
        model.tie_weights()  # has nothing left to tie to the table


@pytest.mark.parametrize("trainable", ["frozen", "decoder", "decoder+factors"])
def test_one_step_moves_what_should_move_and_nothing_else(family, trainable):
    settings, _ = FAMILIES[family]
    model = AutoModelForSequenceClassification.from_config(getattr(transformers, f"{family}Config")(**settings))
    swap_embedding(model, compress(model))
    embedding = model.get_input_embeddings()
    set_trainable(embedding, trainable)
    stored = {name: buffer.clone() for name, buffer in embedding.named_buffers()}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
    model(IDS, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    assert all(torch.equal(buffer, stored[name]) for name, buffer in embedding.named_buffers())
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    trained = {name.rpartition(".")[2] for name in moved if "trained." in name}
    assert (
        trained
        == {"frozen": set(), "decoder": {"decoder", "bias"}, "decoder+factors": {"decoder", "bias", "gain"}}[trainable]
    )
    assert len(moved) > len(trained)  # the rest of the model learns too


def test_a_tied_head_learns_through_the_compressed_table(family):
    settings, language_model = FAMILIES[family]
    model = language_model.from_config(getattr(transformers, f"{family}Config")(**settings))
    compressed = compress(model)
    dense = overwritten(model, compressed.decode())
    swap_embedding(model, compressed)
    hidden = torch.randn(3, compressed.shape[1], requires_grad=True)
    head, dense_head = model.get_output_embeddings(), dense.get_output_embeddings()
    assert isinstance(head, CompressedHead)
    set_trainable(head.embedding, "decoder")
    targets = torch.tensor([5, 7, 9])
    nn.functional.cross_entropy(head(hidden), targets).backward()
    gradient, hidden.grad = hidden.grad, None
    nn.functional.cross_entropy(dense_head(hidden), targets).backward()
    torch.testing.assert_close(gradient, hidden.grad, atol=1e-6, rtol=1e-4)
    # d loss / d bias of the table: the sum over its rows.
    torch.testing.assert_close(head.embedding.trained["bias"].grad, dense_head.weight.grad.sum(0), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["Bart", "Gemma3Text"])
def test_a_scale_is_rounded_as_the_original_rounds_it(name, dtype):
    settings, _ = FAMILIES[name]
    model = AutoModel.from_config(getattr(transformers, f"{name}Config")(**settings)).to(dtype)
    compressed = compress(model)
    dense = overwritten(model, compressed.decode().to(dtype))
    expected = find_embedding(dense)(IDS)
    embedding = swap_embedding(model, compressed).get_input_embeddings()
    assert torch.equal(embedding(IDS), expected)
    embedding.set_mode("materialized")
    assert torch.equal(embedding(IDS), expected)


def test_a_head_that_never_was_tied_stays_its_own(tmp_path):
    model = AutoModelForCausalLM.from_config(transformers.LlamaConfig(**DECODER | {"tie_word_embeddings": False}))
    weight = model.lm_head.weight.clone()
    swap_embedding(model, compress(model)).save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path).lm_head.weight, weight)


def test_an_unknown_policy_is_refused():
    model = AutoModel.from_config(transformers.BertConfig(**ENCODER))
    with pytest.raises(LighttokenError, match="unknown tie='maybe'; choose one of compressed, untie"):
        swap_embedding(model, compress(model), tie="maybe")


@pytest.mark.parametrize("mode", ["packed", "materialized"])
def test_a_head_serves_hidden_states_of_any_shape_and_modes_agree(mode):
    model = AutoModelForMaskedLM.from_config(transformers.BertConfig(**ENCODER))
    compressed = compress(model)
    swap_embedding(model, compressed)
    head = model.get_output_embeddings()
    head.embedding.set_mode(mode)
    for shape in [(32,), (4, 32), (2, 3, 32)]:
        hidden = torch.randn(shape)
        expected = hidden @ compressed.decode().T + head.bias
        with torch.no_grad():
            torch.testing.assert_close(head(hidden), expected, atol=1e-5, rtol=1e-5)


def test_an_input_embedding_that_is_tied_to_another_is_refused():
    sizes = BART | {"max_position_embeddings": 40, "pad_token_id": 0, "decoder_start_token_id": 0}
    model = transformers.MarianMTModel(transformers.MarianConfig(**sizes))
    with pytest.raises(LighttokenError, match="MarianMTModel ties its input embedding .* cannot be swapped yet"):
        swap_embedding(model, compress(model))
    assert type(model.get_input_embeddings()) is nn.Embedding
