"""The last shape of loops: vectors, partial sums, tiles in registers, and threads where they pay.

The schedule says of a loop what it is; here, where loops are plain and indices flat, it is rewritten.
A range of any length, known or not, is covered by whole pieces and then by smaller ones, so that no
loop holds a condition.  What does not look as expected stays the loop that it was.

* ``VECTOR``: iterations are independent: vectors, then single elements.
* ``REDUCE``: the loop folds into one number that is not read otherwise: vectors are folded into
  vectors, and these into the number at the end.  Four of them, so that one fold does not wait for
  the one before.
* ``TILE``: a loop over columns, or over rows with one over columns in it, around an initial value
  and loops that fold into it: a few rows by some vectors of columns are held in registers while the
  folding loops run once for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import sym, tirx
from tvm.ir import Call, TensorLoad
from tvm.tirx.stmt import ForKind

from tersor.backends.tvm.kernels.emit import KERNEL

VECTOR, REDUCE = "tersor.vector", "tersor.reduce"  # The value is the lanes of a vector.
TILE = "tersor.tile"  # The value is the rows of a tile, and the lanes of a vector.
GRAIN = 16384  # Elements below which threads cost more than they bring.
_CHAINS = 4  # Vectors that a reduction folds into.
_TILE_SUMS = 8  # Vectors of a tile: as many as keep the units busy and fit registers.


def _largest(a: Any, b: Any) -> Any:
    return tirx.Select(tirx.Or(b < a, tirx.isnan(a)), a, b)


def _smallest(a: Any, b: Any) -> Any:
    return tirx.Select(tirx.Or(a < b, tirx.isnan(a)), a, b)


# As TVM's simplifier leaves them. The last two keep NaN.
_FOLDS: dict[Any, Callable[[str], Any]] = {
    tirx.Add: lambda dtype: tirx.const(0, dtype),
    tirx.Mul: lambda dtype: tirx.const(1, dtype),
    tirx.Max: tirx.min_value,
    tirx.Min: tirx.max_value,
    _largest: lambda dtype: tirx.const(-math.inf, dtype),
    _smallest: lambda dtype: tirx.const(math.inf, dtype),
}


_PACKED = tvm.ir.Op.get("tirx.tvm_call_packed")


@tirx.transform.prim_func_pass(opt_level=0)
def shape_loops(func: tirx.PrimFunc, module: tvm.IRModule, context: object) -> tirx.PrimFunc:
    """Rewrites the loops that the schedule has marked."""
    if func.attrs and KERNEL in func.attrs:
        return func
    body = tvm_ffi.structural_map(func.body, (tirx.For, _threads_where_they_pay))
    return func.with_body(tvm_ffi.structural_map(body, (tirx.For, _shaped)))


def _threads_where_they_pay(loop: Any) -> Any:
    """A parallel loop of little work is serial; where that is known at run time only, it is both."""
    if loop.kind != ForKind.PARALLEL:
        return loop
    analyzer = sym.Analyzer()
    if analyzer.can_prove(_work(loop.body) >= GRAIN):
        return loop
    small = analyzer.simplify(_work(loop) < GRAIN)
    serial = _with(loop, kind=ForKind.SERIAL)
    if isinstance(small, tirx.IntImm):
        return serial if small.value else loop
    return tirx.IfThenElse(small, serial, loop)


def _work(stmt: Any) -> Any:
    """How often the statements within run, all together."""
    if isinstance(stmt, tirx.For):
        inner = _work(stmt.body)
        # Where the inner loops' lengths vary, they count once.
        inner = tirx.const(1, "int64") if mentions(inner, stmt.loop_var) else inner
        return tirx.Cast("int64", stmt.extent) * inner
    if isinstance(stmt, tirx.SeqStmt):
        return sum((_work(s) for s in stmt.seq), tirx.const(0, "int64"))
    if isinstance(stmt, tirx.IfThenElse):
        return _work(stmt.then_case)
    if isinstance(stmt, tirx.Evaluate):
        return _called(stmt.value)
    return tirx.const(1, "int64")


def _called(call: Any) -> Any:
    """A function that is called goes over the first array that it is given."""
    shape = tirx.const(1, "int64")
    if isinstance(call, Call) and call.op == _PACKED and isinstance(call.args[1], Call):
        for extent in call.args[1].args[1].args:
            shape = shape * tirx.Cast("int64", extent)
    return shape


def _shaped(loop: Any) -> Any:
    annotations = loop.annotations
    if VECTOR in annotations:
        return _vectors(loop, int(annotations[VECTOR]))
    if REDUCE in annotations:
        return _partial_sums(loop, int(annotations[REDUCE])) or loop
    if TILE in annotations:
        rows, lanes = (int(n) for n in annotations[TILE])
        return _tiles(loop, rows, lanes) or loop
    return loop


# -- covering a range ------------------------------------------------------------------------------


def _cover(loop: Any, sizes: Sequence[int], piece: Callable[[Any, int], Any]) -> Any:
    """Statements of ``piece(offset, size)`` that cover the range of a loop, each size as often as it
    fits into what is left; the first of them runs as the loop does."""
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


def _sizes(extent: Any, largest: int, lanes: int) -> list[int]:
    """Pieces to cover a range with.  Of a known range, the remainder is made of halves; code for one
    that is not known would grow with every size."""
    if isinstance(extent, tirx.IntImm):
        return [largest >> i for i in range(largest.bit_length())]
    return list(dict.fromkeys((largest, lanes, 1)))


def _lanes_of(extent: int, at: Callable[[Any], Any], dtype: str) -> Any:
    """A statement for all lanes of a vector; ``at`` gives that of one."""
    if extent == 1:
        return at(tirx.const(0, dtype))
    var = tirx.Var("lane", dtype)
    zero, count = tirx.const(0, dtype), tirx.const(extent, dtype)
    return tirx.For(var, zero, count, ForKind.VECTORIZED, at(var))


# -- vectors ---------------------------------------------------------------------------------------


def _vectors(loop: Any, lanes: int) -> Any:
    dtype = str(loop.loop_var.ty.dtype)

    def piece(offset: Any, size: int) -> Any:
        return _lanes_of(size, lambda lane: _at(loop.body, {loop.loop_var: offset + lane}), dtype)

    return _cover(loop, _sizes(loop.extent, lanes, lanes), piece)


# -- reductions ------------------------------------------------------------------------------------


def _partial_sums(loop: Any, lanes: int) -> Any:
    condition, initial, store = _initialized(loop.body)
    fold = _fold(store)
    if fold is None or any(mentions(i, loop.loop_var) for i in store.indices):
        return None
    dtype, index = str(store.buffer.dtype), str(loop.loop_var.ty.dtype)
    wide = lanes * _CHAINS
    extent = loop.extent
    while isinstance(extent, tirx.IntImm) and wide > max(extent.value, 1):
        wide //= 2
    sums = _registers(wide, dtype)
    operand = _operand(store)

    def piece(offset: Any, size: int) -> Any:
        if size == 1:
            return _at(store, {loop.loop_var: offset})

        def one(lane: Any) -> Any:
            term = _at(operand, {loop.loop_var: offset + lane})
            return _store(sums, fold(_load(sums, lane), term), lane)

        return _lanes_of(size, one, index)

    def halve(size: int) -> Any:
        return _lanes_of(
            size,
            lambda lane: _store(sums, fold(_load(sums, lane), _load(sums, lane + size)), lane),
            index,
        )

    identity = _FOLDS[fold](dtype)
    halves = [halve(wide >> i) for i in range(1, wide.bit_length())]
    whole = _load(store.buffer, *store.indices)
    last = tirx.BufferStore(
        store.buffer, fold(whole, _load(sums, tirx.const(0, index))), store.indices
    )
    before = [] if initial is None else [_first(loop, condition, initial)]
    return tirx.SeqStmt(
        [
            *before,
            tirx.AllocBuffer(sums),
            _lanes_of(wide, lambda lane: _store(sums, identity, lane), index),
            _cover(loop, _sizes(extent, wide, min(lanes, wide)), piece),
            *halves,
            last,
        ]
    )


def _initialized(body: Any) -> tuple[Any, Any, Any]:
    """A body's condition and statement that set the initial value, None where there are none, and
    the statement that folds."""
    if not isinstance(body, tirx.SeqStmt) or len(body.seq) != 2:
        return None, None, body
    first, store = body.seq
    if isinstance(first, tirx.IfThenElse) and first.else_case is None:
        return first.condition, first.then_case, store
    return tirx.const(True, "bool"), first, store


def _first(loop: Any, condition: Any, initial: Any) -> Any:
    """The initial value set where the loop begins."""
    begin = {loop.loop_var: loop.min}
    return tirx.IfThenElse(_at(condition, begin), _at(initial, begin), None)


def _extreme(store: Any) -> Any:
    """The operator of ``S = Select(S > x or isnan(S), S, x)``, which keeps NaN, or of the least."""
    value = store.value
    if not isinstance(value, tirx.Select) or not _is_own(value.true_value, store):
        return None
    for fold in (_largest, _smallest):
        if tvm_ffi.structural_equal(value, fold(value.true_value, value.false_value)):
            return fold
    return None


def _fold(store: Any) -> Any:
    """The operator of ``S = S op x``."""
    if isinstance(store, tirx.BufferStore) and isinstance(store.value, tirx.Select):
        return _extreme(store)
    if not isinstance(store, tirx.BufferStore) or type(store.value) not in _FOLDS:
        return None
    loads = _loads(store.value, store.buffer)
    own = [_is_own(x, store) for x in (store.value.a, store.value.b)]
    return type(store.value) if len(loads) == 1 and any(own) else None


def _operand(store: Any) -> Any:
    """``x`` of ``S = S op x``."""
    if isinstance(store.value, tirx.Select):
        return store.value.false_value
    return store.value.b if _is_own(store.value.a, store) else store.value.a


def _is_own(value: Any, store: Any) -> bool:
    return (
        isinstance(value, TensorLoad)
        and value.source.same_as(store.buffer)
        and tvm_ffi.structural_equal(value.indices, store.indices)
    )


# -- tiles -----------------------------------------------------------------------------------------


def _tiles(loop: Any, rows: int, lanes: int) -> Any:
    columns = loop.body if rows > 1 else loop
    found = _nest(columns)
    if found is None:
        return None

    def across(row: Any, height: int) -> Any:
        sizes = _sizes(columns.extent, lanes * (_TILE_SUMS // height), lanes)

        def tile(column: Any, width: int) -> Any:
            return _Tile(row, column, height, width, min(width, lanes)).statement(*found)

        return _cover(columns, sizes, tile)

    def of_row(row: Any, height: int) -> Any:
        return across((loop.loop_var, row), height)

    return across(None, 1) if rows == 1 else _cover(loop, (rows, 1), of_row)


@dataclass(frozen=True)
class _Tile:
    """Some rows by some columns of results.

    Attributes:
        row: the variable of rows and the first row, None where columns are all there is.
        column: the first column.
        height, width: rows and columns.
        step: lanes of a vector.
    """

    row: tuple[Any, Any] | None
    column: Any
    height: int
    width: int
    step: int

    def statement(self, columns: Any, initial: Any, folding: Sequence[Any], update: Any) -> Any:
        """Sums in registers, the loops that fold into them, and what is written."""
        sums = _registers(self.height * self.width, str(update.buffer.dtype))

        def first(slot: Any, at: Any) -> Any:
            return _store(sums, _at(initial, at), slot)

        def summed(slot: Any, at: Any) -> Any:
            value = _replace_loads(update.value, update.buffer, _load(sums, slot))
            return _store(sums, _at(value, at), slot)

        def written(slot: Any, at: Any) -> Any:
            indices = [_at(i, at) for i in update.indices]
            return tirx.BufferStore(update.buffer, _load(sums, slot), indices)

        folds = self._each(columns, summed)
        for outer in reversed(folding):
            folds = _with(outer, body=folds)
        return tirx.SeqStmt(
            [
                tirx.AllocBuffer(sums),
                self._each(columns, first),
                folds,
                self._each(columns, written),
            ]
        )

    def _each(self, columns: Any, emit: Callable[[Any, Any], Any]) -> Any:
        """``emit(slot, values of the loops' variables)`` for every result of the tile."""
        dtype = str(columns.ty.dtype)

        def vector(r: int, c: int) -> Any:
            def one(lane: Any) -> Any:
                at = {columns: self.column + tirx.const(c, dtype) + lane}
                if self.row is not None:
                    var, begin = self.row
                    at[var] = begin + tirx.const(r, str(var.ty.dtype))
                return emit(tirx.const(r * self.width + c, dtype) + lane, at)

            return _lanes_of(self.step, one, dtype)

        statements = [
            vector(r, c) for r in range(self.height) for c in range(0, self.width, self.step)
        ]
        return tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]


