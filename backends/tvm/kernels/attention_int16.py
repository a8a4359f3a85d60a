"""The two products of attention in 16-bit integers, for AVX2: an instruction adds two products per lane.

    scores   s[i, j] = a_i b sum over d of q[i, d] k[j, d]     a_i, b: scales of a query and the head's keys
    output   o[i, c] = g / P sum over j of p[i, j] v[j, c]     g: scale of the head's values

Queries and keys are quantized to magnitudes up to B = sqrt(2^31 / d), so that sums of d products fit 32 bits;
probabilities and values up to P = 4095, so that sums over 128 keys do, which are then accumulated in float32.
B is 8,191 for heads of 32.  The rounding error is a tenth of that of the int8 layers around it.  As in these,
NaN is not propagated.

    keys     [keys / 32][d / 2][32][2]      pairs along d interleaved
    values   [keys / 2][v_d][2]             pairs of keys interleaved
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.kernels import emit, products
from tersor.backends.tvm.kernels.attention_products import KEYS, LARGEST, ROWS, Rows, VectorProducts
from tersor.backends.tvm.kernels.emit import Isa

LANES = 8
_SPAN = 128  # Keys whose products are summed in integers.
_TINY = 1e-30  # Smaller numbers are quantized to zero.


def takes(isa: Isa, d: int, v_d: int) -> bool:
    """Whether heads of these sizes can be multiplied as integers, to advantage."""
    return isa.lanes == LANES and d % LANES == 0 and v_d % LANES == 0


class Int16Products(VectorProducts):
    """Products in 16-bit integers."""

    accumulator = "int32"

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.packed_keys = emit.scratch((self.n_padded // KEYS, self.d // 2, KEYS), "int32")
        self.packed_values = emit.scratch((self.n_padded // 2, self.v_d), "int32")
        self.probs = emit.scratch((ROWS, self.n_padded), "int16")
        self.query_block = emit.scratch((ROWS, self.d), "int16")
        self.score_scales = emit.scratch((ROWS,), "float32")
        self.output = emit.scratch((ROWS, self.v_d), "float32")
        self.largest_int = math.isqrt((2**31 - 1) // self.d)

    def pack(self) -> None:
        """Packs the keys and values of the head."""
        largest = self._largest(self.keys, self.d)
        self.key_scale = emit.bind(largest * T.float32(1 / self.largest_int))
        inverse_scale = emit.bind(emit.splat(T.float32(self.largest_int) / largest, LANES))
        with T.serial(0, self.n_padded // KEYS) as panel, T.serial(0, KEYS // LANES) as part:
            at = emit.bind(panel * KEYS + part * LANES)
            rows = [emit.bind(T.min(at + i, self.n_keys - 1)) for i in range(LANES)]
            for c in range(0, self.d, LANES):
                transposed = emit.transposed([self.keys.load(row, c, LANES) for row in rows])
                integers = [_rounded(column * inverse_scale) for column in transposed]
                for i in range(0, LANES, 2):
                    pairs = _interleaved(integers[i], integers[i + 1])
                    emit.store(
                        self.packed_keys, pairs, panel, (c + i) // 2, part * LANES, lanes=LANES
                    )
        largest = self._largest(self.values, self.v_d)
        self.value_scale = emit.bind(largest * T.float32(1 / LARGEST**2))
        inverse_value_scale = emit.bind(emit.splat(T.float32(LARGEST) / largest, LANES))
        with T.serial(0, self.n_padded // 2) as pair:
            rows = [emit.bind(T.min(pair * 2 + i, self.n_keys - 1)) for i in range(2)]
            for c in range(0, self.v_d, LANES):
                low, high = (
                    _rounded(self.values.load(r, c, LANES) * inverse_value_scale) for r in rows
                )
                emit.store(self.packed_values, _interleaved(low, high), pair, c, lanes=LANES)

    def _largest(self, rows: Rows, size: int) -> Any:
        """The largest magnitude in rows of the head."""
        maxima = [emit.register(LANES, "float32") for _ in range(0, size, LANES)]
        for register in maxima:
            emit.put(register, emit.number(_TINY, LANES))
        with T.serial(0, self.n_keys) as j:
            for i, register in enumerate(maxima):
                value = _magnitude(rows.load(j, i * LANES, LANES))
                emit.put(register, tirx.max(emit.get(register), value))
        return _maximum([emit.get(register) for register in maxima])

    def load_queries(self, queries: Rows, first: Any, count: Any) -> None:
        """Loads queries from ``first`` on, quantized with a scale each."""
        with T.serial(0, count) as r:
            row = [emit.bind(queries.load(first + r, c, LANES)) for c in range(0, self.d, LANES)]
            largest = _maximum([emit.number(_TINY, LANES), *(_magnitude(x) for x in row)])
            scale = largest * T.float32(self.factor / self.largest_int) * self.key_scale
            T.buffer_store(self.score_scales, scale, [r])
            inverse_scale = emit.bind(emit.splat(T.float32(self.largest_int) / largest, LANES))
            for i, x in enumerate(row):
                integers = emit.cast(_rounded(x * inverse_scale), f"int16x{LANES}")
                emit.store(self.query_block, integers, r, i * LANES, lanes=LANES)

    def multiply_keys(self, start: Any, stop: Any, count: Any) -> None:
        """Scores of the block's queries with the keys of panels ``start`` to ``stop``."""
        with T.serial(start, stop) as panel:
            for c in range(0, KEYS, 2 * LANES):

                def column(k: Any, v: int, c: int = c) -> Any:
                    return _column(self.packed_keys, panel, k, c + v * LANES)

                def put(r: int, v: int, y: Any, c: int = c) -> None:
                    y = _scaled(y, self.score_scales[r])
                    emit.store(self.scores, y, r, panel * KEYS + c + v * LANES, lanes=LANES)

                self._tiles(count, self.query_block, (0, self.d // 2), 2, column, put)

    def multiply_values(self, start: Any, stop: Any, count: Any) -> None:
        """The output: values of these panels' keys, weighted by their probabilities."""
        # Without keys there is one span too, which stores zeros.
        spans = T.max(T.ceildiv((stop - start) * KEYS, T.int64(_SPAN)), T.int64(1))
        with T.serial(0, emit.bind(spans)) as span:
            begin = emit.bind((start * KEYS + span * _SPAN) // 2)
            end = emit.bind(T.min(begin + _SPAN // 2, stop * (KEYS // 2)))
            for first in range(0, self.v_d, 2 * LANES):

                def column(k: Any, v: int, first: int = first) -> Any:
                    return _column(self.packed_values, k, first + v * LANES)

                def put(r: int, v: int, y: Any, first: int = first) -> None:
                    at = first + v * LANES
                    previous = emit.load(self.output, r, at, lanes=LANES)
                    previous = T.Select(span > 0, previous, emit.number(0.0, LANES))
                    y = _scaled(y, self.value_scale) + previous
                    emit.store(self.output, y, r, at, lanes=LANES)

                vectors = min(2, (self.v_d - first) // LANES)
                self._tiles(count, self.probs, (begin, end), vectors, column, put)

    def _broadcast(self, a: Any, r: Any, k: Any) -> Any:
        pair = emit.as_bits(emit.load(a, r, k * 2, lanes=2), "int32")
        return emit.as_bits(emit.splat(pair, LANES), f"int16x{2 * LANES}")

    def _multiply_add(self, total: Any, a: Any, w: Any) -> Any:
        return total + emit.intrinsic(f"int32x{LANES}", products.PAIRS[LANES][1], a, w)


def _column(packed: Any, *at: Any) -> Any:
    """A vector of pairs of 16-bit integers."""
    return emit.as_bits(emit.load(packed, *at, lanes=LANES), f"int16x{2 * LANES}")


def _scaled(sums: Any, scale: Any) -> Any:
    """Integer sums times a scale, in float32."""
    return emit.cast(sums, f"float32x{LANES}") * emit.splat(scale, LANES)


def _rounded(x: Any) -> Any:
    """Rounds to the nearest integers."""
    return emit.bind(emit.cast(T.nearbyint(x), f"int32x{LANES}"))


def _interleaved(low: Any, high: Any) -> Any:
    """Pairs of 16-bit integers, ``low`` in the lower halves of the lanes."""
    mask, half = (T.broadcast(T.int32(n), LANES) for n in (0xFFFF, 16))
    return (low & mask) | (high << half)


def _magnitude(x: Any) -> Any:
    bits = emit.as_bits(x, f"int32x{LANES}") & T.broadcast(T.int32(0x7FFFFFFF), LANES)
    return emit.as_bits(bits, f"float32x{LANES}")


def _maximum(vectors: list[Any]) -> Any:
    """The largest number in any lane."""
    largest = vectors[0]
    for vector in vectors[1:]:
        largest = emit.bind(tirx.max(largest, vector))
    return emit.bind(emit.reduce_lanes(largest, LANES, tirx.max))
