"""Compiled code: C++ that is built once for a machine by its own compiler, and the reading of the trellis code with it.

It gives the same bits as the plain code in PyTorch, which is used where there is no compiler.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float, Int64, UInt8
from platformdirs import user_cache_path
from torch import Tensor

from lighttoken.artifact.relations import PARENT_BITS, chain_of, maps_by_kind, place_in_vocabulary, read_related
from lighttoken.artifact.trellis import BLOCK, LEAD, read_coefficients

log = logging.getLogger(__name__)

FLAGS = ["-O3", "-ffp-contract=off", "-shared", "-fPIC", "-std=c++17"]
DECODER = Path(__file__).with_name("decode.cpp")
LEAST_NUMBERS = 2**17  # coefficients that are worth a compiler's start; a sentence has fewer


@cache
def library(source: Path) -> ctypes.CDLL | None:
    """The compiled functions of a C++ file; None, with a line in the log, if it cannot be built here."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    wide = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    flags = [*FLAGS, "-march=x86-64-v3"] if wide else FLAGS
    digest = hashlib.sha256(source.read_bytes() + repr((compiler, flags, platform.platform())).encode()).hexdigest()
    path = user_cache_path("lighttoken") / f"{source.stem}-{digest[:16]}.so"
    try:
        if not path.is_file():
            if compiler is None:
                raise OSError("no C++ compiler; install g++ or clang, or set CXX")
            path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=path.parent) as folder:
                built = Path(folder) / path.name
                subprocess.run([compiler, *flags, str(source), "-o", str(built)], check=True, capture_output=True)
                built.replace(path)  # at once, so that no other process reads half a file
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        cause = error.stderr.decode(errors="replace").partition("\n")[0]
    except OSError as error:
        cause = str(error)
    log.info("%s runs in PyTorch, several times slower: %s", source.stem, cause)
    return None


class _Code(ctypes.Structure):
    """`Code` of decode.cpp."""

    tensors: tuple[str, ...] = ("stream", "tiers", "blocks", "lengths", "positions", "owners", "gains", "book")
    tensors += ("relations", "slope", "offsets", "slants")
    numbers = ("tier_count", "m", "count", "state_bits", "vector", "block", "lead", "parent_bits")
    _fields_ = [*((name, ctypes.c_void_p) for name in tensors), *((name, ctypes.c_int32) for name in numbers)]


def read_rows(
    ids: Int64[Tensor, " n"],
    stream: UInt8[Tensor, " N"],
    gain: Float[Tensor, "T s"],
    index: Mapping[str, Tensor],
    related: bool = False,
) -> Float[Tensor, "n m"]:
    """`read_coefficients` of rows or, with `related`, `read_related`: compiled if they are many, on a CPU.

    Not compiled where a graph is made or a gradient of the gains is asked for.
    """
    in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    plain = in_graph or ids.device.type != "cpu" or (gain.requires_grad and torch.is_grad_enabled())
    if not plain and len(ids) * index["position"].shape[1] >= LEAST_NUMBERS and library(DECODER):
        return _read_compiled(ids, stream, gain, index, related)
    if not related:
        return read_coefficients(ids, stream, gain, index)
    return read_related(
        ids, index["relations"], index["maps"], lambda rows: read_coefficients(rows, stream, gain, index)
    )


def _read_compiled(
    ids: Tensor, stream: Tensor, gain: Tensor, index: Mapping[str, Tensor], related: bool
) -> Float[Tensor, "n m"]:
    native, n = library(DECODER), len(ids)
    assert native is not None
    chain = torch.stack(chain_of(ids, index["relations"])[::-1] if related else [ids])
    book, (tiers, m) = index["book"].float(), index["position"].shape
    kept = [stream, *(index[name] for name in ("tiers", "blocks", "lengths", "position", "step"))]
    kept += [gain.detach().float(), book]
    if related:
        kept += [index["relations"], *maps_by_kind(index["maps"])]
    kept = [tensor.contiguous() for tensor in kept]  # for as long as their addresses are used
    addresses = [tensor.data_ptr() for tensor in kept] + [None] * (len(_Code.tensors) - len(kept))
    numbers = (tiers, m, gain.shape[1], len(book).bit_length() - 1, book.shape[1], BLOCK, LEAD, PARENT_BITS)
    code, places, rows = _Code(*addresses, *numbers), place_in_vocabulary(chain), torch.empty(n, m)

    # In one thread: for so little work, the threads of torch that wait for more keep the cores from others.
    native.read_rows(
        *(ctypes.byref(code), ctypes.c_void_p(chain.data_ptr()), ctypes.c_void_p(places.data_ptr()), len(chain)),
        *(ctypes.c_int64(n), ctypes.c_void_p(rows.data_ptr())),
    )
    return rows
