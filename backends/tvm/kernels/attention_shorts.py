"""The two products of attention in integers of 16 bits, for AVX2: each lane adds two products an instruction.

    scores   s[i, j] = a_i b sum over d of q[i, d] k[j, d]     a_i, b: scales of a query and the head's keys
    values   o[i, c] = g / P sum over j of p[i, j] v[j, c]     g: scale of the head's values

Queries and keys are integers within B = sqrt(2^31 / d), so that sums of d products fit 32 bits; chances and
values are within P = 4095, so that those of 128 keys do, after which sums go on in float32.  B is 8,191 for
heads of 32.  Rounding loses a tenth of what the int8 layers around it lose.  As there, NaN is not kept.

    keys     [keys / 32][d / 2][32][2]      two neighbours of d together
    values   [keys / 2][v_d][2]             two neighbouring keys together
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.kernels import emit, products
from tersor.backends.tvm.kernels.attention_products import KEYS, LARGEST, ROWS, Packed, Rows
from tersor.backends.tvm.kernels.emit import Isa

LANES = 8
_SPAN = 128  # Keys that are summed up in integers.
_STEP = 6
_TINY = 1e-30  # Of numbers all smaller than that nothing is left.


def takes(isa: Isa, d: int, v_d: int) -> bool:
    """Whether heads of these sizes can be multiplied so, and are faster for it."""
    return isa.lanes == LANES and d % LANES == 0 and v_d % LANES == 0


class Shorts(Packed):
    """In integers of 16 bits."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.packed_keys = emit.scratch((self.wide // KEYS, self.d // 2, KEYS), "int32")
        self.packed_values = emit.scratch((self.wide // 2, self.v_d), "int32")
        self.chances = emit.scratch((ROWS, self.wide), "int16")
        self.block = emit.scratch((ROWS, self.d), "int16")
        self.factors = emit.scratch((ROWS,), "float32")
        self.made = emit.scratch((ROWS, self.v_d), "float32")
        self.most = math.isqrt((2**31 - 1) // self.d)

    def pack(self) -> None:
        """Keys and values of the head."""
        largest = self._largest(self.keys, self.d)
        self.key_scale = emit.bind(largest * T.float32(1 / self.most))
        up = emit.bind(emit.splat(T.float32(self.most) / largest, LANES))
        with T.serial(0, self.wide // KEYS) as panel, T.serial(0, KEYS // LANES) as part:
            at = emit.bind(panel * KEYS + part * LANES)
            rows = [emit.bind(T.min(at + i, self.there - 1)) for i in range(LANES)]
            for c in range(0, self.d, LANES):
                turned = emit.transposed([self.keys.load(row, c, LANES) for row in rows])
                whole = [_whole(column * up) for column in turned]
                for i in range(0, LANES, 2):
                    both = _together(whole[i], whole[i + 1])
                    emit.store(
                        self.packed_keys, both, panel, (c + i) // 2, part * LANES, lanes=LANES
                    )
        largest = self._largest(self.values_of, self.v_d)
        self.value_scale = emit.bind(largest * T.float32(1 / LARGEST**2))
        up_values = emit.bind(emit.splat(T.float32(LARGEST) / largest, LANES))
        with T.serial(0, self.wide // 2) as pair:
            rows = [emit.bind(T.min(pair * 2 + i, self.there - 1)) for i in range(2)]
            for c in range(0, self.v_d, LANES):
                low, high = (_whole(self.values_of.load(r, c, LANES) * up_values) for r in rows)
                emit.store(self.packed_values, _together(low, high), pair, c, lanes=LANES)

    def _largest(self, rows: Rows, size: int) -> Any:
        """The largest magnitude in the head's rows."""
        held = [emit.registers(LANES, "float32") for _ in range(0, size, LANES)]
        for one in held:
            emit.put(one, emit.number(_TINY, LANES), LANES)
        with T.serial(0, self.there) as j:
            for i, one in enumerate(held):
                value = _magnitude(rows.load(j, i * LANES, LANES))
                emit.put(one, tirx.max(emit.get(one, LANES), value), LANES)
        return _most([emit.get(one, LANES) for one in held])

    def take(self, queries: Rows, first: Any, count: Any) -> None:
        """Queries from ``first`` on, each with a scale of its own."""
        with T.serial(0, count) as r:
            row = [emit.bind(queries.load(first + r, c, LANES)) for c in range(0, self.d, LANES)]
            largest = _most([emit.number(_TINY, LANES), *(_magnitude(x) for x in row)])
            scale = largest * T.float32(self.factor / self.most) * self.key_scale
            T.buffer_store(self.factors, scale, [r])
            up = emit.bind(emit.splat(T.float32(self.most) / largest, LANES))
            for i, x in enumerate(row):
                short = emit.cast(_whole(x * up), f"int16x{LANES}")
                emit.store(self.block, short, r, i * LANES, lanes=LANES)

    def scores(self, start: Any, stop: Any, count: Any) -> None:
        """Of the block's queries with keys of the panels from ``start`` to ``stop``."""
        with T.serial(start, stop) as panel:
            for c in range(0, KEYS, 2 * LANES):

                def column(k: Any, v: int, c: int = c) -> Any:
                    return emit.load(self.packed_keys, panel, k, c + v * LANES, lanes=LANES)

                def put(r: int, v: int, y: Any, c: int = c) -> None:
                    y = y * emit.splat(self.factors[r], LANES)
                    emit.store(self.scored, y, r, panel * KEYS + c + v * LANES, lanes=LANES)

                self._tiles(count, self.block, 0, self.d // 2, column, 2, put)

    def values(self, start: Any, stop: Any, count: Any) -> None:
        """Weighted by the chances of keys of these panels."""
        spans = T.max(
            T.ceildiv((stop - start) * KEYS, T.int64(_SPAN)), T.int64(1)
        )  # Without keys: 0.
        with T.serial(0, emit.bind(spans)) as span:
            begin = emit.bind((start * KEYS + span * _SPAN) // 2)
            end = emit.bind(T.min(begin + _SPAN // 2, stop * (KEYS // 2)))
            for first in range(0, self.v_d, 2 * LANES):

                def column(k: Any, v: int, first: int = first) -> Any:
                    return emit.load(self.packed_values, k, first + v * LANES, lanes=LANES)

                def put(r: int, v: int, y: Any, first: int = first) -> None:
                    at = first + v * LANES
                    before = emit.load(self.made, r, at, lanes=LANES)
                    y = y * emit.splat(self.value_scale, LANES)
                    y = y + T.Select(span > 0, before, emit.number(0.0, LANES))
                    emit.store(self.made, y, r, at, lanes=LANES)

                together = min(2, (self.v_d - first) // LANES)
                self._tiles(count, self.chances, begin, end, column, together, put)

    def _tiles(
        self, count: Any, a: Any, begin: Any, end: Any, column: Callable[[Any, int], Any],
        vectors: int, put: Callable[[int, int, Any], None],
    ) -> None:  # fmt: skip
        """``put(r, v, sum over k of a[r, 2 k] column(k)[.., 0] + a[r, 2 k + 1] column(k)[.., 1])``."""
        for row in range(0, ROWS, _STEP):
            rows = range(row, min(row + _STEP, ROWS))
            with T.If(T.int64(row) < count), T.Then():
                sums = {
                    (r, v): emit.registers(LANES, "int32") for r in rows for v in range(vectors)
                }
                for held in sums.values():
                    emit.put(held, T.broadcast(T.int32(0), LANES), LANES)
                with T.serial(begin, end) as k:
                    columns = [_shorts(column(k, v)) for v in range(vectors)]
                    for r in rows:
                        two = emit.as_bits(emit.load(a, r, k * 2, lanes=2), "int32")
                        spread = _shorts(emit.splat(two, LANES))
                        for v, w in enumerate(columns):
                            term = emit.intrinsic(
                                f"int32x{LANES}", products.PAIRS[LANES][1], spread, w
                            )
                            emit.put(sums[r, v], emit.get(sums[r, v], LANES) + term, LANES)
                for (r, v), held in sums.items():
                    put(r, v, emit.cast(emit.get(held, LANES), f"float32x{LANES}"))


def _shorts(pairs: Any) -> Any:
    return emit.bind(emit.as_bits(pairs, f"int16x{2 * LANES}"))


def _whole(x: Any) -> Any:
    """The nearest integers."""
    return emit.bind(emit.cast(T.nearbyint(x), f"int32x{LANES}"))


def _together(low: Any, high: Any) -> Any:
    """Integers of 16 bits side by side."""
    mask, half = (T.broadcast(T.int32(n), LANES) for n in (0xFFFF, 16))
    return (low & mask) | (high << half)


def _magnitude(x: Any) -> Any:
    bits = emit.as_bits(x, f"int32x{LANES}") & T.broadcast(T.int32(0x7FFFFFFF), LANES)
    return emit.as_bits(bits, f"float32x{LANES}")


def _most(vectors: list[Any]) -> Any:
    """The largest number of all lanes."""
    found = vectors[0]
    for one in vectors[1:]:
        found = emit.bind(tirx.max(found, one))
    return emit.bind(emit.reduce_lanes(found, LANES, tirx.max))
