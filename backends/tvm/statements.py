"""TIR statements and loops: building, substituting, and covering a range by pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm_ffi
from tvm import sym, tirx
from tvm.ir import TensorLoad
from tvm.tirx.stmt import ForKind


def cover(loop: Any, sizes: Sequence[int], piece: Callable[[Any, int], Any]) -> Any:
    """Loops over ``piece(offset, size)`` that together cover the range of ``loop``: each size as often as it
    fits into the rest. The first has the kind of ``loop``, the others are serial."""
    dtype = str(loop.loop_var.ty.dtype)
    analyzer = sym.Analyzer()
    done: Any = tirx.const(0, dtype)
    kind, statements = loop.kind, []
    for size in sizes:
        count = analyzer.simplify((loop.extent - done) // tirx.const(size, dtype))
        if isinstance(count, tirx.IntImm) and count.value == 0:
            continue
        var = tirx.Var(loop.loop_var.name, dtype)
        offset = loop.min + done + var * tirx.const(size, dtype)
        statements.append(tirx.For(var, tirx.const(0, dtype), count, kind, piece(offset, size)))
        done, kind = analyzer.simplify(done + count * size), ForKind.SERIAL
    if not statements:
        return tirx.Evaluate(0)  # The range is empty.
    return tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]


def piece_sizes(extent: Any, largest: int, lanes: int) -> list[int]:
    """The sizes of pieces for a range. The remainder of a static range is covered by halving; a dynamic one
    has few sizes, as each adds code."""
    if isinstance(extent, tirx.IntImm):
        return [largest >> i for i in range(largest.bit_length())]
    return list(dict.fromkeys((largest, lanes, 1)))


def over_lanes(extent: int, at: Callable[[Any], Any], dtype: str) -> Any:
    """A vectorized loop over ``extent`` lanes, of the statement ``at`` each."""
    if extent == 1:
        return at(tirx.const(0, dtype))
    var = tirx.Var("lane", dtype)
    zero, count = tirx.const(0, dtype), tirx.const(extent, dtype)
    return tirx.For(var, zero, count, ForKind.VECTORIZED, at(var))


def registers(count: int, dtype: str) -> Any:
    """A local buffer, which LLVM promotes to registers."""
    return tirx.decl_buffer((count,), dtype, "tile", scope="local")


def load(buffer: Any, *indices: Any) -> Any:
    """A load of one element."""
    return tirx.BufferLoad(buffer, list(indices))


def store(buffer: Any, value: Any, index: Any) -> Any:
    """A store to a buffer of one axis."""
    return tirx.BufferStore(buffer, value, [index])


def with_parts(loop: Any, kind: Any = None, body: Any = None) -> Any:
    """The loop with another kind or body."""
    return tirx.For(
        loop.loop_var,
        loop.min,
        loop.extent,
        loop.kind if kind is None else kind,
        loop.body if body is None else body,
        loop.thread_binding,
        loop.annotations,
    )


def substitute(node: Any, values: dict[Any, Any]) -> Any:
    """A statement or an expression with variables replaced by values."""

    def value(var: Any) -> Any:
        return next((v for k, v in values.items() if k.same_as(var)), var)

    return tvm_ffi.structural_map(node, (tirx.Var, value))


def mentions(node: Any, var: Any) -> bool:
    """Whether a statement or an expression contains a variable."""
    found = tvm_ffi.structural_walk(
        node, (tirx.Var, lambda v: tvm_ffi.VisitInterrupt(True) if v.same_as(var) else None)
    )
    return found is not None


def loads_of(node: Any, buffer: Any) -> list[Any]:
    """The loads from a buffer in a statement or an expression."""
    loads: list[Any] = []
    tvm_ffi.structural_walk(node, (TensorLoad, loads.append))
    return [load for load in loads if load.source.same_as(buffer)]


def replace_loads(node: Any, buffer: Any, replacement: Any) -> Any:
    """``node`` with every load from a buffer replaced."""
    return tvm_ffi.structural_map(
        node,
        (TensorLoad, lambda load: replacement if load.source.same_as(buffer) else load),
    )


def split_initial(body: Any) -> tuple[Any, Any, Any]:
    """Splits a reduction's body into the condition and the statement of its initial value (None without one),
    and the statement that accumulates."""
    if not isinstance(body, tirx.SeqStmt) or len(body.seq) != 2:
        return None, None, body
    first, update = body.seq
    if isinstance(first, tirx.IfThenElse) and first.else_case is None:
        return first.condition, first.then_case, update
    return tirx.const(True, "bool"), first, update


def is_accumulator(value: Any, update: Any) -> bool:
    """Whether ``value`` loads the element that ``update`` stores."""
    return (
        isinstance(value, TensorLoad)
        and value.source.same_as(update.buffer)
        and tvm_ffi.structural_equal(value.indices, update.indices)
    )
