"""Epilogues that need a whole row: normalization, and quantization with a scale per row.

    layer norm    y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * gamma + beta
    RMS norm      y = x / sqrt(mean(x^2) + eps) * gamma
    quantization  scale = (max(x, 0) - min(x, 0)) / 255,   zero = round(-min(x, 0) / scale),
                  q = clip(round(x / scale) + zero, 0, 255)         (ONNX's DynamicQuantizeLinear, per row)

Numbers are rounded by addition: in ``x / scale + zero + 1.5 * 2^23`` the unit in the last place is 1, so the
low bits of the sum are the integer, rounded half to even.  A row of zeros, or of numbers so small that the
reciprocal of their scale overflows, has scale 1 and zero 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.kernels import emit
from tersor.backends.tvm.kernels.emit import Isa

_MAGIC = 12582912.0  # 1.5 * 2^23
_MAGIC_BITS = 0x4B400000
_LEAST_SPAN = 1e-35  # 255 / 1e-35 is finite, and the scale is normal.
MAX_REGISTERS = 24  # Vectors of a row at most that is kept in registers.
Read = Callable[[Any], Any]
"""Returns the vector that starts at a column."""


def _unrolled(vectors: int) -> int:
    """The unroll factor of a loop over vectors, with an accumulator each to hide latency."""
    return next(u for u in (4, 3, 2, 1) if vectors % u == 0)


def fits_registers(isa: Isa, n: int) -> bool:
    """Whether a row of ``n`` columns is processed unrolled, its vectors in registers: they do not overlap
    then."""
    return n % isa.lanes == 0 and n // isa.lanes <= MAX_REGISTERS


def for_each_vector(isa: Isa, n: int, body: Callable[[Any, int], None]) -> None:
    """Emits ``body(column, i)`` for the vectors of ``n`` columns; ``i`` is the vector's index in an unrolled
    step. Columns are Python integers where the row fits registers. Where ``n`` is not a multiple of the
    lanes, the last vector overlaps the one before."""
    vectors = n // isa.lanes
    unroll = _unrolled(vectors)
    if fits_registers(isa, n):
        for vector in range(vectors):
            body(vector * isa.lanes, vector % unroll)
        return
    with T.serial(0, vectors // unroll) as step:
        for i in range(unroll):
            body((step * unroll + i) * isa.lanes, i)
    if n % isa.lanes:
        body(T.int64(n - isa.lanes), 0)


class Fold:
    """A reduction over a row, with an accumulator for each vector of an unrolled step."""

    def __init__(self, isa: Isa, n: int, start: float, combine: Callable[[Any, Any], Any]) -> None:
        self._lanes, self._combine = isa.lanes, combine
        self._registers = [
            emit.register(isa.lanes, "float32") for _ in range(_unrolled(n // isa.lanes))
        ]
        for register in self._registers:
            emit.put(register, emit.number(start, isa.lanes))

    def add(self, i: int, value: Any) -> None:
        """Combines a vector into accumulator ``i``."""
        register = self._registers[i]
        emit.put(register, self._combine(emit.get(register), value))

    def result(self) -> Any:
        """The scalar result."""
        values = [emit.get(register) for register in self._registers]
        vector = functools.reduce(self._combine, values)
        return emit.bind(emit.reduce_lanes(vector, self._lanes, self._combine))


def _plus(a: Any, b: Any) -> Any:
    return a + b


def normalize(
    isa: Isa,
    kind: str,
    n: int,
    epsilon: float,
    read: Read,
    gamma: Read,
    beta: Read | None,
    write: Callable[[Any, Any], None],
) -> None:
    """Emits the norm (``layer`` or ``rms``) of a row.

    Args:
        read: the row; emitted three times (``rms``: twice), so it should be cheap.
        write: is passed a column and its vector of results.
    """
    lanes = isa.lanes
    mean: Any = None
    if kind == "layer":
        total = Fold(isa, n, 0.0, _plus)
        for_each_vector(isa, n, lambda c, i: total.add(i, read(c)))
        mean = emit.bind(emit.splat(total.result() * T.float32(1.0 / n), lanes))

    def centred(c: Any) -> Any:
        return emit.bind(read(c) if mean is None else read(c) - mean)

    def square(c: Any, i: int) -> None:
        value = centred(c)
        squares.add(i, value * value)

    squares = Fold(isa, n, 0.0, _plus)
    for_each_vector(isa, n, square)
    variance = squares.result() * T.float32(1.0 / n) + T.float32(epsilon)
    inverse = emit.bind(emit.splat(T.float32(1.0) / T.sqrt(variance), lanes))

    def scaled(c: Any, i: int) -> None:
        value = centred(c) * inverse * gamma(c)
        write(c, value if beta is None else value + beta(c))

    for_each_vector(isa, n, scaled)


def quantize(isa: Isa, n: int, read: Read, q: Any, row: Any, ranges: Any, range_row: Any) -> None:
    """Emits the quantization of a row to ``q[row, :n]`` (uint8), and its scale and zero point, both as
    float32, to ``ranges[range_row, :2]``."""
    lanes = isa.lanes
    low, high = Fold(isa, n, 0.0, tirx.min), Fold(isa, n, 0.0, tirx.max)

    def extrema(c: Any, i: int) -> None:
        value = emit.bind(read(c))
        low.add(i, value)
        high.add(i, value)

    for_each_vector(isa, n, extrema)
    minimum, maximum = low.result(), high.result()
    span = emit.bind(maximum - minimum)
    scale = emit.bind(
        T.Select(span > T.float32(_LEAST_SPAN), span * T.float32(1 / 255), T.float32(1))
    )
    inverse = emit.bind(T.float32(1) / scale)
    zero = emit.bind(T.nearbyint(-(minimum * inverse)))
    T.buffer_store(ranges, scale, [range_row, 0])
    T.buffer_store(ranges, zero, [range_row, 1])
    factor = emit.bind(emit.splat(inverse, lanes))
    shift = emit.bind(emit.splat(zero + T.float32(_MAGIC), lanes))

    def write(c: Any, i: int) -> None:
        emit.store(q, to_uint8(lanes, read(c) * factor + shift), row, c, lanes=lanes)

    for_each_vector(isa, n, write)


def to_uint8(lanes: int, shifted: Any) -> Any:
    """Numbers plus ``1.5 * 2^23`` as uint8, clipped to 0 … 255."""
    clipped = tirx.min(
        tirx.max(shifted, emit.number(_MAGIC, lanes)), emit.number(_MAGIC + 255.0, lanes)
    )
    bits = emit.as_bits(clipped, f"int32x{lanes}") - T.broadcast(T.int32(_MAGIC_BITS), lanes)
    return emit.cast(bits, f"uint8x{lanes}")


def to_bfloat16(value: Any) -> Any:
    """16 float32 numbers rounded to bfloat16, half to even, as their bits (uint16)."""
    return emit.intrinsic("uint16x16", "llvm.x86.avx512bf16.cvtneps2bf16.512", value)
