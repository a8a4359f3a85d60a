"""Register tiles: loops over results and the reductions in them, reordered to reuse loaded operands.

for row, column:                            for each tile of rows and columns:
    acc = initial                               registers = initial
    for k: acc += a[row, k] b[k, column]        for k: registers[r, c] += a[row + r, k] b[k, column + c]
                                                results = registers
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import sym, tirx

from tersor.backends.tvm.statements import (
    cover,
    is_accumulator,
    load,
    loads_of,
    over_lanes,
    piece_sizes,
    registers,
    replace_loads,
    split_initial,
    store,
    substitute,
    with_parts,
)

_TILE_VECTORS = 8  # Vectors of accumulators: enough to hide latency, few enough for registers.


def tiled(loop: Any, rows: int, lanes: int) -> Any:
    """A loop over columns, or over rows and columns, in tiles; None if it has another form."""
    columns = loop.body if rows > 1 else loop
    nest = _nest(columns)
    if nest is None:
        return None

    def across(row: Any, height: int) -> Any:
        sizes = piece_sizes(columns.extent, lanes * (_TILE_VECTORS // height), lanes)

        def tile(column: Any, width: int) -> Any:
            return _Tile(row, column, height, width, min(width, lanes)).statement(*nest)

        return cover(columns, sizes, tile)

    def of_row(row: Any, height: int) -> Any:
        return across((loop.loop_var, row), height)

    return across(None, 1) if rows == 1 else cover(loop, (rows, 1), of_row)


@dataclass(frozen=True)
class _Tile:
    """A tile of results.

    Attributes:
        row: the variable of rows and the first row; None without a loop over rows.
        column: the first column.
        height, width: in rows and columns.
        step: the lanes of a vector.
    """

    row: tuple[Any, Any] | None
    column: Any
    height: int
    width: int
    step: int

    def statement(self, columns: Any, initial: Any, reductions: Sequence[Any], update: Any) -> Any:
        """Initializes registers, runs the reduction loops, and stores the results."""
        accumulators = registers(self.height * self.width, str(update.buffer.dtype))

        def initialized(slot: Any, at: Any) -> Any:
            return store(accumulators, substitute(initial, at), slot)

        def accumulated(slot: Any, at: Any) -> Any:
            value = replace_loads(update.value, update.buffer, load(accumulators, slot))
            return store(accumulators, substitute(value, at), slot)

        def stored(slot: Any, at: Any) -> Any:
            indices = [substitute(i, at) for i in update.indices]
            return tirx.BufferStore(update.buffer, load(accumulators, slot), indices)

        reduction = self._each(columns, accumulated)
        for outer in reversed(reductions):
            reduction = with_parts(outer, body=reduction)
        return tirx.SeqStmt(
            [
                tirx.AllocBuffer(accumulators),
                self._each(columns, initialized),
                reduction,
                self._each(columns, stored),
            ]
        )

    def _each(self, columns: Any, emit: Callable[[Any, Any], Any]) -> Any:
        """``emit(slot, values of loop variables)`` for every result of the tile."""
        dtype = str(columns.ty.dtype)

        def vector(r: int, c: int) -> Any:
            def one(lane: Any) -> Any:
                at = {columns: self.column + tirx.const(c, dtype) + lane}
                if self.row is not None:
                    var, begin = self.row
                    at[var] = begin + tirx.const(r, str(var.ty.dtype))
                return emit(tirx.const(r * self.width + c, dtype) + lane, at)

            return over_lanes(self.step, one, dtype)

        statements = [
            vector(r, c) for r in range(self.height) for c in range(0, self.width, self.step)
        ]
        return tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]


def _nest(columns: Any) -> tuple[Any, Any, list[Any], Any] | None:
    """The variable of a loop over columns, and its body: the initial value, the reduction loops, and the
    statement that accumulates; None if it has another form."""
    if not isinstance(columns, tirx.For):
        return None
    reductions, inner = [], columns.body
    while isinstance(inner, tirx.For):
        reductions.append(inner)
        inner = inner.body
    condition, first, update = split_initial(inner)
    if not isinstance(first, tirx.BufferStore) or not isinstance(update, tirx.BufferStore):
        return None
    begin = substitute(condition, {loop.loop_var: loop.min for loop in reductions})
    if not sym.Analyzer().can_prove(begin):
        return None
    loads = loads_of(update.value, update.buffer)
    own = [load(first.buffer, *first.indices), *loads]
    if not all(is_accumulator(x, update) for x in own):
        return None
    return columns.loop_var, first.value, reductions, update
