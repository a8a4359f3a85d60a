"""A product of rows with a panel of weights, cut into tiles whose accumulators stay in registers.

    acc[r, c] = sum over k of a[r, k] * w[k, c]        r < rows, c < 32

    for each strip of columns          two vectors of weights, where two make half a panel or all of it
      for each span of k               so much of a strip stays in the first cache
        for each tile of rows          6 x 2 accumulators of AVX2's 16 registers, 12 x 2 of AVX-512's 32
          for each step of k           a load of each vector of weights, a broadcast of each row's number

Packed weights lie panel by panel, and within it by halves of 16 columns.  The last panel begins early enough
to have 32 columns: what is computed twice is the same.  Only where there are fewer than 32 in all, zeros fill
it.

A tile that is larger by one row spills, and is three times slower; one that is smaller reads more for
what it computes, and below 8 accumulators each waits for the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.kernels import emit
from tersor.backends.tvm.kernels.emit import Isa

PANEL = 32  # Columns.
HALF = 16  # Columns of it that lie together in packed weights.


def padded(size: int, multiple: int) -> int:
    """``size`` rounded up."""
    return -(-size // multiple) * multiple


def panel_start(panel: Any, n: int) -> Any:
    """The first column of a panel of ``n`` columns."""
    return (
        panel * PANEL if n % PANEL == 0 or n < PANEL else T.min(panel * PANEL, T.int64(n - PANEL))
    )


def in_panels(weight: np.ndarray, rows: int) -> np.ndarray:
    """``weight`` [k, n] as [rows, panels * 32]: zeros where there is no row, or are too few columns."""
    k, n = weight.shape
    full = np.zeros((rows, max(n, PANEL)), weight.dtype)
    full[:k, :n] = weight
    return full[:, columns_of(n).ravel()]


def columns_of(n: int) -> np.ndarray:
    """The columns of each panel, of ``n`` or of one panel's: the last panel overlaps the one before."""
    starts = np.minimum(np.arange(0, n, PANEL), max(n, PANEL) - PANEL)
    found: np.ndarray = starts[:, None] + np.arange(PANEL)
    return found


def tile_size(isa: Isa, dtype: str, together: int = 1) -> tuple[int, int]:
    """Rows and vectors of accumulators that stay in registers, beside a row's number and a step's vectors
    of weights. Sums of integer pairs take two registers more on AVX2; those of two or four steps at once
    take more still, for the weights of all of them."""
    if isa.lanes == 16:
        return (8 if dtype == "int32" else 12), 2
    if isa.lanes == 8:
        return ({1: 4, 2: 3, 4: 2}[together] if dtype == "int32" else 6), 2
    return 2, 4


class Tile:
    """``rows`` x ``vectors`` accumulators, of ``acc`` from row ``first`` on.

    Attributes:
        rows: how many.
        first: of the rows.
    """

    def __init__(self, isa: Isa, acc: Any, first: Any, rows: int, strip: Any, vectors: int) -> None:
        self.rows, self.first = rows, first
        self._lanes, self._vectors, self._strip, self._acc = isa.lanes, vectors, strip, acc
        self._sums = {
            (r, v): emit.registers(isa.lanes, acc.dtype)
            for r in range(rows)
            for v in range(vectors)
        }

    @contextmanager
    def over(self, steps: tuple[Any, Any], goes_on: Any = None) -> Iterator[Any]:
        """A loop over steps of k whose body is what is emitted within. Sums begin with zero, or where
        ``goes_on`` holds with what is in memory, and end there."""
        lanes = self._lanes
        for place, held in self._sums.items():
            start = T.broadcast(tirx.const(0, self._acc.dtype), lanes)
            if goes_on is not None:
                there = emit.load(self._acc, *self._at(*place), lanes=lanes)
                start = T.Select(goes_on, there, start)
            emit.put(held, start, lanes)
        with T.serial(*steps) as step:
            yield step
        for place, held in self._sums.items():
            emit.store(self._acc, emit.get(held, lanes), *self._at(*place), lanes=lanes)

    def add(
        self, r: int, term: Callable[[Any, Any, Any], Any], a: Any, columns: Sequence[Any]
    ) -> None:
        """A row's accumulators become ``term(accumulator, a, vector of weights)``."""
        for v, w in enumerate(columns):
            held = self._sums[r, v]
            emit.put(held, term(emit.get(held, self._lanes), a, w), self._lanes)

    def weights(self, w: Any, panel: Any, step: Any, each: int) -> list[Any]:
        """A step's vectors of weights packed as [panel][half][step][16 columns], ``each`` numbers a lane."""
        lanes, found = self._lanes, []
        for v in range(self._vectors):
            half, within = divmod(v * lanes, HALF)
            half = self._strip * (self._vectors * lanes // HALF) + half
            vector = emit.load(w, panel, half, step, within * each, lanes=lanes * each)
            found.append(emit.bind(vector))
        return found

    def _at(self, r: int, v: int) -> tuple[Any, Any]:
        return self.first + r, (self._strip * self._vectors + v) * self._lanes


def cover(
    isa: Isa, there: Any, acc: Any, spans: int, multiply: Callable[[Tile, Any], None],
    together: int = 1,
) -> None:  # fmt: skip
    """Emits ``multiply(tile, span)`` for tiles that cover ``there`` rows of a panel, ``acc``; it takes
    ``together`` steps of k at once.

    One row alone takes the whole panel at once: reading the weights is what takes time there, and a
    strip has too few sums to keep the processor busy.
    """
    rows, vectors = tile_size(isa, acc.dtype, together)
    strips = PANEL // (vectors * isa.lanes)
    if isinstance(there, tirx.IntImm):
        there = int(there)

    def in_strips() -> None:
        with T.serial(0, strips) as strip, T.serial(0, spans) as span:

            def tile(first: Any, height: int) -> None:
                multiply(Tile(isa, acc, first, height, strip, vectors), span)

            _in_rows(rows, there, tile)

    if isinstance(there, int) or strips == 1:
        in_strips()
        return
    with T.If(there == 1):
        with T.Then(), T.serial(0, spans) as span:
            multiply(Tile(isa, acc, 0, 1, 0, vectors * strips), span)
        with T.Else():
            in_strips()


def _in_rows(step: int, there: Any, tile: Callable[[Any, int], None]) -> None:
    """``there`` rows by ``step`` at a time, then what is left of them by powers of two, largest first."""
    with T.serial(0, there // step) as block:
        tile(block * step, step)
    size = 1 << (step - 1).bit_length()
    while size := size // 2:
        rest = there % step
        first = there - rest % (2 * size)
        if isinstance(there, int):
            if rest & size:
                tile(first, size)
            continue
        with T.If(rest % (2 * size) >= size), T.Then():
            tile(emit.bind(first), size)
