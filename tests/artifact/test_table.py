import hashlib
import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lighttoken import CompressedTable, LighttokenError, compress_table, load_table
from lighttoken.artifact.forms import Bits
from lighttoken.artifact.packing import pack_bits, quantize
from lighttoken.artifact.table import FORMAT_VERSION, METADATA_FILE, TENSORS_FILE, hash_table
from lighttoken.codec.lighttoken.method import LightToken


def make(vocab_size=30, dim=6, rank=3, m=16) -> CompressedTable:
    bits = torch.rand(vocab_size, m) > 0.5
    left, left_scale = quantize(torch.randn(vocab_size, rank), "int4", 1)
    decoder, decoder_scale = quantize(torch.randn(m, dim), "int8", 0)
    return CompressedTable(
        codec="lighttoken_paper",
        form=Bits(),
        shape=(vocab_size, dim),
        tensors={
            "codes": pack_bits(bits),
            "left": left,
            "left.scale": left_scale,
            "right": torch.randn(rank, dim).half(),
            "decoder": decoder,
            "decoder.scale": decoder_scale,
            "bias": torch.randn(dim),
        },
        source_sha256=hash_table(torch.zeros(vocab_size, dim)),
        settings={"rank": rank},
        summary={"nmse": 0.5},
    )


def test_rows_are_the_low_rank_part_plus_the_decoded_bits_plus_the_bias():
    compressed = make()
    stored = compressed.tensors
    bits = torch.tensor([[(byte >> j) & 1 for byte in row for j in range(8)] for row in stored["codes"].tolist()])
    decoder = stored["decoder"].float() * stored["decoder.scale"]
    expected = compressed.matrix("left") @ stored["right"].float() + bits.float() @ decoder + stored["bias"]
    torch.testing.assert_close(compressed.decode(), expected)


def test_save_and_load_are_bit_exact(tmp_path):
    compressed = make()
    loaded = load_table(compressed.save(tmp_path / "new" / "artifact"))
    assert loaded.tensors.keys() == compressed.tensors.keys()
    for name, tensor in compressed.tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)
    assert torch.equal(loaded.decode(), compressed.decode())
    assert (loaded.codec, loaded.shape, loaded.settings, loaded.summary) == (
        compressed.codec,
        compressed.shape,
        compressed.settings,
        compressed.summary,
    )


def test_bytes_and_ratio_are_those_of_the_files(tmp_path):
    compressed = make(vocab_size=300)
    compressed.save(tmp_path)
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == [METADATA_FILE, TENSORS_FILE]
    assert compressed.nbytes == on_disk
    assert compressed.ratio == 300 * 6 * 4 / on_disk


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 2, 2), (0,)])
def test_ids_of_any_shape_decode_to_their_rows(shape):
    compressed = make()
    ids = torch.randint(30, shape)
    torch.testing.assert_close(compressed.decode(ids), compressed.decode()[ids])
    torch.testing.assert_close(compressed.decode(ids.tolist()), compressed.decode(ids))


@pytest.mark.parametrize("id", [-1, 30])
def test_ids_outside_the_table_are_refused(id):
    with pytest.raises(LighttokenError, match=f"from {id} to {id} are not in this table, whose ids are 0 to 29"):
        make().decode(torch.tensor([id]))


@pytest.mark.parametrize("ids", [[1.7], [True]])
def test_ids_that_are_no_integers_are_refused(ids):
    with pytest.raises(LighttokenError, match="ids of type list are no tensor: expected sequence of length 2 .*; pad"):
        make().decode([[1, 2], [3]])
    with pytest.raises(LighttokenError, match=r"ids are integers, got torch\.(float32|bool)"):
        make().decode(ids)


def damage_tensors(folder):
    content = bytearray((folder / TENSORS_FILE).read_bytes())
    content[-1] ^= 1
    (folder / TENSORS_FILE).write_bytes(content)


def truncate_tensors(folder):
    (folder / TENSORS_FILE).write_bytes((folder / TENSORS_FILE).read_bytes()[:-10])


def truncate_metadata(folder):
    (folder / METADATA_FILE).write_bytes((folder / METADATA_FILE).read_bytes()[:-10])


