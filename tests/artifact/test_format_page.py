"""A reader that was written from docs/format.md alone decodes what this code writes."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from lighttoken import compress_table
from lighttoken.artifact.relations import relate
from lighttoken.codec.interface import Importance
from lighttoken.codec.lighttoken.method import LightToken
from tests.test_docs import ROOT

ROWS = [0, 1, 2, 63, 64, *range(100, 1200, 37), 1199]


@pytest.fixture
def artifact_class(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from read_artifact import Artifact

    return Artifact


@pytest.fixture
def related():
    """A table (1200, 32) of words, and of their plurals, which are nearly the same rows; and their relations."""
    words = [f"{'abcdefghij'[i % 10]}{'lmnopqrstu'[i // 10 % 10]}{'vwxyzabcde'[i // 100]}nam" for i in range(600)]
    table = torch.randn(600, 32) * torch.linspace(1.5, 0.2, 32)
    return torch.cat([table, table + 0.3 * torch.randn(600, 32)]), relate([*words, *(word + "s" for word in words)])


def assert_reads(artifact, compressed):
    table = compressed.decode(ROWS).double()
    rows = torch.stack([torch.from_numpy(artifact.row(i)) for i in ROWS])
    assert (rows - table).abs().max() < 1e-5 * table.abs().max()


@pytest.mark.parametrize(("ratio", "integers"), [(12, False), (3, True)])
def test_page_says_how_windows_and_integers_are_read(artifact_class, table, ratio, integers, tmp_path):
    compressed = compress_table(table, LightToken(state_bits=8), ratio=ratio, progress=False)
    assert ("integers" in compressed.tensors) is integers
    compressed.save(tmp_path)
    assert_reads(artifact_class(tmp_path), compressed)


def test_page_says_how_rows_are_predicted(artifact_class, related, tmp_path):
    table, relations = related
    importance = Importance(torch.ones(len(table)), relations=relations)
    compressed = compress_table(table, LightToken(state_bits=8), ratio=8, importance=importance, progress=False)
    assert "maps" in compressed.tensors
    compressed.save(tmp_path)
    assert_reads(artifact_class(tmp_path, relations.numpy()), compressed)
    replace(compressed, tensors=compressed.with_links().tensors).save(tmp_path)
    assert_reads(artifact_class(tmp_path), compressed)


def relations_by_the_page(tokens):
    """The six steps of "Relations" in docs/format.md, one after the other, on the tokens by id."""
    wordpiece = sum(token.startswith("##") for token in tokens) > len(tokens) / 100
    words = []
    for token in tokens:
        marker = next((m for m in (["##"] if wordpiece else ["▁", "Ġ"]) if token.startswith(m)), "")
        letters = token[len(marker) :]
        if letters and letters[0] in "[<" and letters[-1] in "]>":
            letters = ""
        words.append((letters, (marker == "") if wordpiece else (marker != "")))
    first = {}
    for i, word in enumerate(words):
        if word[0]:
            first.setdefault(word, i)
    order = sorted(
        range(len(words)), key=lambda i: (len(words[i][0]), words[i][0] != words[i][0].lower(), not words[i][1], i)
    )
    rank = {i: place for place, i in enumerate(order)}
    above, parents, kinds = Counter(), list(range(len(words))), {}
    for i in order:
        letters, starts = words[i]
        small = letters.lower()
        wanted = [((small, starts), 2), ((letters, not starts), 1), ((small, not starts), 1)]
        for n in range(len(letters) - 1, max(4, math.ceil(len(letters) / 2)) - 1, -1):
            cut = letters[:n]
            wanted += [
                ((word, start), letters[n:])
                for word, start in ((cut, starts), (cut, not starts), (cut.lower(), starts))
            ]
        for word, kind in wanted:
            if word in first and rank[first[word]] < rank[i] and above[first[word]] < 2:
                parents[i], kinds[i], above[i] = first[word], kind, above[first[word]] + 1
                break
    endings = Counter(kind for kind in kinds.values() if isinstance(kind, str))
    best = sorted(endings, key=lambda ending: (-endings[ending], ending))[:8]
    numbers = {ending: 4 + i for i, ending in enumerate(best)}
    return [
        parents[i] + (numbers.get(kinds.get(i, 0), 3) if isinstance(kinds.get(i), str) else kinds.get(i, 0)) * 2**22
        for i in range(len(words))
    ]


@pytest.mark.parametrize("marker", ["##", "▁", "Ġ", ""])
def test_page_says_which_rows_are_related(marker):
    stems = [
        "walk",
        "Walk",
        "WALKING",
        "walks",
        "walking",
        "walkings",
        "talk",
        "talked",
        "straße",
        "İstan",
        "[PAD]",
        "<s>",
        "",
        "a",
    ]
    stems += [
        stem + ending for stem in ("jump", "Paint", "look", "climbe") for ending in ("s", "er", "ers", "ing", "ly", "d")
    ]
    tokens = [start + stem for stem in stems for start in ("", marker)]
    assert relate(tokens).tolist() == relations_by_the_page(tokens)
