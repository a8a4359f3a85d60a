"""Products of a block of rows with a panel of packed weight columns, by what the machine has.

    acc[r, c] = sum over k of a[row + r, k] * w[k, panel * 32 + c]        r < rows, c < 32

int8: ``a`` is u8, ``w`` is s8, ``acc`` is int32 and exact. Weights are packed as

    packed[panel][half][k / 4][16][4]        half: columns 0-15 and 16-31 of the panel

so that 64 bytes hold four steps of k for 16 columns. That is at once one operand of ``vpdpbusd`` (four
products a lane) and one row of an AMX tile (16 rows x 64 bytes: 64 steps of k for 16 columns), of which

    tdpbusd   c[16 x 16] += a[16 x 64] w[64 x 16]

takes 16 cycles: 2048 operations a cycle. Two by two tiles, each loaded once for two products, need 64
bytes a cycle; one by two tiles need 96.

float32:

    packed[panel][half][k][16]

The last panel begins early enough to have 32 columns: what is computed twice is the same. Only where there
are fewer than 32 in all, zeros fill it.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.kernels import emit
from tersor.backends.tvm.kernels.blocking import PANEL, Tile, cover
from tersor.backends.tvm.kernels.emit import Isa

K_STEP = 64  # int8 weights are padded with zeros to a multiple of this along k.
_TILE = 16  # Rows of an AMX tile.
_TILE_BYTES = 1024
_FLOAT_K = 256  # Steps of k between two visits to the accumulators' memory.


def padded(size: int, multiple: int) -> int:
    """``size`` rounded up."""
    return -(-size // multiple) * multiple


def panel_start(panel: Any, n: int) -> Any:
    """The first column of a panel of ``n`` columns."""
    return (
        panel * PANEL if n % PANEL == 0 or n < PANEL else T.min(panel * PANEL, T.int64(n - PANEL))
    )


def _in_panels(weight: np.ndarray, rows: int) -> np.ndarray:
    """``weight`` [k, n] as [rows, panels * 32]: zeros where there is no row, or are too few columns."""
    k, n = weight.shape
    full = np.zeros((rows, max(n, PANEL)), weight.dtype)
    full[:k, :n] = weight
    starts = np.minimum(np.arange(0, n, PANEL), full.shape[1] - PANEL)
    return full[:, (starts[:, None] + np.arange(PANEL)).ravel()]


def pack_int8(weight: np.ndarray) -> np.ndarray:
    """``weight`` s8[k, n] as int8[panels, 2, k' / 4, 64], with k' a multiple of 64."""
    full = _in_panels(weight, padded(len(weight), K_STEP))
    blocks = full.reshape(-1, 4, full.shape[1] // PANEL, 2, 16)
    return np.ascontiguousarray(blocks.transpose(2, 3, 0, 4, 1)).reshape(
        full.shape[1] // PANEL, 2, full.shape[0] // 4, 64
    )


def is_safe(weight: np.ndarray) -> bool:
    """Whether no sum of two neighbouring products of u8 and ``weight`` s8[k, n] leaves 16 bits: AVX's
    pairs are exact then. 255 * 128 fits, 255 * 129 does not."""
    k, n = weight.shape
    full = np.zeros((padded(k, 2), n), np.int16)
    full[:k] = weight
    pairs = full.reshape(-1, 2, n)
    highest, lowest = np.maximum(pairs, 0).sum(1), np.minimum(pairs, 0).sum(1)
    return bool(max(highest.max(initial=0), -lowest.min(initial=0)) <= 128)


def pack_float(weight: np.ndarray) -> np.ndarray:
    """``weight`` f32[k, n] as float32[panels, 2, k, 16]."""
    k = len(weight)
    halves = _in_panels(weight, k).reshape(k, -1, 2, 16)
    return np.ascontiguousarray(halves.transpose(1, 2, 0, 3))


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


def int8_block(
    isa: Isa, a: Any, row: Any, rows: int, there: Any, w: Any, panel: Any, acc: Any
) -> None:
    """Emits the product of rows from ``row`` on with one panel.

    Args:
        a: uint8[m, k], k a multiple of 64.
        rows: 16 or 32 that AMX multiplies and that have to be there to be read.
        there: how many rows count; all other instructions read no more.
        w: what :func:`pack_int8` gives.
        acc: int32[rows, 32].
    """
    if isa.dot == "amx":
        _amx_block(a, row, rows // _TILE, w, panel, acc)
        return

    dot = functools.partial(_dot, isa)

    def multiply(tile: Tile, span: Any) -> None:
        with tile.over((0, int(a.shape[1]) // 4)) as step:
            columns = tile.weights(w, panel, step, 4)
            for r in range(tile.rows):
                four = emit.as_bits(emit.load(a, row + tile.first + r, step * 4, lanes=4), "int32")
                spread = emit.as_bits(emit.splat(four, isa.lanes), f"uint8x{4 * isa.lanes}")
                tile.add(r, dot, emit.bind(spread), columns)

    cover(isa, there, acc, 1, multiply)


def float_block(isa: Isa, a: Any, row: Any, there: Any, w: Any, panel: Any, acc: Any) -> None:
    """The same in float32.

    Args:
        a: float32[m, k].
        there: how many rows; no others are read.
        w: what :func:`pack_float` gives.
        acc: float32[rows, 32].
    """
    k = int(w.shape[2])
    spans = max(1, -(-k // _FLOAT_K))
    each = -(-k // spans)

    def multiply(tile: Tile, span: Any) -> None:
        steps, goes_on = (0, k), None
        if spans > 1:
            begin = emit.bind(span * each)
            steps, goes_on = (begin, T.min(begin + each, T.int64(k))), span > 0
        with tile.over(steps, goes_on) as step:
            columns = tile.weights(w, panel, step, 1)
            for r in range(tile.rows):
                spread = emit.splat(a[row + tile.first + r, step], isa.lanes)
                tile.add(r, _multiply_add, emit.bind(spread), columns)

    cover(isa, there, acc, spans, multiply)


def _multiply_add(held: Any, a: Any, w: Any) -> Any:
    return held + a * w


def _amx_block(a: Any, row: Any, tiles: int, w: Any, panel: Any, acc: Any) -> None:
    """Tiles 0-3 accumulate, 4-5 hold rows, 6-7 hold columns."""
    k = int(a.shape[1])
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


def _dot(isa: Isa, held: Any, a: Any, w: Any) -> Any:
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


def _madd(lanes: int, a: Any, w: Any) -> Any:
    """AVX's two steps; exact where no two neighbouring products can overflow 16 bits."""
    ones = T.broadcast(T.int16(1), 2 * lanes)
    bytes_to_16, to_32 = PAIRS[lanes]
    two = emit.intrinsic(f"int16x{2 * lanes}", bytes_to_16, emit.as_bits(a, f"int8x{4 * lanes}"), w)
    return emit.intrinsic(f"int32x{lanes}", to_32, two, ones)


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
