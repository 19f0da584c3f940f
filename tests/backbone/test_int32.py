"""The look-up for exports: int32 words, and the rows of the compressed embedding."""

import warnings

import pytest
import torch
from torch import nn

from lighttoken import CompressedEmbedding, Int32Embedding, LighttokenError, compress_table, swap_embedding
from lighttoken.codec.lighttoken.method import LightToken

IDS = torch.arange(1, 19).view(2, 9)


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
    with pytest.raises(LighttokenError, match=r" at 2\..x cannot be read as int32 words; that takes codec=lighttoken"):
        Int32Embedding(embedding_of(700, 32, codec, 2.0))


class LastHiddenState(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids=input_ids).last_hidden_state


def test_onnx_reads_rows_in_int32_and_float32_alone(make_model, tmp_path):
    onnx = pytest.importorskip("onnx", reason="install lighttoken[dev]")
    onnxruntime = pytest.importorskip("onnxruntime", reason="install lighttoken[dev]")
    model = make_model().eval()
    table = model.get_input_embeddings().weight
    swap_embedding(model, compress_table(table, LightToken(state_bits=6, tiers=2), 6.5, progress=False))
    with torch.no_grad():
        expected = model(IDS).last_hidden_state
    model.set_input_embeddings(Int32Embedding(model.get_input_embeddings()))
    files = {"table": model.get_input_embeddings(), "model": LastHiddenState(model)}
    sizes = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("length", min=2, max=39)}
    for name, module in files.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            path = tmp_path / f"{name}.onnx"
            torch.onnx.export(module, (IDS,), path, dynamo=True, dynamic_shapes=(sizes,), verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    hidden = session.run(None, {session.get_inputs()[0].name: IDS.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(hidden), expected, atol=1e-4, rtol=0)

    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "table.onnx")).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input]}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    shapes = {"Shape", "Concat", "Reshape", "Slice", "Squeeze", "Unsqueeze"}  # whose sizes and places are int64
    known = {onnx.TensorProto.FLOAT, onnx.TensorProto.INT32}
    for node in graph.node:
        used = {types[name] for name in [*node.input, *node.output] if name in types}
        of_ids = node.op_type == "Cast" and node.input[0] == graph.input[0].name
        assert used <= known or node.op_type in shapes or of_ids, (node.op_type, used)
        assert not used & {onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT16}
        assert not node.op_type.startswith("Bit")
    assert max(tensor.ByteSize() for tensor in graph.initializer) < 256 * 2**20
