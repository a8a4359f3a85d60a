"""Helpers of the tests of kernels: the ISAs that this machine can run, kernels compiled once, and operands that end
at an inaccessible page, so that an access beyond them ends the process."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm", reason="the tvm backend is not installed")

from tersor.backends.tvm.kernels.emit import Isa  # noqa: E402
from tersor.backends.tvm.pipeline import TIR_PIPELINE, tvm_target  # noqa: E402
from tersor.target import ISA_LEVELS, Target, request_amx  # noqa: E402

HOST = Target.host()
request_amx()
THREADS = 2
ALIGNMENT = 64  # Of operands.


@dataclass(frozen=True)
class Machine:
    """Vector instructions, and the processor features that they need."""

    isa: Isa
    features: frozenset[str]

    def target(self) -> Any:
        return tvm_target(self.features, self.isa.threads)


def _machine(lanes: int, dot: str, level: str | None, bfloat16: bool = False) -> Machine:
    return Machine(Isa(lanes, dot, THREADS, bfloat16), ISA_LEVELS[level] if level else frozenset())


MACHINES: dict[str, Machine] = {
    "amx": _machine(16, "amx", "amx_int8", True),
    "vnni": _machine(16, "vnni", "avx512_vnni"),
    "widen16": _machine(16, "widen", "avx512"),
    "widen8": _machine(8, "widen", "avx2"),
    "madd16": _machine(16, "madd", "avx512"),
    "madd8": _machine(8, "madd", "avx2"),
    "lane16": _machine(16, "lane", "avx512"),
    "lane8": _machine(8, "lane", "avx2"),
    "lane4": _machine(4, "lane", None),
}


def needs(name: str) -> Any:
    """Skips a test unless this machine has the instructions of this name."""
    lacks = sorted(MACHINES[name].features - HOST.features)
    return pytest.mark.skipif(bool(lacks), reason=f"this processor lacks {', '.join(lacks)}")


def on(names: Collection[str]) -> Any:
    """Parametrizes a test over machines; those whose instructions this one lacks are skipped."""
    params = [pytest.param(MACHINES[name], id=name, marks=needs(name)) for name in names]
    return pytest.mark.parametrize("machine", params)


def build(name: str, function: Any, machine: Machine) -> Any:
    """The executable of one kernel."""
    return build_all({name: function}, machine)


def build_all(functions: dict[str, Any], machine: Machine) -> Any:
    """The executable of kernels, by name."""
    return tvm.compile(tvm.IRModule(functions), machine.target(), tir_pipeline=TIR_PIPELINE)


@cache
def compiled(make: Callable[[Any, Isa], Any], spec: Any, machine: Machine) -> Any:
    """The compiled kernel that ``make`` returns for a specification."""
    return build(spec.name, make(spec, machine.isa), machine)[spec.name]


def fenced(array: np.ndarray) -> np.ndarray:
    """A copy whose memory, rounded up to the alignment, ends at an inaccessible page."""
    page, size = mmap.PAGESIZE, -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    pages = -(-size // page) * page
    memory = mmap.mmap(-1, pages + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    nobody = libc.mprotect(ctypes.c_void_p(address + pages), ctypes.c_size_t(page), 0)
    assert nobody == 0, "the fence does not stand"
    held = np.frombuffer(memory, array.dtype, array.size, pages - size).reshape(array.shape)
    held[...] = array
    return held


def call(
    function: Any,
    operands: Sequence[np.ndarray],
    results: Sequence[np.ndarray],
    sizes: Sequence[int] = (),
) -> list[Any]:
    """The results, initialized with what is passed for them; ``sizes``: numbers that follow the operands."""
    arrays = [fenced(np.asarray(a)) for a in (*operands, *results)]
    # For arrays without elements, numpy reports strides that TVM does not accept.
    passed = [tvm.runtime.from_dlpack(a) if a.size else tvm.runtime.tensor(a) for a in arrays]
    function(*passed[: len(operands)], *sizes, *passed[len(operands) :])
    return arrays[len(operands) :]


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The bits of bfloat16 numbers, rounded half to even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
