import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoConfig, BertConfig

from lighttoken.backbone.source import Backbone
from lighttoken.codec.baselines.svd import SVD
from lighttoken.run.artifacts import artifact_key, code_hash, reached_files


def test_the_code_of_a_codec_is_what_it_imports_and_what_makes_the_importance():
    files = reached_files(["lighttoken.codec.baselines.opq", "lighttoken.codec", "lighttoken.run.importance"])
    own = {"codec.baselines.opq", "codec.baselines.pq", "codec.baselines.quantizer"}
    shared = {"artifact.forms", "artifact.packing", "codec.loss", "codec.prior", "codec.error_metric", "run.importance"}
    assert {f"lighttoken.{name}" for name in shared | own} <= files.keys()
    assert not {"lighttoken.codec.baselines.rq", "lighttoken.codec.lighttoken.method"} & files.keys()
    assert all(name.startswith("lighttoken") for name in files)  # torch's version is in the key of an artifact


def test_a_codec_of_a_user_has_a_hash_of_its_own_and_changes_no_other(tmp_path, monkeypatch):
    before = code_hash("lighttoken.codec.baselines.svd")
    (tmp_path / "mycodec.py").write_text("import mytool\nfrom lighttoken.codec.interface import Codec\n")
    (tmp_path / "mytool.py").write_text("SIZE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    first = code_hash("mycodec")
    assert first != before == code_hash("lighttoken.codec.baselines.svd")
    (tmp_path / "mycodec.py").write_text("import mytool\nfrom lighttoken.codec.interface import Codec\nSIZE = 2\n")
    assert code_hash("mycodec") != first
    assert "mycodec" not in sys.modules  # the code is read, not run


def test_a_checkpoint_that_is_saved_again_and_another_revision_have_other_keys(table, checkpoint):
    folder = checkpoint()
    backbone = Backbone("x", path=str(folder))
    before = artifact_key(table, backbone, SVD(), 2.0, 0)
    assert artifact_key(table, backbone, SVD(), 2.0, 0) == before
    assert artifact_key(table, replace(backbone, revision="v2"), SVD(), 2.0, 0) != before
    os.utime(folder / "model.safetensors", ns=(0, 0))  # of the same size
    assert artifact_key(table, backbone, SVD(), 2.0, 0) != before


def test_two_gguf_files_of_a_folder_and_two_commits_of_a_branch_have_other_keys(table, checkpoint, monkeypatch):
    folder, hub = str(checkpoint()), Backbone("x", hub_id="owner/model", revision="main")
    for name in ("a", "b"):
        (Path(folder) / f"{name}.gguf").touch()
    first, second = (Backbone("x", path=folder, gguf_file=f"{name}.gguf") for name in ("a", "b"))
    assert artifact_key(table, first, SVD(), 2.0, 0) != artifact_key(table, second, SVD(), 2.0, 0)
    keys = []
    for commit in ("1", "2", "1"):
        config = BertConfig()
        config._commit_hash = commit
        monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, found=config, **__: found)
        keys.append(artifact_key(table, hub, SVD(), 2.0, 0))
    assert keys[0] == keys[2] != keys[1]


def test_an_edit_of_the_compiled_search_changes_the_code_hash(tmp_path, monkeypatch):
    (tmp_path / "mycodec.py").write_text("SIZE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    hashes = []
    for code in ("int a;", "int b;", "int a;"):
        (tmp_path / "search.cpp").write_text(code)
        hashes.append(code_hash("mycodec"))
    assert hashes[0] == hashes[2] != hashes[1]


def test_threads_are_counted_in_the_key(table, checkpoint):
    """Sums differ in the last digits with the number of threads that add them up."""
    backbone = Backbone("x", path=str(checkpoint()))
    keys, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            keys.append(artifact_key(table, backbone, SVD(), 2.0, 0))
    finally:
        torch.set_num_threads(threads)
    assert keys[0] == keys[2] != keys[1]