def foreign_metadata(folder):
    (folder / METADATA_FILE).write_text('{"model_type": "bert"}')


def foreign_list(folder):
    (folder / METADATA_FILE).write_text("[1]")


def foreign_tensors(folder):
    save_file({"weight": torch.zeros(3)}, folder / TENSORS_FILE)


def newer_format(folder):
    metadata = json.loads((folder / METADATA_FILE).read_text())
    (folder / METADATA_FILE).write_text(json.dumps(metadata | {"format_version": FORMAT_VERSION + 1}))


def change(**values):
    """Metadata that differ from what was written, with the hash that they had."""

    def harm(folder):
        metadata = json.loads((folder / METADATA_FILE).read_text())
        (folder / METADATA_FILE).write_text(json.dumps(metadata | values))

    return harm


def forge(**values):
    """Metadata that differ from what was written, with the hash that they should have."""

    def harm(folder):
        metadata = json.loads((folder / METADATA_FILE).read_text()) | values
        del metadata["sha256"]
        content = (folder / TENSORS_FILE).read_bytes() + json.dumps(metadata, separators=(",", ":")).encode()
        change(**values, sha256=hashlib.sha256(content).hexdigest())(folder)

    return harm


def without_bias(folder):
    tensors = load_file(folder / TENSORS_FILE)
    del tensors["bias"]
    save_file(tensors, folder / TENSORS_FILE)
    forge()(folder)


def with_tensors(**tensors):
    """Other tensors, with the hash that they should have."""

    def harm(folder):
        save_file(load_file(folder / TENSORS_FILE) | tensors, folder / TENSORS_FILE)
        forge()(folder)

    return harm


def large_header(folder):
    save_file({f"{i:050}": torch.zeros(0) for i in range(2000)}, folder / TENSORS_FILE)
    forge()(folder)


def missing_metadata(folder):
    (folder / METADATA_FILE).unlink()


@pytest.mark.parametrize(
    ("harm", "names", "cure"),
    [
        (damage_tensors, TENSORS_FILE, "make it again"),
        (truncate_tensors, TENSORS_FILE, "make it again"),
        (truncate_metadata, METADATA_FILE, "make it again"),
        (foreign_metadata, METADATA_FILE, "make it again"),
        (foreign_list, METADATA_FILE, "make it again"),
        (foreign_tensors, TENSORS_FILE, "make it again"),
        (newer_format, METADATA_FILE, "update lighttoken"),
        (missing_metadata, METADATA_FILE, "make one with"),
        (change(codec="svd"), METADATA_FILE, "make it again"),
        (forge(shape=[30, 7]), METADATA_FILE, "make it again"),
        (forge(shape=[31, 6]), METADATA_FILE, "make it again"),
        (forge(shape=["many", 6]), METADATA_FILE, "make it again"),
        (forge(form={"name": "trellis", "state_bits": 6}), METADATA_FILE, "make it again"),
        (forge(form={"name": "zip"}), METADATA_FILE, "make it again"),
        (forge(settings=None), METADATA_FILE, "make it again"),
        (change(format_version="1"), METADATA_FILE, ""),
        (without_bias, METADATA_FILE, "make it again"),
        (with_tensors(decoder=torch.full((16, 6), torch.nan)), METADATA_FILE, "make it again"),
        (with_tensors(**{"a\nb": torch.zeros(1)}), METADATA_FILE, "make it again"),
        (with_tensors(bias=torch.zeros(6, dtype=torch.float64)), METADATA_FILE, "make it again"),
        (forge(shape=[2**31, 6]), METADATA_FILE, "make it again"),
        (forge(format_version=None), METADATA_FILE, "make it again"),
        (forge(format_version="6\n" * 300), METADATA_FILE, "make it again"),
        (large_header, METADATA_FILE, "make it again"),
    ],
)
def test_a_bad_artifact_is_refused_with_the_file_and_the_cure(tmp_path, harm, names, cure):
    make().save(tmp_path)
    harm(tmp_path)
    with pytest.raises(LighttokenError) as caught:
        load_table(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / names) in message
    assert cure in message
    assert "\n" not in message
    assert len(message) < 200 + 2 * len(str(tmp_path / TENSORS_FILE))