def _nest(columns: Any) -> tuple[Any, Any, list[Any], Any] | None:
    """The variable of a loop, and what it is around: the initial value, the loops that fold, and the
    statement in them."""
    if not isinstance(columns, tirx.For):
        return None
    folding, inner = [], columns.body
    while isinstance(inner, tirx.For):
        folding.append(inner)
        inner = inner.body
    condition, first, update = _initialized(inner)
    if not isinstance(first, tirx.BufferStore) or not isinstance(update, tirx.BufferStore):
        return None
    begin = _at(condition, {loop.loop_var: loop.min for loop in folding})
    if not sym.Analyzer().can_prove(begin):
        return None
    loads = _loads(update.value, update.buffer)
    own = [_load(first.buffer, *first.indices), *loads]
    if not all(_is_own(x, update) for x in own):
        return None
    return columns.loop_var, first.value, folding, update


# -- words -----------------------------------------------------------------------------------------


def _registers(count: int, dtype: str) -> Any:
    return tirx.decl_buffer((count,), dtype, "tile", scope="local")


def _load(buffer: Any, *indices: Any) -> Any:
    return tirx.BufferLoad(buffer, list(indices))


def _store(buffer: Any, value: Any, index: Any) -> Any:
    return tirx.BufferStore(buffer, value, [index])


