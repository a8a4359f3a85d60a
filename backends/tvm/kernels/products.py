"""u8 x s8 dot products accumulated in int32, in the instructions of each ISA.

Each int32 lane accumulates the products of four adjacent bytes:

    total[l] + sum over i < 4 of a[4 l + i] * w[4 l + i]                       :func:`dot`

AMX multiplies tiles of 16 rows x 64 bytes:

    tdpbusd   c[16 x 16] += a[16 x 64] w[64 x 16]                              :func:`tile_block`

in 16 cycles, which is 2048 operations per cycle. A block of 2 x 2 tiles, each loaded once for two products,
loads 64 bytes per cycle; one of 1 x 2 tiles loads 96.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.kernels import emit
from tersor.backends.tvm.kernels.blocking import PANEL
from tersor.backends.tvm.kernels.emit import Isa

K_STEP = 64  # k of quantized rows and of their weights is padded to a multiple of this.
_TILE = 16  # Rows of an AMX tile.
_TILE_BYTES = 1024


@contextmanager
def tiles(used: bool) -> Iterator[None]:
    """A context in which the eight AMX tiles of the core are configured as 16 rows x 64 bytes, if ``used``;
    they are released at its end, so that context switches need not save their 8 KiB."""
    if not used:
        yield
        return
    config = emit.scratch((64,), "uint8")
    with T.serial(0, 64) as i:
        T.buffer_store(config, T.uint8(0), [i])
    T.buffer_store(config, T.uint8(1), [0])  # the palette
    for tile in range(8):
        T.buffer_store(config, T.uint8(64), [16 + 2 * tile])  # bytes per row
        T.buffer_store(config, T.uint8(_TILE), [48 + tile])  # rows
    emit.run("llvm.x86.ldtilecfg", config.access_ptr("r"))
    yield
    emit.run("llvm.x86.tilerelease")


def tile_block(a: Any, row: Any, rows: int, w: Any, panel: Any, acc: Any) -> None:
    """Emits the product of rows from ``row`` on with one panel.

    Tiles 0-3 are accumulators, 4-5 rows of ``a``, 6-7 columns of ``w``.

    Args:
        a: uint8[m, k], k a multiple of 64.
        rows: 16 or 32, all of which must exist.
        w: int8[panels, 2, k / 4, 64], packed as in the format int8.
        acc: int32[rows, 32].
    """
    k, count = int(a.shape[1]), rows // _TILE
    for tile in range(2 * count):
        emit.run("llvm.x86.tilezero", T.uint8(tile))
    with T.serial(0, k // K_STEP) as step:
        for j in range(2):
            at = ((panel * 2 + j) * (k // K_STEP) + step) * _TILE_BYTES
            emit.run(
                "llvm.x86.tileloadd64", T.uint8(6 + j), w.access_ptr("r", offset=at), T.int64(64)
            )
        for i in range(count):
            at = (row + i * _TILE) * k + step * K_STEP
            emit.run(
                "llvm.x86.tileloadd64", T.uint8(4 + i), a.access_ptr("r", offset=at), T.int64(k)
            )
            for j in range(2):
                emit.run("llvm.x86.tdpbusd", T.uint8(2 * i + j), T.uint8(4 + i), T.uint8(6 + j))
    for i in range(count):
        for j in range(2):
            at = i * _TILE * PANEL + j * _TILE
            emit.run(
                "llvm.x86.tilestored64",
                T.uint8(2 * i + j),
                acc.access_ptr("w", offset=at),
                T.int64(PANEL * 4),
            )


def dot(isa: Isa, acc: Any, a: Any, w: Any) -> Any:
    """``acc[l] + sum over i < 4 of a[4 l + i] * w[4 l + i]``."""
    lanes = isa.lanes
    if isa.dot == "vnni":
        name = f"llvm.x86.avx512.vpdpbusd.{lanes * 32}"
        return emit.intrinsic(f"int32x{lanes}", name, acc, emit.as_bits(a, f"int8x{4 * lanes}"), w)
    if isa.dot == "madd" and lanes in (8, 16):
        return acc + _madd(lanes, a, w)
    if isa.dot == "widen" and lanes in PAIRS:
        return acc + _widened(lanes, a, w)
    return acc + _by_lane(lanes, a, w)


# Multiply and add adjacent pairs: u8 x s8 into saturating int16; int16 x int16 into int32.
PAIRS = {
    8: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
    16: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
}


def dot_many(isa: Isa, acc: Any, a: Sequence[Any], w: Sequence[Any]) -> Any:
    """:func:`dot` of several vectors ``a`` with as many ``w``, widened to 32 bits once: two take five
    instructions instead of six, four take nine instead of twelve. Exact if no 16-bit sum of adjacent products
    (i = 0, 1; i = 2, 3) over all vectors can overflow (:mod:`tersor.numerics.sums`)."""
    pairs = [_pair_sums(isa.lanes, *vectors) for vectors in zip(a, w, strict=True)]
    return acc + _widen(isa.lanes, functools.reduce(operator.add, pairs))


def _madd(lanes: int, a: Any, w: Any) -> Any:
    """AVX's two steps; exact where no sum of two adjacent products can overflow 16 bits."""
    return _widen(lanes, _pair_sums(lanes, a, w))


def _pair_sums(lanes: int, a: Any, w: Any) -> Any:
    """16-bit sums of two adjacent products."""
    bytes_to_16, _ = PAIRS[lanes]
    return emit.intrinsic(
        f"int16x{2 * lanes}", bytes_to_16, emit.as_bits(a, f"int8x{4 * lanes}"), w
    )


def _widen(lanes: int, pairs: Any) -> Any:
    """32-bit sums of two adjacent 16-bit numbers."""
    _, to_32 = PAIRS[lanes]
    return emit.intrinsic(f"int32x{lanes}", to_32, pairs, T.broadcast(T.int16(1), 2 * lanes))


def _widened(lanes: int, a: Any, w: Any) -> Any:
    """Even and odd bytes extended to 16 bits: (a0 w0 + a2 w2) + (a1 w1 + a3 w3), always exact."""
    short = f"int16x{2 * lanes}"
    a16, w16 = emit.as_bits(a, short), emit.as_bits(w, short)
    eight = T.broadcast(T.int16(8), 2 * lanes)
    a_odd = emit.as_bits(
        emit.as_bits(a, f"uint16x{2 * lanes}") >> T.broadcast(T.uint16(8), 2 * lanes), short
    )
    a_even = a16 & T.broadcast(T.int16(255), 2 * lanes)
    _, to_32 = PAIRS[lanes]
    even = emit.intrinsic(f"int32x{lanes}", to_32, a_even, (w16 << eight) >> eight)
    return even + emit.intrinsic(f"int32x{lanes}", to_32, a_odd, w16 >> eight)


def _by_lane(lanes: int, a: Any, w: Any) -> Any:
    """Each byte of a 32-bit lane in turn, without ISA-specific instructions."""
    int32 = f"int32x{lanes}"
    a32, w32 = emit.as_bits(a, int32), emit.as_bits(w, int32)
    total: Any = None
    for i in range(4):
        left, right = T.broadcast(T.int32(24 - 8 * i), lanes), T.broadcast(T.int32(24), lanes)
        byte = (a32 >> T.broadcast(T.int32(8 * i), lanes)) & T.broadcast(T.int32(255), lanes)
        term = byte * ((w32 << left) >> right)
        total = term if total is None else total + term
    return total
