import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from lighttoken import LighttokenError, compress_table, swap_embedding
from lighttoken.artifact.table import ERRORS, FORMAT_VERSION
from lighttoken.backbone.checkpoint import StoredConfig, read_checkpoint
from lighttoken.backbone.embedding import CompressedHead, set_trainable
from lighttoken.codec.lighttoken.method import LightToken

SAMPLES = Path(__file__).parents[1] / "samples" / "format_4"
IDS = torch.arange(1, 19).view(2, 9)
TRELLIS = LightToken(state_bits=6, tiers=2)  # a plan without a search


def swapped(model, codec=TRELLIS):
    return swap_embedding(model, compress_table(model.get_input_embeddings().weight, codec, 2.0, progress=False))


@torch.no_grad()
def outputs(model):
    return model.eval()(IDS)[0]


def test_the_body_of_a_checkpoint_with_a_head_loads_too(make_model, architecture, tmp_path):
    model = swapped(make_model(architecture, AutoModelForSequenceClassification))
    model.save_pretrained(tmp_path)
    body = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(body.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_a_masked_language_model_starts_from_a_classifier_with_its_head_over_the_compressed_table(make_model, tmp_path):
    model = swapped(make_model("bert", AutoModelForSequenceClassification))
    model.save_pretrained(tmp_path)
    head = AutoModelForMaskedLM.from_pretrained(tmp_path).get_output_embeddings()
    assert isinstance(head, CompressedHead)
    assert torch.equal(head.embedding.weight, model.get_input_embeddings().weight)


def test_the_file_is_smaller_by_what_the_table_saves(make_model, tmp_path):
    dense = make_model()
    table = dense.get_input_embeddings().weight.detach()
    dense.save_pretrained(tmp_path / "dense")
    compressed = compress_table(table, TRELLIS, 4.0, progress=False)
    swap_embedding(dense, compressed).save_pretrained(tmp_path / "packed")
    before, after = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("dense", "packed"))
    stored = sum(tensor.numel() * tensor.element_size() for tensor in compressed.tensors.values())
    headers = [8 + int.from_bytes(content[:8], "little") for content in (before, after)]  # names and shapes
    assert (len(before) - headers[0]) - (len(after) - headers[1]) == table.numel() * 4 - stored


def test_shards_subfolders_and_half_precision_load(make_model, tmp_path):
    model = swapped(make_model())
    model.save_pretrained(tmp_path / "sub", max_shard_size="10KB")
    assert len(list((tmp_path / "sub").glob("*.safetensors"))) > 1
    loaded = AutoModel.from_pretrained(tmp_path, subfolder="sub", dtype=torch.bfloat16, device_map="cpu")
    embedding = loaded.get_input_embeddings()
    assert embedding(IDS).dtype == loaded(IDS)[0].dtype == torch.bfloat16
    assert torch.equal(embedding(IDS), model.get_input_embeddings()(IDS).bfloat16())


def test_what_was_trained_is_saved(make_model, tmp_path):
    model = swapped(make_model("bert", AutoModelForSequenceClassification))
    set_trainable(model.get_input_embeddings(), "decoder")
    before = outputs(model)
    for parameter in model.get_input_embeddings().parameters():
        parameter.data *= 1.3
    assert not torch.equal(outputs(model), before)
    model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(outputs(loaded), outputs(model))


def test_a_trained_table_names_no_errors(make_model, tmp_path):
    model = swapped(make_model())
    embedding = model.get_input_embeddings()
    summary = embedding.compressed_table().summary
    assert set(ERRORS) <= summary.keys()
    set_trainable(embedding, "decoder")
    set_trainable(embedding, "frozen")  # what was trained is stored, and stays
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).get_input_embeddings().compressed_table()
    assert loaded.summary.keys() == summary.keys() - set(ERRORS)
    assert "no errors measured" in repr(loaded)


def test_a_deep_copy_saves_and_loads(make_model, tmp_path):
    model = swapped(make_model())
    copy.deepcopy(model).save_pretrained(tmp_path)
    assert torch.equal(outputs(AutoModel.from_pretrained(tmp_path)), outputs(model))


LOAD = "from transformers import AutoModel; AutoModel.from_pretrained({folder!r})"


