"""Finished parts of an interrupted computation."""

import pytest
import torch

from lighttoken.artifact.parts import Parts
from lighttoken.codec import compress_table
from lighttoken.codec.lighttoken import encode
from lighttoken.codec.lighttoken.method import LightToken
from lighttoken.codec.prior import Uniform


def make(calls: list[int]) -> dict[str, torch.Tensor]:
    calls.append(1)
    return {"numbers": torch.arange(5)}


def test_a_part_is_made_once_and_a_damaged_one_again(tmp_path):
    parts, calls = Parts(tmp_path / "parts", least_seconds=0), []
    for _ in range(2):
        assert torch.equal(parts.get("one", lambda: make(calls))["numbers"], torch.arange(5))
    assert len(calls) == 1
    assert parts.kept
    (tmp_path / "parts/one.safetensors").write_bytes(b"half")
    assert torch.equal(parts.get("one", lambda: make(calls))["numbers"], torch.arange(5))
    assert len(calls) == 2
    parts.remove()
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("parts", [Parts(), Parts(least_seconds=0)])
def test_without_a_folder_nothing_is_kept(parts):
    calls: list[int] = []
    parts.get("one", lambda: make(calls))
    parts.get("one", lambda: make(calls))
    assert len(calls) == 2
    assert not parts.kept


def test_a_quick_part_is_not_kept(tmp_path):
    parts = Parts(tmp_path / "parts")
    parts.get("one", lambda: make([]))
    assert not (tmp_path / "parts").exists()


def test_a_compression_goes_on_from_its_parts_to_the_same_bytes(tmp_path, monkeypatch):
    table = torch.randn(5000, 16, generator=torch.Generator().manual_seed(0))
    codec = LightToken(prior=Uniform(), error_metric="euclidean", state_bits=8, tiers=2)
    parts = Parts(tmp_path, least_seconds=0)
    whole = compress_table(table, codec, 20, progress=False)
    searched: list[int] = []
    search = encode._search_rows

    def counted(rows, *arguments):
        if len(searched) == 2:
            raise KeyboardInterrupt
        searched.append(len(rows))
        return search(rows, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(encode, "_search_rows", counted)
        compress_table(table, codec, 20, progress=False, parts=parts)
    done = sum(searched)
    searched[:] = [-1, -1, -1]  # from here on, without end
    monkeypatch.setattr(encode, "_search_rows", counted)
    resumed = compress_table(table, codec, 20, progress=False, parts=parts)
    assert sum(searched[3:]) == len(table) - done
    assert resumed.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(resumed.tensors[name], whole.tensors[name]) for name in whole.tensors)
