"""What kernels are written with: a few words over TVM's IRBuilder.

A kernel is a Python function that emits a TIR function: loops are ``with`` blocks of TVM's, what is
repeated at compile time is a Python loop, and vectors are explicit (an index is a ramp, a value has
lanes), so that what the machine runs is what is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

KERNEL = "tersor.kernel"  # The attribute of a function that no pass of a pipeline may touch.


@dataclass(frozen=True)
class Isa:
    """What vector instructions a kernel may use.

    Attributes:
        lanes: of a float32 vector.
        dot: how u8 x s8 products are summed: ``amx``, ``vnni`` (four products an instruction),
            ``madd`` (AVX's pairs into 16 bits that saturate, where weights are safe), ``widen``
            (pairs of 16-bit products), ``lane`` (32-bit products).
        threads: that a kernel divides its work among.
        bfloat16: whether tiles multiply bfloat16 (AMX).
    """

    lanes: int
    dot: str
    threads: int
    bfloat16: bool = False

    @staticmethod
    def of(features: Collection[str], threads: int) -> Isa:
        """By ISA features of a target."""
        held = set(features)
        if "amx_int8" in held:
            return Isa(16, "amx", threads, "amx_bf16" in held)
        if "avx512f" in held:
            return Isa(16, "vnni" if "avx512_vnni" in held else "widen", threads)
        if "avx2" in held:
            return Isa(8, "widen", threads)
        return Isa(4, "lane", threads)


def function(name: str, body: Callable[[], None]) -> tirx.PrimFunc:
    """The kernel that ``body`` emits: its parameters first, by :func:`parameter`."""
    with IRBuilder() as builder, T.prim_func(s_tir=False):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True, KERNEL: 1})
        body()
    return builder.get()


def in_name(number: float) -> str:
    """A number as a part of a kernel's name, to seven digits."""
    return f"{number:.7g}".replace("-", "m").replace("+", "").replace(".", "p")


def size(name: str) -> tirx.Var:
    """A dim that a kernel learns from its operands."""
    return tirx.Var(name, "int64")


def parameter(name: str, shape: Sequence[Any], dtype: str) -> Any:
    """An operand or a result of the kernel."""
    return T.arg(name, T.buffer(tuple(shape), dtype))


def registers(lanes: int, dtype: str) -> Any:
    """A variable that lives in a register: a stack slot of one vector, which LLVM promotes. (Slots of as
    many numbers would be promoted too, but several of them to one vector, wider than any register.)"""
    held = dtype if lanes == 1 else f"{dtype}x{lanes}"
    wish = {"disable_lower_builtin": True}
    return T.alloc_buffer((1,), held, scope="local", annotations=wish)


def scratch(shape: Sequence[int], dtype: str) -> Any:
    """Memory of one task; 64-byte aligned."""
    return T.alloc_buffer(tuple(shape), dtype, scope="global", align=64)


def load(buffer: Any, *index: Any, lanes: int) -> Any:
    """``lanes`` elements from ``index`` on, along the last axis."""
    *outer, last = index
    return buffer[(*outer, _span(last, lanes))]


def store(buffer: Any, value: Any, *index: Any, lanes: int) -> None:
    """Writes a vector from ``index`` on, along the last axis."""
    *outer, last = index
    T.buffer_store(buffer, value, [*outer, _span(last, lanes)])


def _span(first: Any, lanes: int) -> Any:
    return first if lanes == 1 else T.ramp(first, 1, lanes)


def pieces(n: int, lanes: int) -> list[tuple[int, int]]:
    """(start, lanes) of the vectors, each as wide as can be, that ``n`` elements are: 28 by 16 are
    (0, 16), (16, 8), (24, 4)."""
    found, at = [], 0
    while at < n:
        while lanes > n - at:
            lanes //= 2
        found.append((at, lanes))
        at += lanes
    return found


def clear(buffer: Any) -> None:
    """Zeros in all of a buffer of known size, whose rows are whole vectors of 16."""
    rows, width = (int(d) for d in buffer.shape)
    with T.serial(0, rows) as r:
        for c in range(0, width, 16):
            store(buffer, T.broadcast(tirx.const(0, buffer.dtype), 16), r, c, lanes=16)


def get(register: Any, lanes: int) -> Any:
    """The value of :func:`registers`."""
    return register[0]


def put(register: Any, value: Any, lanes: int) -> None:
    """Sets the value of :func:`registers`."""
    T.buffer_store(register, value, [0])


def splat(value: Any, lanes: int) -> Any:
    """A scalar in every lane."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def number(value: float, lanes: int) -> Any:
    """A float32 number in every lane."""
    return T.broadcast(T.float32(value), lanes)


def bind(value: Any) -> Any:
    """Computes ``value`` once; a name for it."""
    return T.Bind(value)


def cast(value: Any, dtype: str) -> Any:
    """Converts lane by lane."""
    return tirx.Cast(dtype, value)


def as_bits(value: Any, dtype: str) -> Any:
    """The same bits read as another type."""
    return T.reinterpret(dtype, value)


def intrinsic(dtype: str, name: str, *operands: Any) -> Any:
    """A call of an LLVM intrinsic."""
    return T.call_llvm_intrin(dtype, name, *operands)


def run(name: str, *operands: Any) -> None:
    """A call of an LLVM intrinsic for its effect."""
    T.evaluate(T.call_llvm_intrin("void", name, *operands))


def times_power_of_two(value: Any, exponent: Any, lanes: int) -> Any:
    """``value * 2^exponent`` for whole float exponents from -126 to 127 (AVX-512, which has an
    instruction for it: any)."""
    if lanes == 16:
        always, rounding = T.int16(-1), T.int32(4)  # every lane; as the processor is set to
        operands = (value, exponent, value, always, rounding)
        return intrinsic("float32x16", "llvm.x86.avx512.mask.scalef.ps.512", *operands)
    biased = cast(exponent, f"int32x{lanes}") + T.broadcast(T.int32(127), lanes)
    return value * as_bits(biased << T.broadcast(T.int32(23), lanes), f"float32x{lanes}")


def transposed(rows: Sequence[Any]) -> list[Any]:
    """The columns of a square of vectors, as many as each has lanes (a power of two): blocks off the
    diagonal change places, of one lane, of two, of four … (Eklundh 1972)."""
    held, n, size = [bind(row) for row in rows], len(rows), 1
    while size < n:
        low = [c if not c & size else n + c - size for c in range(n)]
        high = [c + size if not c & size else n + c for c in range(n)]
        for i in range(n):
            if not i & size:
                a, b = held[i], held[i + size]
                held[i], held[i + size] = (bind(tirx.Shuffle([a, b], w)) for w in (low, high))
        size *= 2
    return held


def lane_sums(vectors: Sequence[Any]) -> Any:
    """The vector whose lane i is the sum of all lanes of vector i, of as many vectors as they have lanes:
    the steps of :func:`transposed`, each of which adds what it brings together."""
    held, n, size = list(vectors), len(vectors), 1
    while size < n:
        low = [c if not c & size else n + c - size for c in range(n)]
        high = [c + size if not c & size else n + c for c in range(n)]
        held = [
            bind(tirx.Shuffle([a, b], low) + tirx.Shuffle([a, b], high))
            for a, b in zip(held[::2], held[1::2], strict=True)
        ]
        size *= 2
    return held[0]


def reduce_lanes(value: Any, lanes: int, combine: Callable[[Any, Any], Any]) -> Any:
    """Folds the lanes of a vector into one number: halves onto halves."""
    while lanes > 1:
        lanes //= 2
        value = bind(value)
        low, high = (
            tirx.Shuffle([value], list(range(start, start + lanes))) for start in (0, lanes)
        )
        value = combine(low, high)
    return value
