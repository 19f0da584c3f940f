import copy
import math
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jaxtyping
import lightning as L
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, MobileBertConfig

from lighttoken import CompressedEmbedding, LighttokenError, compress_table, swap_embedding
from lighttoken.artifact.packing import unpack_bits
from lighttoken.backbone.embedding import CompressedHead, set_trainable
from lighttoken.codec.lighttoken.method import LightToken
from lighttoken.codec.paper.method import LightTokenPaper

TRAINER = partial(L.Trainer, max_steps=20, accelerator="cpu", devices=1, log_every_n_steps=20)
QUICK = LightTokenPaper(rank=2, stage_bits=24, batch_size=64, trainer=TRAINER)
TRELLIS = LightToken(state_bits=6, tiers=2)  # a plan without a search


@pytest.fixture
def coded(table):
    """With codes in it as well as factors."""
    return compress_table(table, QUICK, 6.0, progress=False)


@pytest.fixture
def trellis(table):
    """With a trellis code of several tiers."""
    table = table * torch.linspace(3, 0.1, len(table)).unsqueeze(1)
    compressed = compress_table(table, TRELLIS, 16.0, progress=False)
    assert len(compressed.tensors["steps"]) > 1
    return compressed


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 2, 2)])
@pytest.mark.parametrize("codec", ["coded", "trellis"])
def test_looks_up_the_rows_of_the_compressed_table(request, codec, shape):
    ids, compressed = torch.randint(1200, shape), request.getfixturevalue(codec)
    torch.testing.assert_close(CompressedEmbedding(compressed)(ids), compressed.decode(ids))


def test_ids_of_32_bits_are_read_like_those_of_64_in_a_call_of_many(monkeypatch, trellis):
    monkeypatch.setattr("lighttoken.artifact.compiled.LEAST_NUMBERS", 1)  # so that it is compiled
    ids, embedding = torch.randint(1200, (300,)), CompressedEmbedding(trellis)
    assert torch.equal(embedding(ids.int()), embedding(ids))


def test_processes_can_send_each_other_the_buffers_of_a_fine_decoder(table):
    embedding = CompressedEmbedding(compress_table(table, TRELLIS, 5.0, progress=False))
    assert int(embedding.index_levels.abs().max()) > 127
    assert torch.int16 not in {buffer.dtype for buffer in embedding.buffers()}  # which torch.distributed cannot send


def test_a_padding_row_is_counted_from_the_end_as_in_a_dense_embedding(trellis):
    assert CompressedEmbedding(trellis, padding_idx=-1).padding_idx == 1199
    assert CompressedEmbedding(trellis, padding_idx=0).padding_idx == 0
    assert CompressedEmbedding(trellis).padding_idx is None


@pytest.mark.parametrize("codec", ["coded", "trellis"])
def test_weight_is_the_decoded_table(request, codec):
    compressed = request.getfixturevalue(codec)
    torch.testing.assert_close(CompressedEmbedding(compressed).weight, compressed.decode())


