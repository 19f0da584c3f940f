"""Which code reads the rows."""

import pytest
import torch

from lighttoken.artifact.compiled import has_triton

GPU = torch.device("cuda", 0)


@pytest.fixture
def answer(monkeypatch):
    """What `has_triton` says of a GPU, which is not there, after such a check."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())

    return lambda agrees: has_triton.__wrapped__(GPU, agrees)


def test_kernels_that_agree_are_used(answer, caplog, monkeypatch):
    assert answer(lambda device: device == GPU)
    assert not caplog.records
    monkeypatch.setenv("LIGHTTOKEN_TRITON", "0")
    assert not answer(lambda _: True)


def test_kernels_that_find_other_numbers_are_not_used_and_the_log_says_so(answer, caplog):
    assert not answer(lambda _: False)
    (message,) = caplog.messages
    assert message.startswith("plain PyTorch runs on cuda:0 instead of Triton, which is faster: its numbers")


def test_kernels_that_cannot_run_are_not_used_and_the_log_says_why(answer, caplog):
    def fail(_):
        raise RuntimeError("Failed to find C compiler.\nPlease specify")

    assert not answer(fail)
    assert "faster: RuntimeError: Failed to find C compiler." in caplog.text
    assert "Please" not in caplog.text
