from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lighttoken.artifact.forms import Trellis, hashed_rows, make_form

SAMPLES = Path(__file__).parents[1] / "samples" / "format_4"


def test_a_description_makes_the_same_form(compressed):
    assert make_form(compressed.form.describe()) == compressed.form
    assert make_form({"name": "trellis", "state_bits": 7}) == Trellis(7)


def test_a_projection_is_the_product_with_the_rows(compressed):
    vectors, ids = torch.randn(3, 16), torch.randint(600, (50,))
    products = compressed.form.projection(vectors, compressed.tensors | compressed.index, 16)(ids)
    torch.testing.assert_close(products, vectors @ compressed.decode(ids).T, atol=1e-4, rtol=1e-4)


def test_every_matrix_that_fine_tuning_may_train_moves_rows(compressed):
    tensors = compressed.tensors | compressed.index
    names = [name for name in compressed.form.shared + compressed.form.factors if name in compressed.tensors]
    assert "bias" in names
    for name in names:
        matrix = compressed.matrix(name)
        changed = {other: t for other, t in tensors.items() if other != f"{name}.scale"} | {name: matrix + 1}
        assert not torch.equal(compressed.form.read(torch.arange(600), changed, 16), compressed.decode())


def test_ranks_that_no_decomposition_needs_are_refused():
    cores = {"codes": (1, 64, 1, 70), "core1": (70, 1, 1, 70), "core2": (70, 1, 8, 1)}
    tensors = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in cores.items()}
    with pytest.raises(ValueError, match="the cores have ranks 70 and 70 instead of at most 64 and 8"):
        make_form({"name": "cores"}).layout(tensors | {"bias": torch.zeros(8, dtype=torch.float16)}, 64, 8)


def test_a_tensor_that_is_missing_or_too_many_is_refused(compressed):
    for name in compressed.form.required:
        tensors = {other: t for other, t in compressed.tensors.items() if other != name}
        with pytest.raises(ValueError, match=f"no tensor '{name}'"):
            replace(compressed, tensors=tensors).check()
    with pytest.raises(ValueError, match="'extra' is a tensor that this form does not have"):
        replace(compressed, tensors=compressed.tensors | {"extra": torch.zeros(2)}).check()


def test_ids_of_a_hash_share_rows_and_all_rows_are_used():
    rows = hashed_rows(1000, 37)
    assert sorted(rows.unique().tolist()) == list(range(37))
