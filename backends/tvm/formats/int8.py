"""int8: signed bytes with a scale per column and no zero points; for rows of unsigned bytes.

With row r as ``x = s_r (q - z_r)`` and column n of the weight as ``w_n v``,

    x W  =  s_r w_n (sum q v - z_r sum v)

where the first sum is exact in int32, and ``w_n`` and ``sum v`` are two numbers per column.  Packed as

    packed[panel][half][k / 4][16][4]             half: columns 0-15 and 16-31 of the panel of 32

64 bytes, four steps of k for 16 columns, are an operand of ``vpdpbusd`` (four products per lane) and a row of
an AMX tile (16 rows x 64 bytes: 64 steps of k for 16 columns), so that all ISAs share the layout; k is padded
with zeros to a multiple of 64.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tersor.backends.tvm.derive import values_of
from tersor.backends.tvm.formats.format import QUANTIZED, Block, Derived, Format, Operand, register
from tersor.backends.tvm.kernels import emit, products
from tersor.backends.tvm.kernels.blocking import PANEL, Tile, columns_of, cover, in_panels, padded
from tersor.backends.tvm.kernels.emit import Isa
from tersor.backends.tvm.kernels.products import K_STEP
from tersor.ir import Affine, DType, Encoding
from tersor.numerics import sums

SAFE = (
    "safe"  # The variant of weights that are :func:`is_safe`: AVX's saturating pair sums are exact.
)
FOURS, EIGHTS = "fours", "eights"
UNROLLED = {EIGHTS: (sums.EIGHTS, 4), FOURS: (sums.FOURS, 2)}
"""Variants by the sums that weights fit, and how many vectors of pairs may be added before widening."""


def pack(weight: np.ndarray) -> np.ndarray:
    """``weight`` s8[k, n] as int8[panels, 2, k' / 4, 64], with k' a multiple of 64."""
    full = in_panels(weight, padded(len(weight), K_STEP))
    blocks = full.reshape(-1, 4, full.shape[1] // PANEL, 2, 16)
    return np.ascontiguousarray(blocks.transpose(2, 3, 0, 4, 1)).reshape(
        full.shape[1] // PANEL, 2, full.shape[0] // 4, 64
    )


def column_sums(packed: np.ndarray, n: int) -> np.ndarray:
    """The column sums int32[n] of a weight with n columns, from what :func:`pack` returns."""
    panels, halves, _, _ = packed.shape
    by_panel = packed.reshape(panels, halves, -1, 16, 4).sum((2, 4), dtype=np.int32)
    sums = np.empty(max(n, PANEL), np.int32)
    sums[columns_of(n)] = by_panel.reshape(panels, PANEL)
    return sums[:n]


def is_safe(weight: np.ndarray) -> bool:
    """Whether no sum of two adjacent products of u8 and ``weight`` s8[k, n] overflows 16 bits, so that AVX's
    pair sums are exact. 255 * 128 fits, 255 * 129 does not."""
    k, n = weight.shape
    full = np.zeros((padded(k, 2), n), np.int16)
    full[:k] = weight
    pairs = full.reshape(-1, 2, n)
    highest, lowest = np.maximum(pairs, 0).sum(1), np.minimum(pairs, 0).sum(1)
    return bool(max(highest.max(initial=0), -lowest.min(initial=0)) <= 128)


@register
class Int8(Format):
    name = "int8"
    rows = QUANTIZED
    accumulator = "int32"
    vectors = 2
    steps = (("pack_int8", pack), ("sums_int8", column_sums))

    def accepts(self, weight: Encoding) -> str | None:
        affine = weight.layer(Affine)
        if affine is None or affine.storage is not DType.I8:
            return f"it is {weight.describe()}, not i8 integers with scales"
        if (affine.axis, affine.block) != (1, 0):
            return f"it is {weight.describe()}, whose scales are not one per column"
        return None if affine.is_symmetric else "it has zero points"

    def variant(self, weight: Encoding, isa: Isa) -> str:
        values = _affine(weight).values
        if isa.dot != "widen":
            return ""
        fitting = (name for name, (wanted, _) in UNROLLED.items() if wanted.holds(values))
        return next(fitting, SAFE if is_safe(values) else "")

    def operands(self, k: int, n: int, isa: Isa) -> tuple[Operand, ...]:
        panels = padded(n, PANEL) // PANEL
        return (Operand("w", (panels, 2, padded(k, K_STEP) // 4, 64), "int8"),)

    def pack(self, weight: Encoding, isa: Isa) -> tuple[Derived, ...]:
        steps, sources = values_of(_affine(weight))
        return (((*steps, ("pack_int8",)), sources),)

    def columns(self, weight: Encoding, packed: Sequence[np.ndarray]) -> tuple[Derived, ...]:
        """Scales, and sums of the integers."""
        affine = _affine(weight)
        return ((), (affine.scale,)), ((("sums_int8", affine.type.shape[1]),), tuple(packed))

    def uses_tiles(self, isa: Isa) -> bool:
        return isa.dot == "amx"

    def emit_block(self, block: Block) -> None:
        (w,) = block.weights
        isa, x, row = block.isa, block.x, block.row
        if self.uses_tiles(isa):
            products.tile_block(x, row, block.rows, w, block.panel, block.acc)
            return
        if block.variant and isa.dot == "widen":
            isa = replace(isa, dot="madd")
        _, unroll = UNROLLED.get(block.variant, (None, 1))
        dot = functools.partial(products.dot if unroll == 1 else products.dot_many, isa)

        def broadcast(at: Any, step: Any) -> Any:
            """Four consecutive bytes of a row, broadcast to every lane."""
            bits = emit.as_bits(emit.load(x, at, step * 4, lanes=4), "int32")
            return emit.bind(emit.as_bits(emit.splat(bits, isa.lanes), f"uint8x{4 * isa.lanes}"))

        def multiply(tile: Tile, span: Any) -> None:
            with tile.reduce_over((0, int(x.shape[1]) // (4 * unroll))) as group:
                steps = [group * unroll + i for i in range(unroll)]
                columns = [tile.weights(w, block.panel, step, 4) for step in steps]
                for r in range(tile.rows):
                    at = row + tile.first + r
                    quads = [broadcast(at, step) for step in steps]
                    if unroll == 1:
                        tile.add(r, dot, quads[0], columns[0])
                    else:
                        tile.add(r, dot, quads, list(zip(*columns, strict=True)))

        cover(isa, block.valid, block.acc, 1, multiply, unroll)

    def emit_scaled(
        self, acc: Any, columns: Sequence[Any], row: tuple[Any, Any] | None, lanes: int
    ) -> Any:
        assert row is not None
        (scale, total), (row_scale, row_zero) = columns, row
        return (emit.cast(acc, f"float32x{lanes}") - row_zero * total) * (row_scale * scale)


def _affine(weight: Encoding) -> Affine:
    affine = weight.layer(Affine)
    assert affine is not None
    return affine
