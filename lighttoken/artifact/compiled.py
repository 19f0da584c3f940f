"""Compiled code, and the reading of the trellis code with it.

On a CPU it is C++ that is built once for a machine by its own compiler and gives the same bits as the plain code in
PyTorch. On an NVIDIA GPU it is kernels in Triton. The plain code is used where there is neither.
"""

import ctypes
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64, UInt8
from platformdirs import user_cache_path
from torch import Tensor

from lighttoken.artifact.relations import PARENT_BITS, chain_of, maps_by_kind, place_in_vocabulary, read_related
from lighttoken.artifact.trellis import BLOCK, LEAD, read_coefficients

if TYPE_CHECKING:
    from lighttoken.artifact.decode_triton import TritonReader

log = logging.getLogger(__name__)

FLAGS = ["-O3", "-ffp-contract=off", "-shared", "-fPIC", "-pthread", "-std=c++17"]
DECODER = Path(__file__).with_name("decode.cpp")
FEW_VECTORS = 8  # that are multiplied without a product of matrices
LEAST_NUMBERS = 2**17  # coefficients that are worth a compiler's start; a sentence has fewer
NUMBERS_A_THREAD = 2**16  # coefficients that are worth the start of a thread


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


@cache
def has_triton(device: torch.device, agrees: Callable[[torch.device], bool]) -> bool:
    """Whether kernels in Triton run on a device, an NVIDIA GPU from Turing on, as the plain code does.

    `agrees` tries them out there. If they fail, the log has a warning. `LIGHTTOKEN_TRITON=0` in the environment turns
    them off.
    """
    if os.environ.get("LIGHTTOKEN_TRITON") == "0" or device.type != "cuda" or torch.version.cuda is None:
        return False
    if importlib.util.find_spec("triton") is None or torch.cuda.get_device_capability(device) < (7, 5):
        return False
    try:
        if agrees(device):
            return True
        cause = "its numbers are not those of the plain code"
    except Exception as error:  # no compiler for Triton's launcher, too few registers, a driver that is too old, ...
        cause = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    log.warning("plain PyTorch runs on %s instead of Triton, which is faster: %s", device, cause)
    return False


class _Code(ctypes.Structure):
    """`Code` of decode.cpp."""

    tensors: tuple[str, ...] = ("stream", "tiers", "blocks", "lengths", "positions", "owners", "gains", "book")
    tensors += ("relations", "slope", "offsets", "slants")
    numbers = ("tier_count", "m", "count", "state_bits", "vector", "block", "lead", "parent_bits")
    _fields_ = [*((name, ctypes.c_void_p) for name in tensors), *((name, ctypes.c_int32) for name in numbers)]


class _Chain(ctypes.Structure):
    """`Chain` of decode.cpp."""

    _fields_ = [("ids", ctypes.c_void_p), ("places", ctypes.c_void_p), ("depth", ctypes.c_int), ("n", ctypes.c_int64)]


def read_rows(
    ids: Int64[Tensor, " n"],
    stream: UInt8[Tensor, " N"],
    gain: Float[Tensor, "T s"],
    index: Mapping[str, Tensor],
    related: bool = False,
) -> Float[Tensor, "n m"]:
    """`read_coefficients` of rows or, with `related`, `read_related`: compiled on a GPU, and for many rows on a CPU.

    Not compiled where a graph is made or a gradient of the gains is asked for.
    """
    # First whether a graph is made: `len` would fix the number of rows in it.
    if _usable(gain, ids) and (ids.is_cuda or len(ids) * index["position"].shape[1] >= LEAST_NUMBERS):
        return _reader(stream, gain, index, related).read(ids)
    if not related:
        return read_coefficients(ids, stream, gain, index)
    return read_related(
        ids, index["relations"], index["maps"], lambda rows: read_coefficients(rows, stream, gain, index)
    )


