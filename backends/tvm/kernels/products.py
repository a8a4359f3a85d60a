"""Instructions that sum products of unsigned with signed bytes in int32, by what the machine has.

Each lane sums four products, of neighbours in memory:

    total[l] + sum over i < 4 of a[4 l + i] * w[4 l + i]                       :func:`dot`

AMX does so for tiles of 16 rows x 64 bytes:

    tdpbusd   c[16 x 16] += a[16 x 64] w[64 x 16]                              :func:`tile_block`

takes 16 cycles: 2048 operations a cycle. Two by two tiles, each loaded once for two products, need 64
bytes a cycle; one by two tiles need 96.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.kernels import emit
from tersor.backends.tvm.kernels.blocking import PANEL
from tersor.backends.tvm.kernels.emit import Isa

K_STEP = 64  # Rows of bytes, and weights for them, are padded to a multiple of this along k.
_TILE = 16  # Rows of an AMX tile.
_TILE_BYTES = 1024


def open_tiles() -> None:
    """Configures eight AMX tiles of 16 rows x 64 bytes on the core that runs this."""
    config = emit.scratch((64,), "uint8")
    with T.serial(0, 64) as i:
        T.buffer_store(config, T.uint8(0), [i])
    T.buffer_store(config, T.uint8(1), [0])  # the palette
    for tile in range(8):
        T.buffer_store(config, T.uint8(64), [16 + 2 * tile])  # bytes of a row
        T.buffer_store(config, T.uint8(_TILE), [48 + tile])  # rows
    emit.run("llvm.x86.ldtilecfg", config.access_ptr("r"))


def close_tiles() -> None:
    """Gives the tiles back, so that nobody saves their 8 KiB at a context switch."""
    emit.run("llvm.x86.tilerelease")


def tile_block(a: Any, row: Any, rows: int, w: Any, panel: Any, acc: Any) -> None:
    """Emits the product of rows from ``row`` on with one panel.

    Tiles 0-3 accumulate, 4-5 hold rows, 6-7 hold columns.

    Args:
        a: uint8[m, k], k a multiple of 64.
        rows: 16 or 32, which have to be there to be read.
        w: int8[panels, 2, k / 4, 64], as the format int8 packs it.
        acc: int32[rows, 32].
    """
    k, tiles = int(a.shape[1]), rows // _TILE
    for tile in range(2 * tiles):
        emit.run("llvm.x86.tilezero", T.uint8(tile))
    with T.serial(0, k // K_STEP) as step:
        for j in range(2):
            at = ((panel * 2 + j) * (k // K_STEP) + step) * _TILE_BYTES
            emit.run(
                "llvm.x86.tileloadd64", T.uint8(6 + j), w.access_ptr("r", offset=at), T.int64(64)
            )
        for i in range(tiles):
            at = (row + i * _TILE) * k + step * K_STEP
            emit.run(
                "llvm.x86.tileloadd64", T.uint8(4 + i), a.access_ptr("r", offset=at), T.int64(k)
            )
            for j in range(2):
                emit.run("llvm.x86.tdpbusd", T.uint8(2 * i + j), T.uint8(4 + i), T.uint8(6 + j))
    for i in range(tiles):
        for j in range(2):
            at = i * _TILE * PANEL + j * _TILE
            emit.run(
                "llvm.x86.tilestored64",
                T.uint8(2 * i + j),
                acc.access_ptr("w", offset=at),
                T.int64(PANEL * 4),
            )


def dot(isa: Isa, held: Any, a: Any, w: Any) -> Any:
    """``held[l] + sum over i < 4 of a[4 l + i] * w[4 l + i]``."""
    lanes = isa.lanes
    if isa.dot == "vnni":
        name = f"llvm.x86.avx512.vpdpbusd.{lanes * 32}"
        return emit.intrinsic(f"int32x{lanes}", name, held, emit.as_bits(a, f"int8x{4 * lanes}"), w)
    if isa.dot == "madd" and lanes in (8, 16):
        return held + _madd(lanes, a, w)
    if isa.dot == "widen" and lanes in PAIRS:
        return held + _widened(lanes, a, w)
    return held + _by_lane(lanes, a, w)


# Instructions that multiply pairs and add them: u8 x s8 into 16 bits that saturate; 16 into 32 bits.
PAIRS = {
    8: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
    16: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
}


def dot_together(isa: Isa, held: Any, a: Sequence[Any], w: Sequence[Any]) -> Any:
    """:func:`dot` of some vectors ``a`` with as many ``w``: two take five instructions, not six, and four
    take nine, not twelve. Exact if no sum of neighbours' products (i = 0, 1; i = 2, 3) over all of them can
    overflow 16 bits (:mod:`tersor.numerics.sums`)."""
    pairs = [_in_pairs(isa.lanes, *one) for one in zip(a, w, strict=True)]
    return held + _widen(isa.lanes, functools.reduce(operator.add, pairs))


def _madd(lanes: int, a: Any, w: Any) -> Any:
    """AVX's two steps; exact where no two neighbouring products can overflow 16 bits."""
    return _widen(lanes, _in_pairs(lanes, a, w))


def _in_pairs(lanes: int, a: Any, w: Any) -> Any:
    """Sums of two neighbouring products in 16 bits."""
    bytes_to_16, _ = PAIRS[lanes]
    return emit.intrinsic(
        f"int16x{2 * lanes}", bytes_to_16, emit.as_bits(a, f"int8x{4 * lanes}"), w
    )


def _widen(lanes: int, two: Any) -> Any:
    """Sums of two neighbours of 16 bits, in 32."""
    _, to_32 = PAIRS[lanes]
    return emit.intrinsic(f"int32x{lanes}", to_32, two, T.broadcast(T.int16(1), 2 * lanes))


def _widened(lanes: int, a: Any, w: Any) -> Any:
    """Even and odd bytes as 16-bit numbers: (a0 w0 + a2 w2) + (a1 w1 + a3 w3), always exact."""
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
    """Byte by byte of each 32-bit lane: no instruction of one ISA is named."""
    int32 = f"int32x{lanes}"
    a32, w32 = emit.as_bits(a, int32), emit.as_bits(w, int32)
    total: Any = None
    for i in range(4):
        left, right = T.broadcast(T.int32(24 - 8 * i), lanes), T.broadcast(T.int32(24), lanes)
        byte = (a32 >> T.broadcast(T.int32(8 * i), lanes)) & T.broadcast(T.int32(255), lanes)
        term = byte * ((w32 << left) >> right)
        total = term if total is None else total + term
    return total
