"""float32: any weight that decodes to float32; for float rows.

    packed[panel][half][k][16]                    half: columns 0-15 and 16-31 of the panel of 32

so that each step of k loads consecutive vectors.  Encoded weights (half precision, integers with scales) are
decoded and packed when the library is loaded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.derive import steps_of
from tersor.backends.tvm.formats.format import FLOAT, Block, Derived, Format, Operand, register
from tersor.backends.tvm.kernels import emit
from tersor.backends.tvm.kernels.blocking import PANEL, cover, in_panels, padded
from tersor.backends.tvm.kernels.emit import Isa
from tersor.ir import DType, Encoding

_SPAN = 256  # Steps of k between stores of the accumulators.


def pack(weight: np.ndarray) -> np.ndarray:
    """``weight`` f32[k, n] as float32[panels, 2, k, 16]."""
    k = len(weight)
    halves = in_panels(weight, k).reshape(k, -1, 2, 16)
    return np.ascontiguousarray(halves.transpose(1, 2, 0, 3))


@register
class Float32(Format):
    name = "float32"
    rows = FLOAT
    decodes = True
    steps = (("pack_float", pack),)

    def accepts(self, weight: Encoding) -> str | None:
        dtype = weight.type.dtype
        return None if dtype is DType.F32 else f"its numbers are {dtype.value}, not f32"

    def operands(self, k: int, n: int, isa: Isa) -> tuple[Operand, ...]:
        return (Operand("w", (padded(n, PANEL) // PANEL, 2, k, 16), "float32"),)

    def pack(self, weight: Encoding, isa: Isa) -> tuple[Derived, ...]:
        steps, sources = steps_of(weight)
        return (((*steps, ("pack_float",)), sources),)

    def emit_block(self, block: Block) -> None:
        (w,) = block.weights
        k, isa = int(w.shape[2]), block.isa
        spans = max(1, -(-k // _SPAN))
        each = -(-k // spans)

        def multiply(tile: Any, span: Any) -> None:
            steps, resume = (0, k), None
            if spans > 1:
                begin = emit.bind(span * each)
                steps, resume = (begin, T.min(begin + each, T.int64(k))), span > 0
            with tile.reduce_over(steps, resume) as step:
                columns = tile.weights(w, block.panel, step, 1)
                for r in range(tile.rows):
                    broadcast = emit.splat(block.x[block.row + tile.first + r, step], isa.lanes)
                    tile.add(r, _multiply_add, emit.bind(broadcast), columns)

        cover(isa, block.valid, block.acc, spans, multiply)


def _multiply_add(total: Any, x: Any, w: Any) -> Any:
    return total + x * w
