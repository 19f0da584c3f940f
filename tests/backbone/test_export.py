"""Export: a packed embedding through torch.export and ONNX, checked against PyTorch."""

import warnings

import pytest
import torch
from transformers import AutoModelForMaskedLM

from lighttoken import Int32Embedding, compress_table, swap_embedding
from lighttoken.codec.lighttoken.method import LightToken

TRELLIS = LightToken(state_bits=6, tiers=2)  # a plan without a search
IDS = torch.arange(1, 19).view(2, 9)
OTHER_IDS = torch.arange(30, 65).view(5, 7) % 11


FORMS = [pytest.param(("svd", 2.0), id="svd", marks=pytest.mark.slow), pytest.param((TRELLIS, 2.0), id="integers")]


@pytest.fixture(params=[*FORMS, pytest.param((TRELLIS, 6.5), id="trellis")])
def model(request, make_model):
    codec, ratio = request.param
    dense = make_model()
    compressed = compress_table(dense.get_input_embeddings().weight, codec, ratio, progress=False)
    assert ("integers" in compressed.tensors) == (codec is TRELLIS and ratio == 2.0)
    return swap_embedding(dense, compressed).eval()


class LastHiddenState(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids=input_ids).last_hidden_state


DYNAMIC = {"input_ids": {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("length", min=2, max=39)}}


MODES = ["packed", pytest.param("materialized", marks=pytest.mark.slow)]


@pytest.mark.parametrize("mode", MODES)
def test_torch_export_for_any_batch(model, mode):
    model.get_input_embeddings().set_mode(mode)
    program = torch.export.export(LastHiddenState(model), (IDS,), dynamic_shapes=DYNAMIC).module()
    with torch.no_grad():
        for ids in (IDS, OTHER_IDS):
            torch.testing.assert_close(program(ids), model(ids).last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_onnx_for_any_batch(model, mode, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="install lighttoken[dev]")
    model.get_input_embeddings().set_mode(mode)
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        torch.onnx.export(LastHiddenState(model), (IDS,), path, dynamo=True, dynamic_shapes=DYNAMIC, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for ids in (IDS, OTHER_IDS):
        (hidden,) = session.run(None, {"input_ids": ids.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(hidden), model(ids).last_hidden_state, atol=1e-4, rtol=0)


def test_onnx_reads_rows_in_int32_and_float32_alone(make_model, tmp_path):
    onnx = pytest.importorskip("onnx", reason="install lighttoken[dev]")
    onnxruntime = pytest.importorskip("onnxruntime", reason="install lighttoken[dev]")
    model = make_model().eval()
    table = model.get_input_embeddings().weight
    swap_embedding(model, compress_table(table, TRELLIS, 6.5, progress=False))
    with torch.no_grad():
        expected = model(IDS).last_hidden_state
    model.set_input_embeddings(Int32Embedding(model.get_input_embeddings()))
    files = {"table": model.get_input_embeddings(), "model": LastHiddenState(model)}
    for name, module in files.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            path = tmp_path / f"{name}.onnx"
            torch.onnx.export(module, (IDS,), path, dynamo=True, dynamic_shapes=(*DYNAMIC.values(),), verbose=False)
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


class Logits(LastHiddenState):
    def forward(self, input_ids):
        return self.model(input_ids=input_ids).logits


@pytest.mark.slow
def test_a_packed_head_exports_without_gradients_for_any_batch(make_model, tmp_path):
    """Its rows are more than one chunk."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="install lighttoken[dev]")
    model = make_model("bert", AutoModelForMaskedLM, vocab_size=1200)
    swap_embedding(model, compress_table(model.get_input_embeddings().weight, TRELLIS, 2.0, progress=False))
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(Logits(model), (IDS,), dynamic_shapes=DYNAMIC).module()
        torch.onnx.export(Logits(model), (IDS,), path, dynamo=True, dynamic_shapes=DYNAMIC, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for ids in (IDS, OTHER_IDS):
            expected = model(ids).logits
            torch.testing.assert_close(program(ids), expected, atol=1e-5, rtol=1e-5)
            (logits,) = session.run(None, {"input_ids": ids.numpy()})
            torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=0)
