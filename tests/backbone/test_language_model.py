import pytest
import torch
import transformers

from lighttoken import compress_table, swap_embedding
from lighttoken.backbone.language_model import body_output, head_logits, is_masked, shared_copy
from lighttoken.backbone.precision import reduce_precision
from tests.backbone.test_families import BART, CAUSAL, DECODER, FAMILIES, IDS, MASKED

CASES = {name: entry for name, entry in FAMILIES.items() if entry[1] in (CAUSAL, MASKED)}
OPT = {"vocab_size": 200, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 32, "num_hidden_layers": 1}
CASES["OPT"] = (OPT | {"num_attention_heads": 2, "max_position_embeddings": 40}, CAUSAL)
CASES["Bart"] = (BART | {"is_decoder": True, "is_encoder_decoder": False}, CAUSAL)
XLM = {"vocab_size": 200, "emb_dim": 32, "n_layers": 1, "n_heads": 2, "n_langs": 1, "max_position_embeddings": 40}
CASES["XLM"] = CASES["Flaubert"] = (XLM, MASKED)
CASES["Gemma2"] = (DECODER | {"head_dim": 16, "final_logit_softcapping": 0.1}, CAUSAL)  # caps what the head returns


def make(family: str) -> transformers.PreTrainedModel:
    settings, auto_class = CASES[family]
    return auto_class.from_config(getattr(transformers, f"{family}Config")(**settings)).eval()


@torch.no_grad()
@pytest.mark.parametrize("family", CASES)
def test_logits_of_a_few_positions_are_those_of_the_whole_model(family):
    model = make(family)
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    whole, output = model(**inputs).logits, body_output(model, inputs)
    some = torch.zeros_like(IDS, dtype=torch.bool)
    some[0, 2:5] = some[1, 7] = True
    torch.testing.assert_close(head_logits(model, output, output.last_hidden_state[some]), whole[some])
    torch.testing.assert_close(model(**inputs).logits, whole)  # the body is as it was


@pytest.mark.parametrize("family", CASES)
def test_a_checkpoint_says_whether_it_predicts_masked_tokens(family, tmp_path):
    make(family).save_pretrained(tmp_path)
    assert is_masked(transformers.AutoConfig.from_pretrained(tmp_path)) == (CASES[family][1] is MASKED)


@torch.no_grad()
@pytest.mark.parametrize("family", ["Bert", "Gemma3Text"])
def test_a_copy_shares_memory_and_keeps_its_table_and_its_precision(family):
    model = make(family)
    before, copied = model(input_ids=IDS).logits, shared_copy(model)
    addresses = [{tensor.data_ptr() for tensor in net.parameters()} for net in (model, copied)]
    assert addresses[0] == addresses[1]
    table = model.get_input_embeddings().weight
    swap_embedding(model, compress_table(table, "svd", ratio=2.5, progress=False))
    reduce_precision(model, "bfloat16")
    assert torch.equal(copied(input_ids=IDS).logits, before)
    assert not torch.allclose(model(input_ids=IDS).logits.float(), before, rtol=1e-3)
