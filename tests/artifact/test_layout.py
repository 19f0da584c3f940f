from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lighttoken import load_table

SAMPLES = Path(__file__).parents[1] / "samples" / "format_4"


def changed(compressed, name, tensor):
    return replace(compressed, tensors=compressed.tensors | {name: tensor})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.int16, torch.bool])
def test_a_tensor_of_a_type_that_the_form_does_not_have_is_refused(compressed, dtype):
    for name, tensor in compressed.tensors.items():
        with pytest.raises(ValueError, match=f"{name} has type {str(dtype)[6:]} instead of"):
            changed(compressed, name, tensor.to(dtype)).check()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_float_that_is_not_finite_is_refused(compressed, value):
    compressed.check()
    floats = [name for name, tensor in compressed.tensors.items() if tensor.is_floating_point()]
    assert floats
    for name in floats:
        tensor = compressed.tensors[name].clone()
        tensor.view(-1)[-1] = value
        with pytest.raises(ValueError, match=f"{name} has NaN or infinite values"):
            changed(compressed, name, tensor).check()


def test_a_finite_float_whose_products_overflow_is_refused():
    compressed = load_table(SAMPLES / "bits")
    with pytest.raises(ValueError, match=r"left.scale has values up to 3e\+38 instead of at most 1e\+16"):
        changed(compressed, "left.scale", torch.full((1, 4), -3e38)).check()
    largest = {
        name: torch.full_like(tensor, 9e15) if tensor.is_floating_point() else tensor
        for name, tensor in compressed.tensors.items()
    }
    compressed = replace(compressed, tensors=largest)
    compressed.check()
    assert compressed.decode().isfinite().all()


def test_a_tensor_of_another_shape_is_refused_before_its_numbers_are_read(compressed):
    meta = {name: tensor.to("meta") for name, tensor in compressed.tensors.items()}
    replace(compressed, tensors=meta).check_layout()
    free = {"codes", "tiers"} if compressed.form.name == "trellis" else set()  # their content says how many they are
    for name in meta.keys() - free:
        shape = meta[name].shape
        for other in ((2**40, *shape[1:]), (*shape, 1), (), (0,), (0, 2**40)):
            with pytest.raises(ValueError, match="instead of|do not fill|rows for|where the rank|power of two"):
                changed(
                    replace(compressed, tensors=meta), name, torch.empty(other, dtype=meta[name].dtype, device="meta")
                ).check_layout()


def test_codebooks_of_no_width_and_cores_of_other_ids_are_refused():
    codebooks, cores = load_table(SAMPLES / "codebooks"), load_table(SAMPLES / "cores")
    with pytest.raises(ValueError, match="16 codebooks of width 0 do not fill rows of 16"):
        changed(codebooks, "codebooks", torch.zeros(16, 16, 0).half()).check()
    with pytest.raises(ValueError, match=r"1 tables \(576, 16\) instead of one \(600, 16\)"):
        changed(cores, "core1", cores.tensors["core1"][:, :8]).check()
    with pytest.raises(ValueError, match="'core3' is a tensor that this form does not have"):
        changed(cores, "core3", torch.ones(1, 1, 1, 1).half()).check()
