"""Lowers loops that the schedule has annotated: vectors, reductions, register tiles, and threads.

The pass runs on plain loops with flat indices.  A range of any length, static or dynamic, is covered by whole
pieces and then by smaller ones, so that loops contain no conditions.  A loop of unexpected form is kept.

* ``VECTOR``: iterations are independent: vectors, then single elements.
* ``REDUCE``: the loop reduces to one number that is read nowhere else: vectors of accumulators, which are
  combined at the end; four of them, to hide latency.
* ``TILE``: a loop over columns, or over rows around one over columns, which contains an initial value and the
  loops that reduce to it: accumulators of a few rows by some vectors of columns are kept in registers while
  the reduction loops run once for all of them (:mod:`tersor.backends.tvm.tiles`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm import sym, tirx
from tvm.ir import Call
from tvm.tirx.stmt import ForKind

from tersor.backends.tvm.kernels.emit import KERNEL
from tersor.backends.tvm.statements import (
    cover,
    is_accumulator,
    load,
    loads_of,
    mentions,
    over_lanes,
    piece_sizes,
    registers,
    split_initial,
    store,
    substitute,
    with_parts,
)
from tersor.backends.tvm.tiles import tiled

VECTOR, REDUCE = "tersor.vector", "tersor.reduce"  # The value is the lanes of a vector.
TILE = "tersor.tile"  # The value is the rows of a tile, and the lanes of a vector.
GRAIN = 16384  # Elements below which threads cost more than they gain.
_CHAINS = 4  # Vectors of accumulators of a reduction.
_PACKED = tvm.ir.Op.get("tirx.tvm_call_packed")


@tirx.transform.prim_func_pass(opt_level=0)
def lower_loops(func: tirx.PrimFunc, module: tvm.IRModule, context: object) -> tirx.PrimFunc:
    """The pass: lowers annotated loops, and makes parallel loops of little work serial."""
    if func.attrs and KERNEL in func.attrs:
        return func
    body = tvm_ffi.structural_map(func.body, (tirx.For, _serial_if_small))
    return func.with_body(tvm_ffi.structural_map(body, (tirx.For, _lowered)))


def _serial_if_small(loop: Any) -> Any:
    """Makes a parallel loop of little work serial; emits both loops if the work is known at run time only."""
    if loop.kind != ForKind.PARALLEL:
        return loop
    analyzer = sym.Analyzer()
    if analyzer.can_prove(_work(loop.body) >= GRAIN):
        return loop
    is_small = analyzer.simplify(_work(loop) < GRAIN)
    serial = with_parts(loop, kind=ForKind.SERIAL)
    if isinstance(is_small, tirx.IntImm):
        return serial if is_small.value else loop
    return tirx.IfThenElse(is_small, serial, loop)


def _work(stmt: Any) -> Any:
    """How many times the statements within run, in total."""
    if isinstance(stmt, tirx.For):
        inner = _work(stmt.body)
        # Inner loops whose lengths depend on this one count once.
        inner = tirx.const(1, "int64") if mentions(inner, stmt.loop_var) else inner
        return tirx.Cast("int64", stmt.extent) * inner
    if isinstance(stmt, tirx.SeqStmt):
        return sum((_work(s) for s in stmt.seq), tirx.const(0, "int64"))
    if isinstance(stmt, tirx.IfThenElse):
        return _work(stmt.then_case)
    if isinstance(stmt, tirx.Evaluate):
        return _call_work(stmt.value)
    return tirx.const(1, "int64")


def _call_work(call: Any) -> Any:
    """The work of a call: the elements of its first array argument."""
    shape = tirx.const(1, "int64")
    if isinstance(call, Call) and call.op == _PACKED and isinstance(call.args[1], Call):
        for extent in call.args[1].args[1].args:
            shape = shape * tirx.Cast("int64", extent)
    return shape


def _lowered(loop: Any) -> Any:
    annotations = loop.annotations
    if VECTOR in annotations:
        return _vectorized(loop, int(annotations[VECTOR]))
    if REDUCE in annotations:
        return _reduced(loop, int(annotations[REDUCE])) or loop
    if TILE in annotations:
        rows, lanes = (int(n) for n in annotations[TILE])
        return tiled(loop, rows, lanes) or loop
    return loop


# -- vectors ---------------------------------------------------------------------------------------


def _vectorized(loop: Any, lanes: int) -> Any:
    dtype = str(loop.loop_var.ty.dtype)

    def piece(offset: Any, size: int) -> Any:
        return over_lanes(
            size, lambda lane: substitute(loop.body, {loop.loop_var: offset + lane}), dtype
        )

    return cover(loop, piece_sizes(loop.extent, lanes, lanes), piece)


# -- reductions ------------------------------------------------------------------------------------


def _largest(a: Any, b: Any) -> Any:
    return tirx.Select(tirx.Or(b < a, tirx.isnan(a)), a, b)


def _smallest(a: Any, b: Any) -> Any:
    return tirx.Select(tirx.Or(a < b, tirx.isnan(a)), a, b)


# Identities of operators, as TVM's simplifier writes them. The last two propagate NaN.
_IDENTITIES: dict[Any, Callable[[str], Any]] = {
    tirx.Add: lambda dtype: tirx.const(0, dtype),
    tirx.Mul: lambda dtype: tirx.const(1, dtype),
    tirx.Max: tirx.min_value,
    tirx.Min: tirx.max_value,
    _largest: lambda dtype: tirx.const(-math.inf, dtype),
    _smallest: lambda dtype: tirx.const(math.inf, dtype),
}


def _reduced(loop: Any, lanes: int) -> Any:
    condition, initial, update = split_initial(loop.body)
    operator = _operator(update)
    if operator is None or any(mentions(i, loop.loop_var) for i in update.indices):
        return None
    dtype, index = str(update.buffer.dtype), str(loop.loop_var.ty.dtype)
    width = lanes * _CHAINS
    extent = loop.extent
    while isinstance(extent, tirx.IntImm) and width > max(extent.value, 1):
        width //= 2
    accumulators = registers(width, dtype)
    operand = _operand(update)

    def piece(offset: Any, size: int) -> Any:
        if size == 1:
            return substitute(update, {loop.loop_var: offset})

        def one(lane: Any) -> Any:
            term = substitute(operand, {loop.loop_var: offset + lane})
            return store(accumulators, operator(load(accumulators, lane), term), lane)

        return over_lanes(size, one, index)

    def halve(size: int) -> Any:
        def one(lane: Any) -> Any:
            upper = load(accumulators, lane + size)
            return store(accumulators, operator(load(accumulators, lane), upper), lane)

        return over_lanes(size, one, index)

    identity = _IDENTITIES[operator](dtype)
    halves = [halve(width >> i) for i in range(1, width.bit_length())]
    whole = load(update.buffer, *update.indices)
    last = tirx.BufferStore(
        update.buffer, operator(whole, load(accumulators, tirx.const(0, index))), update.indices
    )
    initialization = [] if initial is None else [_set_initial(loop, condition, initial)]
    return tirx.SeqStmt(
        [
            *initialization,
            tirx.AllocBuffer(accumulators),
            over_lanes(width, lambda lane: store(accumulators, identity, lane), index),
            cover(loop, piece_sizes(extent, width, min(lanes, width)), piece),
            *halves,
            last,
        ]
    )


def _set_initial(loop: Any, condition: Any, initial: Any) -> Any:
    """The initial value, set where the loop begins."""
    begin = {loop.loop_var: loop.min}
    return tirx.IfThenElse(substitute(condition, begin), substitute(initial, begin), None)


def _extreme(update: Any) -> Any:
    """The operator of ``S = Select(S > x or isnan(S), S, x)``, which propagates NaN, or of the minimum."""
    value = update.value
    if not isinstance(value, tirx.Select) or not is_accumulator(value.true_value, update):
        return None
    for operator in (_largest, _smallest):
        if tvm_ffi.structural_equal(value, operator(value.true_value, value.false_value)):
            return operator
    return None


def _operator(update: Any) -> Any:
    """The operator of ``S = S op x``."""
    if isinstance(update, tirx.BufferStore) and isinstance(update.value, tirx.Select):
        return _extreme(update)
    if not isinstance(update, tirx.BufferStore) or type(update.value) not in _IDENTITIES:
        return None
    loads = loads_of(update.value, update.buffer)
    own = [is_accumulator(x, update) for x in (update.value.a, update.value.b)]
    return type(update.value) if len(loads) == 1 and any(own) else None


def _operand(update: Any) -> Any:
    """``x`` of ``S = S op x``."""
    if isinstance(update.value, tirx.Select):
        return update.value.false_value
    return update.value.b if is_accumulator(update.value.a, update) else update.value.a
