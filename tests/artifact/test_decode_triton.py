"""The kernels for a GPU, in Triton's interpreter: `TRITON_INTERPRET` is set in conftest.py."""

import subprocess
import sys

import pytest
import torch

from lighttoken import compress_table
from lighttoken.artifact.relations import MAPS, relate
from tests.conftest import WORDS

pytest.importorskip("triton", reason="Triton is not installed: the kernels for a GPU are not tested")

ROWS = 300


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "related"])
def read(request):
    """The plain reading of a table of (300, 24), and the arguments of a reader."""
    torch.manual_seed(0)
    compressed = compress_table(torch.randn(ROWS, 24) * torch.linspace(1.5, 0.2, 24), "lighttoken", 8, progress=False)
    form, tensors = compressed.form, dict(compressed.tensors)
    tensors |= form.index(tensors, ROWS, 24)
    if request.param:
        ending = ("", "s", "sed", "sedly")
        tensors["index.relations"] = relate([f"{WORDS[i % 12]}{i // 48}ab{ending[i // 12 % 4]}" for i in range(ROWS)])
        tensors["index.maps"] = torch.randn(len(tensors["decoder.scale"]), MAPS) * 0.2
        tensors["maps"] = torch.zeros(1)
    gain, index = form._read_by(tensors)
    return lambda ids: form.coordinates(ids, tensors), (tensors["codes"], gain, index, request.param)


@pytest.mark.parametrize("ids", [torch.arange(ROWS), torch.tensor([ROWS - 1]), torch.randint(ROWS, (77,)), []])
def test_rows_are_what_the_plain_code_reads(read, ids):
    from lighttoken.artifact.decode_triton import TritonReader

    plain, arguments = read
    ids = torch.as_tensor(ids, dtype=torch.long)
    torch.testing.assert_close(TritonReader(*arguments).read(ids), plain(ids), atol=1e-6, rtol=0)


@pytest.mark.parametrize("vectors", [1, 8, 16])
def test_products_are_those_of_the_rows(read, vectors):
    from lighttoken.artifact.decode_triton import TritonReader

    plain, arguments = read
    ids = torch.arange(ROWS)[5:]
    given, offsets = torch.randn(vectors, plain(ids).shape[1]), torch.randn(vectors, 1)
    products = TritonReader(*arguments).project(ids, given, offsets)
    torch.testing.assert_close(products, offsets + given @ plain(ids).T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("wrong", [None, "read", "project"])
def test_a_gpu_reads_with_triton_only_if_it_reads_what_the_plain_code_does(wrong, monkeypatch):
    from lighttoken.artifact import decode_triton

    if wrong:
        found = getattr(decode_triton.TritonReader, wrong)
        monkeypatch.setattr(decode_triton.TritonReader, wrong, lambda self, *given: found(self, *given).roll(1, 0))
    assert decode_triton.agrees(torch.device("cpu")) is (wrong is None)


COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from lighttoken.artifact.decode_triton import COLUMNS, ROWS, VECTORS, Code, _project, _read
from lighttoken.codec.lighttoken.viterbi_triton import _trace, _walk

class Driver:  # of a GPU that is not there
    get_current_device = get_current_stream = lambda *_: 0

    def __init__(self, capability):
        self.get_current_target = lambda: GPUTarget("cuda", capability, 32)

types = dict.fromkeys(Code._fields, torch.float32) | dict.fromkeys(("stream", "tiers", "component"), torch.uint8)
types |= dict.fromkeys(("blocks", "lengths"), torch.int64)
types |= dict.fromkeys(("position", "step", "relations"), torch.int32)
code = Code(**{name: torch.empty(1, dtype=types[name]) for name in Code._fields[:13]}, m=384, steps=300, state_bits=12)
x, i, ids = torch.empty(1), torch.empty(1, dtype=torch.int32), torch.arange(1)
origins = torch.empty(1, dtype=torch.uint8)
for capability in (75, 80, 90, 100):
    triton.runtime.driver.set_active(Driver(capability))
    for each in (code, code._replace(relations=None, slope=None, offset=None, slant=None)):
        _read.warmup(ids, x, 100, each, ROWS, COLUMNS, grid=(1,))
        _project.warmup(ids, x, x, x, 100, 3, each, ROWS, COLUMNS, VECTORS, grid=(1,))
    for v, k in ((1, 1), (8, 1), (2, 3)):
        _walk.warmup(x, x, x, x, origins, 0, 9, 2, v, k, 12, num_warps=8, grid=(1,))
    _trace.warmup(i, origins, i, i, i, 9, 9, 2, 12, 128, grid=(1,))
"""


def test_the_kernels_compile_for_gpus_of_four_generations(monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
