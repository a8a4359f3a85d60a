"""GEMM micro-kernels: rows times a panel of 32 packed columns, in tiles of register accumulators.

    acc[r, c] = sum over k of a[r, k] * w[k, c]        r < rows, c < 32

    for each strip of columns          two vectors of weights: half a panel, or all of it
      for each span of k               sized so that the strip stays in L1
        for each tile of rows          6 x 2 accumulators of AVX2's 16 registers, 12 x 2 of AVX-512's 32
          for each step of k           load each vector of weights, broadcast each row's number

Weights are packed by panels, and within a panel by halves of 16 columns.  The last panel starts early enough
to have 32 columns: those it shares with the one before are computed twice, to the same values.  Only a
weight of fewer than 32 columns is padded, with zeros.

One more row in a tile makes registers spill, which is three times slower; a smaller tile loads more per
product, and with fewer than 8 accumulators the latency of multiply-adds shows.
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
HALF = 16  # Columns of a panel that are adjacent in packed weights.


def padded(size: int, multiple: int) -> int:
    """``size`` rounded up to a multiple."""
    return -(-size // multiple) * multiple


def panel_start(panel: Any, n: int) -> Any:
    """The first column of a panel of ``n`` columns."""
    return (
        panel * PANEL if n % PANEL == 0 or n < PANEL else T.min(panel * PANEL, T.int64(n - PANEL))
    )


def in_panels(weight: np.ndarray, rows: int) -> np.ndarray:
    """``weight`` [k, n] as [rows, panels * 32], padded with zeros along k, and along n to 32."""
    k, n = weight.shape
    full = np.zeros((rows, max(n, PANEL)), weight.dtype)
    full[:k, :n] = weight
    return full[:, columns_of(n).ravel()]


def columns_of(n: int) -> np.ndarray:
    """The columns of each panel, of ``n`` or at least 32: the last panel overlaps the one before."""
    starts = np.minimum(np.arange(0, n, PANEL), max(n, PANEL) - PANEL)
    columns: np.ndarray = starts[:, None] + np.arange(PANEL)
    return columns


def tile_size(isa: Isa, dtype: str, unroll: int = 1) -> tuple[int, int]:
    """Rows and vectors of accumulators that fit registers, with a row's broadcast number and the vectors of
    weights of ``unroll`` steps of k. On AVX2 pair sums of integers take two registers more."""
    if isa.lanes == 16:
        return (8 if dtype == "int32" else 12), 2
    if isa.lanes == 8:
        return ({1: 4, 2: 3, 4: 2}[unroll] if dtype == "int32" else 6), 2
    return 2, 4


class Tile:
    """A register tile: ``rows`` x ``vectors`` accumulators for ``acc`` from row ``first`` on.

    Attributes:
        rows: the number of rows.
        first: the first of the rows.
    """

    def __init__(self, isa: Isa, acc: Any, first: Any, rows: int, strip: Any, vectors: int) -> None:
        self.rows, self.first = rows, first
        self._lanes, self._vectors, self._strip, self._acc = isa.lanes, vectors, strip, acc
        self._sums = {
            (r, v): emit.register(isa.lanes, acc.dtype) for r in range(rows) for v in range(vectors)
        }

    @contextmanager
    def reduce_over(self, steps: tuple[Any, Any], resume: Any = None) -> Iterator[Any]:
        """The loop over steps of k, whose body is emitted within. Accumulators start from zero, or from
        ``acc`` where ``resume`` is true, and are stored to ``acc`` at the end."""
        lanes = self._lanes
        for place, register in self._sums.items():
            start = T.broadcast(tirx.const(0, self._acc.dtype), lanes)
            if resume is not None:
                stored = emit.load(self._acc, *self._at(*place), lanes=lanes)
                start = T.Select(resume, stored, start)
            emit.put(register, start)
        with T.serial(*steps) as step:
            yield step
        for place, register in self._sums.items():
            emit.store(self._acc, emit.get(register), *self._at(*place), lanes=lanes)

    def add(
        self, r: int, term: Callable[[Any, Any, Any], Any], a: Any, columns: Sequence[Any]
    ) -> None:
        """Sets the accumulators of row ``r`` to ``term(accumulator, a, vector of weights)``."""
        for v, w in enumerate(columns):
            register = self._sums[r, v]
            emit.put(register, term(emit.get(register), a, w))

    def weights(self, w: Any, panel: Any, step: Any, each: int) -> list[Any]:
        """The vectors of weights of a step, packed as [panel][half][step][16 columns][each]."""
        lanes, vectors = self._lanes, []
        for v in range(self._vectors):
            half, within = divmod(v * lanes, HALF)
            half = self._strip * (self._vectors * lanes // HALF) + half
            vector = emit.load(w, panel, half, step, within * each, lanes=lanes * each)
            vectors.append(emit.bind(vector))
        return vectors

    def _at(self, r: int, v: int) -> tuple[Any, Any]:
        return self.first + r, (self._strip * self._vectors + v) * self._lanes


def cover(
    isa: Isa, valid: Any, acc: Any, spans: int, multiply: Callable[[Tile, Any], None],
    unroll: int = 1,
) -> None:  # fmt: skip
    """Emits ``multiply(tile, span)`` for tiles that cover ``valid`` rows of a panel ``acc``; it processes
    ``unroll`` steps of k at once.

    A single row has a tile as wide as the panel: it is bound by reading the weights, and a strip has too few
    accumulators to hide latency.
    """
    rows, vectors = tile_size(isa, acc.dtype, unroll)
    strips = PANEL // (vectors * isa.lanes)
    if isinstance(valid, tirx.IntImm):
        valid = int(valid)

    def in_strips() -> None:
        with T.serial(0, strips) as strip, T.serial(0, spans) as span:

            def tile(first: Any, height: int) -> None:
                multiply(Tile(isa, acc, first, height, strip, vectors), span)

            _split_rows(rows, valid, tile)

    if isinstance(valid, int) or strips == 1:
        in_strips()
        return
    with T.If(valid == 1):
        with T.Then(), T.serial(0, spans) as span:
            multiply(Tile(isa, acc, 0, 1, 0, vectors * strips), span)
        with T.Else():
            in_strips()


def _split_rows(step: int, rows: Any, tile: Callable[[Any, int], None]) -> None:
    """Covers ``rows`` by tiles of ``step`` rows, then the remainder by powers of two, largest first."""
    with T.serial(0, rows // step) as block:
        tile(block * step, step)
    size = 1 << (step - 1).bit_length()
    while size := size // 2:
        rest = rows % step
        first = rows - rest % (2 * size)
        if isinstance(rows, int):
            if rest & size:
                tile(first, size)
            continue
        with T.If(rest % (2 * size) >= size), T.Then():
            tile(emit.bind(first), size)