@pytest.mark.slow
@pytest.mark.parametrize(
    "order", ["import lighttoken; " + LOAD, "import transformers.modeling_utils, lighttoken; " + LOAD]
)
def test_lighttoken_may_be_imported_before_or_after_transformers(make_model, tmp_path, order):
    swapped(make_model()).save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", order.format(folder=str(tmp_path))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_lighttoken_the_load_fails_instead_of_drawing_a_random_table(make_model, tmp_path):
    # The codes of `scalar` are as many as the numbers of the dense table.
    for name, codec in (("trellis", TRELLIS), ("svd", "svd"), ("scalar", "scalar")):
        swapped(make_model(), codec).save_pretrained(tmp_path / name)
    code = """
from transformers import AutoModel
for name in ("trellis", "svd", "scalar"):
    try:
        AutoModel.from_pretrained(name)
        print(name, "loaded")
    except RuntimeError as error:
        print(name, "size mismatch" in str(error) or "ignore_mismatched_sizes" in str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "trellis True\nsvd True\nscalar True\n", done.stderr


def test_a_newer_or_mismatched_checkpoint_is_refused(make_model, tmp_path):
    swapped(make_model()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    newer = config["quantization_config"] | {"format_version": FORMAT_VERSION + 1}
    path.write_text(json.dumps(config | {"quantization_config": newer}))
    with pytest.raises(LighttokenError, match=f"format version {FORMAT_VERSION + 1}.*update lighttoken"):
        AutoModel.from_pretrained(tmp_path)
    path.write_text(json.dumps(config | {"vocab_size": 150}))
    with pytest.raises(LighttokenError, match="compressed table is 200 x 32 and the model's is 150 x 32"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("damage", ["codes", "bias", "steps", "summary", "tie", "tie is missing", "form"])
def test_a_table_that_is_not_the_one_that_was_saved_is_refused(make_model, tmp_path, damage):
    swapped(make_model()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    description = config["quantization_config"]
    if damage in ("codes", "bias", "steps"):
        tensors = load_file(tmp_path / "model.safetensors")
        name = "weight" if damage == "codes" else damage
        tensors[f"embeddings.word_embeddings.{name}"].view(torch.uint8).flatten()[-1] ^= 1
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    elif damage == "tie is missing":
        del description["tie"]
    else:
        description[damage] = {"summary": {}, "tie": "untie", "form": {"name": "trellis", "state_bits": 5}}[damage]
    path.write_text(json.dumps(config))
    with pytest.raises(
        LighttokenError, match="damaged: it does not have the hash|lacks tie; make the checkpoint again"
    ):
        AutoModel.from_pretrained(tmp_path)


def test_a_checkpoint_of_format_4_is_read_and_saved_as_the_current_one(tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(SAMPLES / "checkpoint").eval()
    rows = load_file(SAMPLES / "checkpoint_rows.safetensors")["rows"]  # of the code that made it, every 20th
    torch.testing.assert_close(model.get_input_embeddings().weight[::20], rows)
    assert torch.equal(read_checkpoint(SAMPLES / "checkpoint").decode()[::20], rows)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert (config["format_version"], config["form"]["name"]) == (FORMAT_VERSION, "trellis")
    assert "state_bits" not in config
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(IDS[:, :8]).logits, model(IDS[:, :8]).logits)


def test_a_model_changes_its_precision_as_others_do(make_model, tmp_path):
    model = swapped(make_model())
    model.save_pretrained(tmp_path)
    for loaded in (model, AutoModel.from_pretrained(tmp_path)):
        rows = loaded.get_input_embeddings()(IDS)
        assert loaded.half().get_input_embeddings()(IDS).dtype == torch.float16
        assert torch.equal(loaded.float().get_input_embeddings()(IDS), rows)


def test_a_damaged_shard_is_refused(make_model, tmp_path):
    swapped(make_model()).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Exception, match=r"model\.safetensors|incomplete|deserializ"):
        AutoModel.from_pretrained(tmp_path)


BAD_DESCRIPTIONS = [
    *({"format_version": version} for version in (None, "5", True)),
    *({"shape": shape} for shape in ([], {}, [200], [2**40, 32], [True, 32])),
    *({"tensors": tensors} for tensors in (None, [], {"codes": None}, {"codes": ["matmul", [1]]})),
    {"tensors": {"codes": ["uint8", [2**40]]}},
    *({"tie": tie} for tie in ("both", [], None)),
    {"form": {"name": "trellis", "state_bits": 6.0}},
    {"settings": {"ratio": float("nan")}},
    {"summary": None},
    {"self": 1},
    {"to_dict": 1},
]


@pytest.mark.parametrize("change", BAD_DESCRIPTIONS, ids=str)
def test_a_description_of_no_table_is_refused_by_both_readers(tmp_path, change):
    folder = shutil.copytree(SAMPLES / "checkpoint", tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    description = config["quantization_config"]
    if isinstance(change.get("tensors"), dict):
        change = {"tensors": description["tensors"] | change["tensors"]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": description | change}))
    for read in (read_checkpoint, AutoModelForMaskedLM.from_pretrained):
        with pytest.raises(LighttokenError) as caught:
            read(folder)
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 300
        assert "make it again" in str(caught.value)


@pytest.mark.parametrize("damage", ["missing", "shape", "type", "nan"])
def test_stored_tensors_that_do_not_fit_are_refused_by_both_readers(tmp_path, damage):
    folder = shutil.copytree(SAMPLES / "checkpoint", tmp_path / "checkpoint")
    tensors, name = load_file(folder / "model.safetensors"), "bert.embeddings.word_embeddings.gain_scale"
    scale = tensors.pop(name)
    if damage != "missing":
        nan = torch.full_like(scale.view(torch.float32), torch.nan).view(torch.int32)
        tensors[name] = {"shape": scale.flatten(), "type": scale.view(torch.float32), "nan": nan}[damage]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if damage == "nan":
        fit_hash(folder, tensors)
    expected = {"missing": "embeddings instead of one", "nan": "gain.scale has NaN"}.get(damage, "gain_scale has")
    for read in (read_checkpoint, AutoModelForMaskedLM.from_pretrained):
        with pytest.raises(LighttokenError, match=f"damaged .*{expected}.*make it again"):
            read(folder)


def fit_hash(folder, tensors):
    """Give a checkpoint of the sample the hash that its tensors should have."""
    config = json.loads((folder / "config.json").read_text())
    description = StoredConfig(**config["quantization_config"])
    own = {name.rpartition("word_embeddings.")[2]: tensor for name, tensor in tensors.items()}
    stored = {
        name: own["weight" if name == "codes" else name.replace(".", "_")].view(getattr(torch, dtype)).view(shape)
        for name, (dtype, shape) in description.tensors.items()
    }
    config["quantization_config"]["sha256"] = description.digest(stored)
    (folder / "config.json").write_text(json.dumps(config))


def test_what_is_no_compressed_checkpoint_is_named(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    for value in (None, [], "lighttoken", {"quant_method": "other"}):
        config = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": value}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(LighttokenError, match="has no compressed table; compress it with lighttoken.compress"):
            read_checkpoint(tmp_path)


def test_the_recorded_tie_decides_whatever_a_library_writes_into_the_config(make_model, tmp_path):
    """PEFT's merge compares the addresses of both weights and sets tie_word_embeddings to False."""
    model = swapped(make_model("bert", AutoModelForMaskedLM))
    ids = torch.randint(4, 200, (2, 9))
    expected = model(ids).logits
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path)
    again, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    torch.testing.assert_close(again.eval()(ids).logits, expected)
    with pytest.raises(LighttokenError, match="tie_word_embeddings=False contradicts it; leave that out"):
        AutoModelForMaskedLM.from_pretrained(tmp_path, tie_word_embeddings=False)


def test_a_body_that_was_swapped_gets_the_head_that_its_config_says(make_model, tmp_path):
    for tie in (True, False):
        swapped(make_model("bert", tie_word_embeddings=tie)).save_pretrained(tmp_path / str(tie))
        with_head = AutoModelForMaskedLM.from_pretrained(tmp_path / str(tie))
        assert isinstance(with_head.get_output_embeddings(), CompressedHead) == tie


def test_offloaded_buffers_are_refused_when_the_model_is_loaded(make_model, tmp_path):
    swapped(make_model()).save_pretrained(tmp_path / "DIR")
    places = {"embeddings": "disk", "encoder": "cpu", "pooler": "cpu"}
    settings = {"device_map": places, "offload_folder": str(tmp_path / "offloaded")}
    with pytest.raises(LighttokenError, match="offload_buffers=True keeps the compressed table out of memory; put"):
        AutoModel.from_pretrained(tmp_path / "DIR", **settings, offload_buffers=True)
    with pytest.raises(LighttokenError, match="device_map or .* keeps the compressed table out of memory; put the em"):
        AutoModel.from_pretrained(tmp_path / "DIR", device_map="meta")