@pytest.mark.parametrize("codec", ["svd", QUICK, TRELLIS])
def test_swapping_equals_overwriting_the_table(make_model, architecture, codec):
    model = make_model(architecture)
    compressed = compress_table(model.get_input_embeddings().weight, codec, 2.0, progress=False)
    assert codec == "svd" or compressed.summary["bits_per_row"] > 0
    overwritten = copy.deepcopy(model)
    overwritten.get_input_embeddings().weight.data = compressed.decode()
    swap_embedding(model, compressed)
    assert isinstance(model.get_input_embeddings(), CompressedEmbedding)
    ids = torch.randint(1, 200, (3, 9))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        outputs = [m(input_ids=ids, attention_mask=mask).last_hidden_state for m in (model, overwritten)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("codec", "trainable", "moving"),
    [
        ("coded", "frozen", set()),
        ("coded", "decoder", {"decoder", "bias"}),
        ("coded", "decoder+factors", {"decoder", "bias", "left", "right"}),
        ("trellis", "frozen", set()),
        ("trellis", "decoder", {"decoder", "bias"}),
        ("trellis", "decoder+factors", {"decoder", "bias", "gain"}),
    ],
)
def test_a_training_step_moves_what_is_trainable_and_nothing_else(request, codec, trainable, moving):
    model = nn.Sequential(CompressedEmbedding(request.getfixturevalue(codec)), nn.Linear(32, 1))
    set_trainable(model[0], trainable)
    before = copy.deepcopy(model[0].state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.0)
    model(torch.arange(64)).square().mean().backward()
    optimizer.step()
    moved = {
        name.removeprefix("trained.")
        for name, value in model[0].state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == moving


@pytest.mark.parametrize(("trainable", "trained"), [("frozen", False), ("decoder", True), ("decoder+factors", True)])
def test_a_dense_embedding_has_one_weight_to_train(trainable, trained):
    dense = nn.Embedding(5, 3)
    set_trainable(dense, trainable)
    assert dense.weight.requires_grad is trained


def test_unknown_trainable_names_the_choices(coded):
    with pytest.raises(LighttokenError, match=r"trainable='all'; choose one of frozen, decoder, decoder\+factors"):
        set_trainable(CompressedEmbedding(coded), "all")


def test_gradients_are_those_of_the_overwritten_table(coded):
    embedding = CompressedEmbedding(coded)
    set_trainable(embedding, "decoder+factors")
    ids, target = torch.tensor([[3, 7, 3]]), torch.randn(32)
    (embedding(ids) * target).sum().backward()
    trained = embedding.trained
    bits = unpack_bits(coded.tensors["codes"], len(trained["decoder"])).float()
    torch.testing.assert_close(trained["decoder"].grad, torch.outer(2 * bits[3] + bits[7], target))
    torch.testing.assert_close(trained["left"].grad[3], 2 * coded.matrix("right") @ target)


def test_the_padding_row_sends_no_gradient_back(coded):
    embedding = CompressedEmbedding(coded, padding_idx=3)
    set_trainable(embedding, "decoder+factors")
    embedding(torch.tensor([3, 3])).sum().backward()
    assert all(parameter.grad.abs().sum() == 0 for parameter in embedding.parameters())
    embedding(torch.tensor([3, 4])).sum().backward()
    assert embedding.trained["bias"].grad.tolist() == [1.0] * 32


def test_autocast_does_not_round_the_rows(coded):
    embedding, ids = CompressedEmbedding(coded), torch.arange(9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(embedding(ids), CompressedEmbedding(coded)(ids))
        assert embedding(ids).dtype == torch.float32


@pytest.mark.parametrize("codec", ["coded", "trellis"])
def test_state_dict_and_deep_copy_keep_every_row(request, codec):
    coded = request.getfixturevalue(codec)
    embedding = CompressedEmbedding(coded)
    fresh = CompressedEmbedding(coded)
    for tensor in (*fresh.parameters(), *fresh.buffers()):
        nn.init.zeros_(tensor)
    fresh.load_state_dict(embedding.state_dict())
    assert torch.equal(fresh.weight, embedding.weight)
    assert torch.equal(copy.deepcopy(embedding).weight, embedding.weight)


def test_repr_tells_the_shape_and_the_ratio(coded):
    bits = coded.summary["bits_per_row"]
    expected = f"CompressedEmbedding(1200, 32, bits_per_row={bits:.1f}, ratio={coded.ratio:.1f})"
    assert repr(CompressedEmbedding(coded)) == expected


def test_another_models_table_is_refused(make_model, coded):
    with pytest.raises(LighttokenError, match="compressed table is 1200 x 32 and the model's is 200 x 32"):
        swap_embedding(make_model("bert", AutoModel), coded)


@pytest.mark.parametrize("codec", ["coded", "trellis"])
def test_what_was_trained_is_stored_in_the_same_bytes(request, codec):
    compressed = request.getfixturevalue(codec)
    embedding = CompressedEmbedding(compressed)
    set_trainable(embedding, "decoder+factors")
    for parameter in embedding.parameters():
        parameter.data += 0.1 * parameter.abs().mean() * torch.randn_like(parameter)
    trained = embedding.compressed_table()
    assert {name: tensor.dtype for name, tensor in trained.tensors.items()} == {
        name: tensor.dtype for name, tensor in compressed.tensors.items()
    }
    assert not torch.equal(trained.decode(), compressed.decode())
    torch.testing.assert_close(embedding.weight.detach(), trained.decode())
    before = embedding.weight.detach()
    set_trainable(embedding, "frozen")  # stores it
    assert not list(embedding.parameters())
    torch.testing.assert_close(embedding.weight, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("codec", ["coded", "trellis"])
def test_a_cast_changes_the_rows_precision_and_nothing_that_is_stored(request, codec, dtype):
    compressed = request.getfixturevalue(codec)
    embedding, ids = CompressedEmbedding(compressed).to(dtype), torch.arange(1200)
    rows = CompressedEmbedding(compressed)(ids)
    assert torch.equal(embedding(ids), rows.to(dtype))
    assert torch.equal(embedding.float()(ids), rows)


@pytest.mark.parametrize("codec", ["coded", "trellis"])
def test_materialized_it_gives_the_same_rows_and_the_same_state(request, codec):
    compressed = request.getfixturevalue(codec)
    packed, dense = CompressedEmbedding(compressed, scale=3.0), CompressedEmbedding(compressed, scale=3.0)
    dense.set_mode("materialized")
    ids = torch.randint(1200, (4, 7))
    torch.testing.assert_close(dense(ids), packed(ids))
    assert dense.state_dict().keys() == packed.state_dict().keys()
    set_trainable(dense, "decoder")
    assert dense.mode == "packed"
    with pytest.raises(LighttokenError, match="mode=materialized has nothing to train"):
        dense.set_mode("materialized")
    with pytest.raises(LighttokenError, match="unknown mode='fast'; choose one of packed, cached, materialized, int8"):
        packed.set_mode("fast")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_int8_a_row_differs_by_half_a_level_and_the_head_multiplies_the_same_rows(trellis, dtype):
    exact, embedding = CompressedEmbedding(trellis), CompressedEmbedding(trellis).to(dtype)
    embedding.set_mode("int8")
    ids, rows = torch.arange(1200), exact.weight
    level = rows.abs().amax(1, keepdim=True) / 127
    rounding = rows.abs() * torch.finfo(dtype).eps * 2
    assert bool(((embedding(ids).float() - rows).abs() <= level * 0.51 + rounding).all())
    vectors = torch.randn(2, 3, 32, dtype=dtype)
    products = vectors.float() @ (embedding.table.float() * embedding.table_scale.float()).T
    torch.testing.assert_close(embedding.project(vectors), products.to(dtype))
    assert embedding.table.nbytes == 1200 * 32
    assert embedding.state_dict().keys() == exact.state_dict().keys()
    assert torch.equal(copy.deepcopy(embedding)(ids), embedding(ids))
    embedding.set_mode("packed")
    assert torch.equal(embedding(ids), rows.to(dtype))


@pytest.mark.parametrize("rows", [1, 20, 300, 5000])
def test_cached_it_gives_the_same_rows_whatever_fits(trellis, rows):
    packed, cached = CompressedEmbedding(trellis, scale=3.0), CompressedEmbedding(trellis, scale=3.0)
    cached.set_mode("cached", megabytes=rows * 4 * trellis.shape[1] / 1e6)
    for size in (1, 15, 40, 15, 200, 1):
        ids = torch.randint(size * 6, (2, size))
        assert torch.equal(cached(ids), packed(ids))
    assert torch.equal(cached.to(torch.bfloat16).float()(ids), packed(ids))
    assert cached.state_dict().keys() == packed.state_dict().keys()
    assert torch.equal(copy.deepcopy(cached)(ids), packed(ids))


def test_a_move_within_inference_mode_leaves_a_cache_that_serves_outside_of_it(trellis):
    embedding, weight = CompressedEmbedding(trellis, mode="cached"), CompressedEmbedding(trellis).weight.detach()
    embedding(torch.arange(50))
    kept = embedding.cache
    assert embedding.to("cpu").cache is kept  # as it was: nothing to decode again
    assert kept.used == 50
    with torch.inference_mode():
        embedding.to(torch.bfloat16)
        embedding(torch.arange(20))
    assert torch.equal(embedding(torch.arange(50)), weight[:50].bfloat16())


def test_threads_share_a_cache(trellis):
    embedding, weight = CompressedEmbedding(trellis), CompressedEmbedding(trellis).weight
    embedding.set_mode("cached", megabytes=0.01)
    batches = [torch.randint(1200, (40,)) for _ in range(400)]
    with ThreadPoolExecutor(4) as pool:
        for ids, rows in zip(batches, pool.map(embedding, batches), strict=True):
            assert torch.equal(rows, weight[ids])


def test_a_cache_holds_all_rows_is_not_sent_and_takes_no_ids(trellis):
    embedding = CompressedEmbedding(trellis, mode="cached")
    embedding.set_mode("cached", megabytes=math.inf)
    full = embedding(torch.arange(1200))
    assert embedding(torch.empty(2, 0, dtype=torch.long)).shape == (2, 0, 32)
    again = pickle.loads(pickle.dumps(embedding))
    assert (again.cache.used, embedding.cache.used) == (0, 1200)
    assert torch.equal(again(torch.arange(1200)), full)


def test_cached_rows_are_decoded_once(trellis, monkeypatch):
    decoded = []
    embedding = CompressedEmbedding(trellis, mode="cached")
    decode = embedding._rows
    monkeypatch.setattr(embedding, "_rows", lambda ids: decoded.append(ids.tolist()) or decode(ids))
    for ids in ([[3, 1, 3]], [[1, 3]], [[1, 5]]):
        embedding(torch.tensor(ids))
    assert decoded == [[1, 3], [5]]


def test_a_cache_refuses_what_it_cannot_do(trellis):
    embedding = CompressedEmbedding(trellis)
    for megabytes in (1e-4, math.nan):
        with pytest.raises(LighttokenError, match=rf"megabytes={megabytes:g} do not hold a row of \d+ bytes"):
            embedding.set_mode("cached", megabytes=megabytes)
        assert embedding.mode == "packed"
    set_trainable(embedding, "decoder")
    with pytest.raises(LighttokenError, match="mode=cached has nothing to train"):
        embedding.set_mode("cached")
    set_trainable(embedding, "frozen")
    embedding.set_mode("cached")
    with pytest.raises(IndexError, match="ids from -1 to 3 are not in this table"):
        embedding(torch.tensor([-1, 3]))


def test_packed_it_takes_the_memory_of_the_artifact(trellis):
    buffers = sum(tensor.numel() * tensor.element_size() for tensor in CompressedEmbedding(trellis).buffers())
    index = sum(tensor.numel() * tensor.element_size() for tensor in trellis.index.values())
    stored = sum(tensor.numel() * tensor.element_size() for tensor in trellis.tensors.values())
    assert buffers == stored + index
    rows = len(trellis.tensors["decoder"]) * len(trellis.tensors["steps"])
    layout = 1200 + 32 + 8 * (1200 // 32 + 1) + 8 * 16 + 9 * rows + 2 * 8 * 64  # tiers, blocks, layout, codebook
    integers = 8 * 1201 + 8 * rows + 8 * len(trellis.tensors["steps"]) + 8 * 200  # starts of rows, layout
    assert index <= layout + integers


def test_it_compiles_and_gives_the_same_rows(trellis, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # the compiler cannot trace the checks of shapes
    embedding, ids = CompressedEmbedding(trellis), torch.tensor([[3, 7], [3, 900]])
    compiled = torch.compile(embedding, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(ids), embedding(ids))


@pytest.mark.parametrize("codec", ["coded", "trellis"])
def test_ids_that_the_table_does_not_have_are_refused_as_a_dense_embedding_refuses_them(request, codec):
    embedding = CompressedEmbedding(request.getfixturevalue(codec))
    for wrong in (-1, 1200, 1203):  # what fills up the last block of codes decodes to something, too
        with pytest.raises(IndexError, match=r"not in this table, whose ids are 0 to 1199"):
            embedding(torch.tensor([3, wrong]))
    assert embedding(torch.empty(0, dtype=torch.long)).shape == (0, 32)


@pytest.mark.parametrize("codec", ["coded", "trellis"])
def test_it_can_be_pickled_as_processes_that_share_a_model_do(request, codec):
    embedding = CompressedEmbedding(request.getfixturevalue(codec))
    ids = torch.arange(1200)
    assert torch.equal(pickle.loads(pickle.dumps(embedding))(ids), embedding(ids))
    torch.save(embedding, "embedding.pt")
    assert torch.equal(torch.load("embedding.pt", weights_only=False)(ids), embedding(ids))


class Sum(nn.Module):
    """The sum of the rows of two embeddings, through a layer."""

    def __init__(self, *embeddings):
        super().__init__()
        self.embeddings, self.layer = nn.ModuleList(embeddings), nn.Linear(32, 2)

    def forward(self, ids):
        return self.layer(sum(embedding(ids) for embedding in self.embeddings))


def run_distributed(rank: int, model: nn.Module, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # no network is needed
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    both = torch.nn.parallel.DistributedDataParallel(model)
    for step in range(2):
        both(torch.arange(5) + 10 * rank + step).square().sum().backward()
    gradients = [parameter.grad for parameter in both.parameters()]
    torch.save(gradients, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_it_trains_in_several_processes(coded, trellis, tmp_path):
    """The processes send all buffers to each other, once."""
    model = Sum(CompressedEmbedding(coded), CompressedEmbedding(trellis))
    for embedding in model.embeddings:
        set_trainable(embedding, "decoder")
    arguments = (model, str(tmp_path))
    processes = torch.multiprocessing.spawn(run_distributed, arguments, nprocs=2, join=False, daemon=True)
    ended = [processes.join(timeout=120) for _ in range(2)]  # the first process, then both
    assert ended[-1], "the processes wait for each other"
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert len(first) == len(list(model.parameters()))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
        assert one.any()


def test_no_positions_have_no_logits(trellis):
    assert CompressedEmbedding(trellis).project(torch.empty(0, 32)).shape == (0, 1200)


@pytest.mark.parametrize("codec", ["svd", QUICK, TRELLIS])
def test_the_default_device_makes_no_difference(table, codec):
    plain = compress_table(table, codec, 6.0, progress=False)
    with torch.device("meta"):  # where whatever is made without a device has no numbers
        compressed = compress_table(table, codec, 6.0, progress=False)
        rows = compressed.decode(torch.arange(1200, device="cpu"))
    assert compressed.tensors.keys() == plain.tensors.keys()
    assert torch.equal(rows, plain.decode())


def test_a_forward_pass_reads_the_buffers_that_it_is_given(trellis):
    embedding = CompressedEmbedding(trellis)
    buffers = embedding.state_dict()
    given = buffers | {"bias": torch.zeros_like(buffers["bias"])}
    ids = torch.arange(5)
    moved = embedding(ids) - torch.func.functional_call(embedding, given, (ids,))
    torch.testing.assert_close(moved, trellis.matrix("bias").expand(5, -1))


@pytest.mark.parametrize("codec", ["coded", "trellis"])
def test_a_smaller_precision_of_the_model_does_not_round_what_is_trained(request, codec):
    embedding = CompressedEmbedding(request.getfixturevalue(codec))
    set_trainable(embedding, "decoder")
    with torch.no_grad():
        for master in embedding.trained.values():
            master.mul_(1 + 0.1 * torch.rand_like(master))
    before = embedding.compressed_table().tensors
    after = embedding.bfloat16().compressed_table().tensors
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert embedding(torch.arange(3)).dtype == torch.bfloat16


def test_a_swapped_model_keeps_its_size_and_says_so(make_model):
    model = make_model()
    swap_embedding(model, compress_table(model.get_input_embeddings().weight, "svd", 2, progress=False))
    embedding = model.get_input_embeddings()
    assert model.resize_token_embeddings() is embedding
    assert model.resize_token_embeddings(200) is embedding
    with pytest.raises(LighttokenError, match="200 rows cannot be resized to 208; add tokens and resize the original"):
        model.resize_token_embeddings(208)
    assert copy.deepcopy(model).resize_token_embeddings(200) is not embedding


def test_training_a_frozen_embedding_is_refused_where_it_would_do_nothing(trellis):
    embedding = CompressedEmbedding(trellis)
    embedding.requires_grad_(False)
    with pytest.raises(LighttokenError, match="trains nothing: call lighttoken.set_trainable"):
        embedding.requires_grad_(True)
    with pytest.warns(UserWarning, match="out of PEFT's modules_to_save"):
        copy.deepcopy(embedding)
    set_trainable(embedding, "decoder")
    assert all(parameter.requires_grad for parameter in embedding.requires_grad_(True).parameters())


def test_a_head_that_computes_with_its_weight_works_and_trains():
    config = MobileBertConfig(
        vocab_size=200,
        hidden_size=32,
        embedding_size=16,
        intra_bottleneck_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_feedforward_networks=1,
    )
    model = AutoModelForMaskedLM.from_config(config).eval()
    compressed = compress_table(model.get_input_embeddings().weight, "svd", 2, progress=False)
    dense = copy.deepcopy(model)
    dense.get_input_embeddings().weight.data.copy_(compressed.decode())
    swap_embedding(model, compressed)
    ids = torch.randint(4, 200, (2, 9))
    torch.testing.assert_close(model(ids).logits, dense(ids).logits)
    set_trainable(model.get_input_embeddings(), "decoder")
    assert CompressedHead(model.get_input_embeddings(), None).weight.requires_grad


def test_a_traced_embedding_takes_other_ids(trellis, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # sizes are tensors while a graph is traced
    embedding = CompressedEmbedding(trellis)
    traced = torch.jit.trace(embedding, torch.randint(1200, (2, 5)))
    ids = torch.randint(1200, (3, 7))
    assert torch.equal(traced(ids), embedding(ids))