def _with(loop: Any, kind: Any = None, body: Any = None) -> Any:
    return tirx.For(
        loop.loop_var,
        loop.min,
        loop.extent,
        loop.kind if kind is None else kind,
        loop.body if body is None else body,
        loop.thread_binding,
        loop.annotations,
    )


def _at(node: Any, values: dict[Any, Any]) -> Any:
    """A statement or an expression for values of loops' variables."""

    def value(var: Any) -> Any:
        return next((v for k, v in values.items() if k.same_as(var)), var)

    return tvm_ffi.structural_map(node, (tirx.Var, value))


def mentions(node: Any, var: Any) -> bool:
    """Whether a variable is in a statement or an expression."""
    found = tvm_ffi.structural_walk(
        node, (tirx.Var, lambda v: tvm_ffi.VisitInterrupt(True) if v.same_as(var) else None)
    )
    return found is not None


def _loads(node: Any, buffer: Any) -> list[Any]:
    loads: list[Any] = []
    tvm_ffi.structural_walk(node, (TensorLoad, loads.append))
    return [load for load in loads if load.source.same_as(buffer)]


def _replace_loads(node: Any, buffer: Any, replacement: Any) -> Any:
    return tvm_ffi.structural_map(
        node,
        (TensorLoad, lambda load: replacement if load.source.same_as(buffer) else load),
    )
