import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lighttoken.artifact.relations import (
    CASE,
    DEPTH,
    KINDS,
    LONGER,
    MAPS,
    NONE,
    PLACE,
    check_links,
    digest,
    kinds_of,
    pack_links,
    parents_of,
    predict,
    read_related,
    relate,
    unpack_links,
    vocabulary,
)

WORDPIECES = ["[PAD]", "walk", "##walk", "walks", "walked", "talk", "talks", "Walk", "wal", "wa", "sky", "skyline"]


def related(tokens):
    relations = relate(tokens)
    found = zip(tokens, parents_of(relations).tolist(), kinds_of(relations).tolist(), strict=True)
    return {token: (tokens[parent], kind) for token, parent, kind in found if kind != NONE}


def test_twins_and_the_longest_beginning_are_parents():
    assert related(WORDPIECES) == {
        "##walk": ("walk", PLACE),
        "Walk": ("walk", CASE),
        "walks": ("walk", LONGER + 1),  # the most frequent ending
        "talks": ("talk", LONGER + 1),
        "walked": ("walk", LONGER + 2),
    }  # "walk" has no beginning of four letters, "skyline" none of half its letters


def test_a_row_without_a_parent_has_itself():
    relations = relate(["walk", "talk"])
    assert parents_of(relations).tolist() == [0, 1]
    assert kinds_of(relations).tolist() == [NONE, NONE]


@pytest.mark.parametrize("mark", ["▁", "Ġ"])
def test_the_mark_of_a_word_is_no_letter(mark):
    assert related([f"{mark}walk", "walk", f"{mark}walking"]) == {
        "walk": (f"{mark}walk", PLACE),
        f"{mark}walking": (f"{mark}walk", LONGER + 1),
    }


def test_tokens_in_brackets_and_rows_without_a_token_have_no_relations():
    assert related(["[unused1]", "[unused12]", "<extra_id_1>", "<extra_id_10>", "", ""]) == {}


def test_a_longer_chain_goes_back_to_a_row_that_is_near_enough():
    # care - cares - caress - caresses: the last one would have three rows above it.
    chain = related(["care", "cares", "caress", "caresses"])
    assert chain["caress"][0] == "cares"
    assert chain["caresses"][0] == "cares"


@given(st.lists(st.text("abA#▁", max_size=9), min_size=1, max_size=60))
def test_every_row_reaches_a_row_without_a_parent_in_two_steps(tokens):
    relations = relate(tokens)
    row = torch.arange(len(tokens))
    for _ in range(DEPTH):
        row = parents_of(relations[row])
    assert bool((kinds_of(relations[row]) == NONE).all())
    assert int(kinds_of(relations).max()) < KINDS
    assert torch.equal(unpack_links(pack_links(relations), len(tokens)), relations)


def test_added_tokens_have_no_relations(tokenizer):
    assert vocabulary(tokenizer, 205)[:6] == ["", "", "", "", "a", "bad"]  # the first four are special tokens
    before = relate(vocabulary(tokenizer, 205))
    tokenizer.add_tokens(["goodness"])
    assert torch.equal(relate(vocabulary(tokenizer, 205)), before)


def test_links_of_other_relations_and_damaged_ones_are_refused():
    relations = relate(WORDPIECES)
    check_links(pack_links(relations), digest(relations), len(WORDPIECES))
    with pytest.raises(ValueError, match="another hash"):
        check_links(pack_links(relations), digest(relate(WORDPIECES[::-1])), len(WORDPIECES))
    with pytest.raises(ValueError, match="links of 11 rows"):
        unpack_links(pack_links(relations), 11)
    with pytest.raises(ValueError, match="links to row 9, of kind 1, in a table of 2 rows"):
        unpack_links(pack_links(torch.tensor([0, 9 + (1 << 22)], dtype=torch.int32)), 2)


def test_a_row_is_what_its_codes_decode_to_and_what_the_rows_above_tell():
    relations = relate(["care", "cares", "caress", "sky"])
    codes, maps = torch.randn(4, 3), torch.randn(3, MAPS)
    rows = read_related(torch.tensor([2, 0, 2, 3]), relations, maps, lambda ids: codes[ids])
    expected = torch.zeros(4, 3)
    for i in range(4):  # parents come first here
        one = torch.tensor([i])
        kinds, parents = kinds_of(relations[one]), parents_of(relations[one])
        expected[i] = codes[i] + predict(one, kinds, expected[parents], maps)[0]
    torch.testing.assert_close(rows, expected[[2, 0, 2, 3]])


def test_no_ids_have_no_rows():
    relations, codes, maps = relate(["care", "cares"]), torch.randn(2, 3), torch.randn(3, MAPS)
    assert read_related(torch.arange(0), relations, maps, lambda ids: codes[ids]).shape == (0, 3)


def test_the_same_rows_are_read_while_a_graph_is_made():
    relations, codes, maps = relate(["care", "cares", "caress", "sky"]), torch.randn(4, 3), torch.randn(3, MAPS)

    def read(ids):
        return read_related(ids, relations, maps, lambda rows: codes[rows])

    ids = torch.tensor([3, 2, 1])
    torch.testing.assert_close(torch.compile(read, backend="eager", fullgraph=True)(ids), read(ids))