def projector(
    vectors: Float[Tensor, "N m"],
    offsets: Float[Tensor, "N 1"],
    stream: UInt8[Tensor, " _"],
    gain: Float[Tensor, "T s"],
    index: Mapping[str, Tensor],
    related: bool,
) -> Callable[[Int64[Tensor, " n"]], Float[Tensor, "N n"]] | None:
    """A function of ids that returns offsets plus products of a few vectors with the coefficients of the rows.

    No coefficient is written to memory; on a CPU, as many threads as torch has share the rows. None where `read_rows`
    is not compiled, for many vectors and where a gradient is asked for: a product of matrices is better then.
    """
    if not _usable(gain, vectors) or len(vectors) > FEW_VECTORS:
        return None
    reader, vectors, offsets = _reader(stream, gain, index, related), vectors.contiguous(), offsets.contiguous()
    return lambda ids: reader.project(ids, vectors, offsets)


def _usable(gain: Tensor, given: Tensor) -> bool:
    in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    trained = torch.is_grad_enabled() and (gain.requires_grad or given.requires_grad)
    if in_graph or trained or gain.device != given.device:  # the plain code then says which devices differ
        return False
    return has_triton(given.device, _triton_agrees) or (given.device.type == "cpu" and library(DECODER) is not None)


def _triton_agrees(device: torch.device) -> bool:
    from lighttoken.artifact.decode_triton import agrees  # Triton is not there without a GPU

    return agrees(device)


def _reader(stream: Tensor, gain: Tensor, index: Mapping[str, Tensor], related: bool) -> "_Compiled | TritonReader":
    if stream.is_cuda:
        from lighttoken.artifact.decode_triton import TritonReader

        return TritonReader(stream, gain, index, related)
    return _Compiled(stream, gain, index, related)


class _Compiled:
    """The functions of decode.cpp for one table. It keeps the tensors whose addresses they are given."""

    def __init__(self, stream: Tensor, gain: Tensor, index: Mapping[str, Tensor], related: bool):
        native = library(DECODER)
        assert native is not None
        self.native, self.relations = native, index["relations"] if related else None
        book, (tiers, self.m) = index["book"].float(), index["position"].shape
        kept = [stream, *(index[name] for name in ("tiers", "blocks", "lengths", "position", "step"))]
        kept += [gain.detach().float(), book]
        if related:
            kept += [index["relations"], *maps_by_kind(index["maps"])]
        self.kept = [tensor.contiguous() for tensor in kept]
        addresses = [tensor.data_ptr() for tensor in self.kept] + [None] * (len(_Code.tensors) - len(kept))
        numbers = (tiers, self.m, gain.shape[1], len(book).bit_length() - 1, book.shape[1], BLOCK, LEAD, PARENT_BITS)
        self.code = _Code(*addresses, *numbers)

    def read(self, ids: Tensor) -> Tensor:
        """Coefficients of rows."""
        rows = torch.empty(len(ids), self.m)
        self._call(self.native.read_rows, ids, _address(rows))
        return rows

    def project(self, ids: Tensor, vectors: Tensor, offsets: Tensor) -> Tensor:
        """Products of vectors with the coefficients of rows, plus the offsets."""
        products = torch.empty(len(vectors), len(ids))
        arguments = (_address(vectors), _address(offsets), ctypes.c_int64(len(vectors)), _address(products))
        self._call(self.native.project_rows, ids, *arguments)
        return products

    def _call(self, function: Any, ids: Tensor, *arguments: Any) -> None:
        chain = torch.stack(chain_of(ids, self.relations)[::-1] if self.relations is not None else [ids])
        places = place_in_vocabulary(chain)
        given = _Chain(chain.data_ptr(), places.data_ptr(), len(chain), len(ids))
        # As many as torch has; its own threads would spin behind the work and keep the cores from others.
        threads = max(1, min(torch.get_num_threads(), len(ids) * self.m // NUMBERS_A_THREAD))
        function(ctypes.byref(self.code), ctypes.byref(given), *arguments, threads)


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
