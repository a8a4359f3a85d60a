"""Helpers over TVM's IRBuilder, with which kernels are written.

A kernel is a Python function that emits a TIR function: run-time loops are ``with`` blocks of TVM's,
unrolled ones are Python loops, and vectors are explicit (an index is a ramp, a value has lanes), so that the
source shows the instructions that run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

KERNEL = "tersor.kernel"  # Marks a function that no pass of a pipeline may rewrite.


@dataclass(frozen=True)
class Isa:
    """The vector instructions that a kernel may use, and its threads.

    Attributes:
        lanes: of a float32 vector.
        dot: how u8 x s8 products are summed: ``amx``, ``vnni`` (four products per instruction),
            ``madd`` (AVX's saturating 16-bit sums of pairs, for weights that cannot overflow them),
            ``widen`` (pairs of 16-bit products), ``lane`` (32-bit products).
        threads: among which a kernel divides its work.
        bfloat16: whether AMX tiles multiply bfloat16.
    """

    lanes: int
    dot: str
    threads: int
    bfloat16: bool = False

    @staticmethod
    def of(features: Collection[str], threads: int) -> Isa:
        """For the ISA features of a target."""
        if "amx_int8" in features:
            return Isa(16, "amx", threads, "amx_bf16" in features)
        if "avx512f" in features:
            return Isa(16, "vnni" if "avx512_vnni" in features else "widen", threads)
        if "avx2" in features:
            return Isa(8, "widen", threads)
        return Isa(4, "lane", threads)


def function(name: str, body: Callable[[], None]) -> tirx.PrimFunc:
    """The kernel that ``body`` emits, which first declares its parameters (:func:`parameter`)."""
    with IRBuilder() as builder, T.prim_func(s_tir=False):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True, KERNEL: 1})
        body()
    return builder.get()


def name_part(number: float) -> str:
    """A number to seven digits, as part of a kernel's name."""
    return f"{number:.7g}".replace("-", "m").replace("+", "").replace(".", "p")


def size(name: str) -> tirx.Var:
    """A dim that is known at run time, from the shapes of operands."""
    return tirx.Var(name, "int64")


def parameter(name: str, shape: Sequence[Any], dtype: str) -> Any:
    """An operand or a result of the kernel."""
    return T.arg(name, T.buffer(tuple(shape), dtype))


def register(lanes: int, dtype: str) -> Any:
    """A mutable vector variable: a stack slot that LLVM promotes to a register. (Slots of ``lanes``
    scalars would be promoted too, but several of them to one vector, wider than any register.)"""
    vector = dtype if lanes == 1 else f"{dtype}x{lanes}"
    on_stack = {"disable_lower_builtin": True}
    return T.alloc_buffer((1,), vector, scope="local", annotations=on_stack)


def scratch(shape: Sequence[int], dtype: str) -> Any:
    """Scratch memory of one task, aligned to 64 bytes."""
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
    """(start, lanes) of vectors, each as wide as possible, that cover ``n`` elements: 28 elements with 16
    lanes are (0, 16), (16, 8), (24, 4)."""
    vectors, at = [], 0
    while at < n:
        while lanes > n - at:
            lanes //= 2
        vectors.append((at, lanes))
        at += lanes
    return vectors


def fill_zeros(buffer: Any) -> None:
    """Fills a buffer of static shape, whose rows are a multiple of 16, with zeros."""
    rows, width = (int(d) for d in buffer.shape)
    with T.serial(0, rows) as r:
        for c in range(0, width, 16):
            store(buffer, T.broadcast(tirx.const(0, buffer.dtype), 16), r, c, lanes=16)


def get(variable: Any) -> Any:
    """The value of a :func:`register`."""
    return variable[0]


def put(variable: Any, value: Any) -> None:
    """Sets the value of a :func:`register`."""
    T.buffer_store(variable, value, [0])


def splat(value: Any, lanes: int) -> Any:
    """A scalar broadcast to every lane."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def number(value: float, lanes: int) -> Any:
    """A float32 constant in every lane."""
    return T.broadcast(T.float32(value), lanes)


def bind(value: Any) -> Any:
    """Binds ``value`` to a variable, so that it is computed once."""
    return T.Bind(value)


def cast(value: Any, dtype: str) -> Any:
    """Converts each lane."""
    return tirx.Cast(dtype, value)


def as_bits(value: Any, dtype: str) -> Any:
    """Reinterprets the bits as another type."""
    return T.reinterpret(dtype, value)


def intrinsic(dtype: str, name: str, *operands: Any) -> Any:
    """A call of an LLVM intrinsic."""
    return T.call_llvm_intrin(dtype, name, *operands)


def run(name: str, *operands: Any) -> None:
    """Calls an LLVM intrinsic that has no result."""
    T.evaluate(T.call_llvm_intrin("void", name, *operands))


def times_power_of_two(value: Any, exponent: Any, lanes: int) -> Any:
    """``value * 2^exponent`` for integral float exponents: from -126 to 127, or any with AVX-512, which has
    an instruction for it."""
    if lanes == 16:
        all_lanes, rounding = T.int16(-1), T.int32(4)  # 4: the current rounding mode.
        operands = (value, exponent, value, all_lanes, rounding)
        return intrinsic("float32x16", "llvm.x86.avx512.mask.scalef.ps.512", *operands)
    biased = cast(exponent, f"int32x{lanes}") + T.broadcast(T.int32(127), lanes)
    return value * as_bits(biased << T.broadcast(T.int32(23), lanes), f"float32x{lanes}")


def transposed(rows: Sequence[Any]) -> list[Any]:
    """Transposes a square of vectors, as many as each has lanes (a power of two): off-diagonal blocks are
    swapped, of one lane, of two, of four … (Eklundh 1972)."""
    vectors, n, size = [bind(row) for row in rows], len(rows), 1
    while size < n:
        low = [c if not c & size else n + c - size for c in range(n)]
        high = [c + size if not c & size else n + c for c in range(n)]
        for i in range(n):
            if not i & size:
                a, b = vectors[i], vectors[i + size]
                vectors[i], vectors[i + size] = (
                    bind(tirx.Shuffle([a, b], lanes)) for lanes in (low, high)
                )
        size *= 2
    return vectors


def lane_sums(vectors: Sequence[Any]) -> Any:
    """Horizontal sums: lane i of the result is the sum of the lanes of vector i, for as many vectors as they
    have lanes. The steps are those of :func:`transposed`, each of which adds the two vectors it shuffles."""
    sums, n, size = list(vectors), len(vectors), 1
    while size < n:
        low = [c if not c & size else n + c - size for c in range(n)]
        high = [c + size if not c & size else n + c for c in range(n)]
        sums = [
            bind(tirx.Shuffle([a, b], low) + tirx.Shuffle([a, b], high))
            for a, b in zip(sums[::2], sums[1::2], strict=True)
        ]
        size *= 2
    return sums[0]


def reduce_lanes(value: Any, lanes: int, combine: Callable[[Any, Any], Any]) -> Any:
    """Reduces the lanes of a vector to a scalar, by halves."""
    while lanes > 1:
        lanes //= 2
        value = bind(value)
        low, high = (
            tirx.Shuffle([value], list(range(start, start + lanes))) for start in (0, lanes)
        )
        value = combine(low, high)
    return value