def test_a_write_that_fails_keeps_the_old_artifact_and_leaves_no_debris(tmp_path):
    old = make()
    old.save(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(LighttokenError, match=rf"cannot write {tmp_path}.*File too large; free space"):
            make(vocab_size=400).save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == [METADATA_FILE, TENSORS_FILE]
    assert torch.equal(load_table(tmp_path).decode(), old.decode())


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LighttokenError, match=r"cannot make the folder .*file/artifact: Not a directory"):
        make().save(tmp_path / "file" / "artifact")


def test_hash_is_of_the_float32_values():
    table = torch.randn(4, 3)
    assert hash_table(table) == hash_table(table.T.contiguous().T)
    assert hash_table(table) != hash_table(table + 1)


def shorter(*names):
    def harm(stored):
        return stored | {name: stored[name][:-1].clone() for name in names}

    return harm


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (shorter("codes"), "codes has shape"),
        (shorter("tiers"), "tiers"),
        (shorter("gain"), "gain has shape"),
        (shorter("decoder"), "levels"),
        (lambda stored: stored | {"steps": stored["steps"] | 48}, "lead beyond the decoder's"),
        (shorter("steps"), "gain has shape"),
        (shorter("steps", "gain", "gain.scale"), "rows of tier"),
        (lambda stored: {name: t for name, t in stored.items() if name != "tiers"}, "no tensor 'tiers'"),
    ],
)
def test_a_trellis_code_that_does_not_fit_its_table_is_refused(tmp_path, table, harm, message):
    compressed = compress_table(
        table * torch.linspace(3, 0.1, 1200).unsqueeze(1), LightToken(state_bits=6, tiers=3), 16.0, progress=False
    )
    with pytest.raises(ValueError, match=message):
        replace(compressed, tensors=harm(compressed.tensors)).check()
    compressed.check()


SAMPLES = Path(__file__).parents[1] / "samples" / "format_4"


@pytest.mark.parametrize("form", ["bits", "trellis", "codebooks", "levels", "cores"])
def test_an_artifact_of_format_4_is_read_and_saved_as_the_current_one(form, tmp_path):
    compressed = load_table(SAMPLES / form)
    assert compressed.form.name == form
    rows = load_file(SAMPLES / form / "rows.safetensors")["rows"]  # of the code that made it, every 20th
    torch.testing.assert_close(compressed.decode()[::20], rows)
    saved = load_table(compressed.save(tmp_path))
    assert json.loads((tmp_path / METADATA_FILE).read_text())["format_version"] == FORMAT_VERSION
    assert torch.equal(saved.decode(), compressed.decode())


def test_a_damaged_artifact_of_format_4_is_refused(tmp_path):
    shutil.copytree(SAMPLES / "trellis", tmp_path / "trellis")
    change(state_bits=5)(tmp_path / "trellis")
    with pytest.raises(LighttokenError, match="is damaged"):
        load_table(tmp_path / "trellis")


def test_repr_is_three_lines(table, tmp_path):
    compressed = compress_table(table, "svd", ratio=4, progress=False)
    first, second, third = repr(compressed).splitlines()
    assert first == (
        f"CompressedTable: 1,200 x 32 by svd, {compressed.ratio:.2f}x smaller, {compressed.nbytes:,} bytes"
    )
    assert second == f"  form {compressed.form.name}, made with lighttoken {compressed.versions['lighttoken']}"
    assert third.startswith(f"  nmse {compressed.summary['nmse']:.4g}, weighted_nmse ")


def test_a_checkpoint_is_no_artifact_and_the_error_says_so(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LighttokenError, match="is a checkpoint, not an artifact; load it with from_pretrained"):
        load_table(tmp_path)


def test_a_module_is_compressed_as_its_table(make_model):
    model = make_model()
    embedding = model.get_input_embeddings()
    tables = [compress_table(given, "svd", ratio=3, progress=False) for given in (embedding.weight, embedding, model)]
    assert all(torch.equal(tables[0].tensors["left"], other.tensors["left"]) for other in tables[1:])
