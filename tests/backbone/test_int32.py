"""The look-up for exports: int32 words, and the rows of the compressed embedding."""

import pytest
import torch

from lighttoken import CompressedEmbedding, Int32Embedding, LighttokenError, compress_table, swap_embedding
from lighttoken.codec.lighttoken.method import LightToken


def embedding_of(rows, dim, codec, ratio, **settings):
    table = torch.randn(rows, dim) * torch.linspace(2, 0.1, dim)
    weights = torch.logspace(-1, 1, rows)  # rows of several tiers
    return CompressedEmbedding(compress_table(table, codec, ratio, weights=weights, progress=False), **settings)


@pytest.mark.parametrize(("state_bits", "ratio"), [(4, 30.0), (6, 16.0), (12, 12.0), (16, 40.0)])
def test_rows_are_those_of_the_compressed_embedding(state_bits, ratio):
    codec = LightToken(state_bits=state_bits, predict="none")
    embedding = embedding_of(700, 32, codec, ratio, scale=3.0)
    assert len(embedding.description.summary["tier_rows"]) > 1
    ids = torch.arange(700).view(7, 100)
    torch.testing.assert_close(Int32Embedding(embedding)(ids), embedding(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("codec", ["svd", LightToken(state_bits=6)])  # the second has integers
def test_a_table_that_is_no_stream_of_windows_is_refused(codec):
    with pytest.raises(LighttokenError, match=r" at [\d.]+x cannot be read as int32 words; that takes codec=l"):
        Int32Embedding(embedding_of(700, 32, codec, 2.0))


def test_a_model_that_reads_int32_words_says_how_it_is_saved(make_model, tmp_path):
    model = make_model()
    codec = LightToken(state_bits=6, predict="none")
    swap_embedding(model, compress_table(model.get_input_embeddings().weight, codec, 12.0, progress=False))
    model.set_input_embeddings(Int32Embedding(model.get_input_embeddings()))
    with pytest.raises(LighttokenError, match="embedding is a Int32Embedding; put the CompressedEmbedding back with"):
        model.save_pretrained(tmp_path)
