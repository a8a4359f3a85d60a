"""What stands in for an op where gradients are taken, of ops whose own gradient is zero or none: rounding.

    QuantizeLinear(x, s, z) to i8    Clip(x / s + z, -128, 127)     1 / s within the range, 0 beyond it
    Round(x)                         x
    Sign(x)                          Clip(x, -1, 1)

The values stay the op's own: hard + (soft - its value), of which only the second part has a gradient
(Bengio et al. 2013, arXiv 1308.3432).
"""

from __future__ import annotations

import numpy as np

from tersor.errors import Unsupported
from tersor.ir import DType, Graph, Node, TensorType, Value
from tersor.ops.families._ties import dims
from tersor.ops.opdef import Operands


def itself(node: Node, graph: Graph, operands: Operands, results: Operands) -> Value | None:
    """The operand that is rounded."""
    return operands[0]


def narrowed(node: Node, graph: Graph, operands: Operands, results: Operands) -> Value | None:
    """A float that becomes an integer of 8 bits or fewer; those of more count or point to something."""
    x, to = operands[0], _dtype(results[0])
    return x if _dtype(x).is_float and to.is_integer and to.bits <= 8 else None


def sign(node: Node, graph: Graph, operands: Operands, results: Operands) -> Value | None:
    return _clip(graph, operands[0], -1, 1)


def softmax(node: Node, graph: Graph, operands: Operands, results: Operands) -> Value | None:
    return graph.emit("Softmax", [operands[0]], {"axis": node.attrs["axis"]})


def quantize(node: Node, graph: Graph, operands: Operands, results: Operands) -> Value | None:
    x, scale, zero = (*operands, None)[:3]
    axis, block = node.attrs["axis"], node.attrs["block_size"]
    assert isinstance(axis, int) and isinstance(block, int)
    return _codes(graph, x, scale, zero, _dtype(results[0]), axis, block)


def quantize_dynamically(
    node: Node, graph: Graph, operands: Operands, results: Operands
) -> Value | None:
    return _codes(graph, operands[0], results[1], results[2], DType.U8)


def quantized_product(
    node: Node, graph: Graph, operands: Operands, results: Operands
) -> Value | None:
    """The dequantized operands' product, quantized."""
    a, a_scale, a_zero, b, b_scale, b_zero, scale, zero = operands
    left = graph.emit("DequantizeLinear", [a, a_scale, a_zero], {"axis": -2})
    right = graph.emit("DequantizeLinear", [b, b_scale, b_zero], {"axis": -1})
    exact = graph.emit("MatMul", [left, right])
    return _codes(graph, exact, scale, zero, _dtype(results[0]), axis=-2)


def _codes(
    graph: Graph, x: Value | None, scale: Value | None, zero: Value | None, to: DType,
    axis: int = -1, block: int = 0,
) -> Value:  # fmt: skip
    """The codes of ``x`` without rounding."""
    codes = graph.emit("Div", [x, _along(graph, scale, x, axis, block)])
    if zero is not None:
        like = graph.emit("CastLike", [_along(graph, zero, x, axis, block), codes])
        codes = graph.emit("Add", [codes, like])
    if not to.is_integer:
        return codes
    signed = to.value.startswith("i")
    low = -(1 << to.bits - 1) if signed else 0
    return _clip(graph, codes, low, low + (1 << to.bits) - 1)


def _along(graph: Graph, parameter: Value | None, x: Value | None, axis: int, block: int) -> Value:
    """A scale or zero point in a shape that broadcasts against ``x``."""
    assert parameter is not None
    have, sizes = dims(parameter), dims(x)
    if parameter.type.rank is None or not sizes:  # type: ignore[union-attr]
        raise Unsupported("a quantizer of unknown rank has no gradient")
    if len(have) == 0 or all(d == 1 for d in have) or (block and have[axis] == 1):
        return parameter
    axis %= len(sizes)
    if not block:
        if len(have) != 1:
            return parameter
        shape = [-1 if i == axis else 1 for i in range(len(sizes))]
        return graph.emit("Reshape", [parameter, graph.constant(np.array(shape), "shape")])
    size = sizes[axis]
    if not isinstance(size, int):
        raise Unsupported("a quantizer by blocks of an open dim has no gradient")
    blocks = graph.constant(np.arange(size) // block, "blocks")
    return graph.emit("Gather", [parameter, blocks], {"axis": axis})


def _clip(graph: Graph, x: Value | None, low: int, high: int) -> Value:
    dtype = _dtype(x).numpy
    ends = [graph.constant(np.array(end, dtype), "end") for end in (low, high)]
    return graph.emit("Clip", [x, *ends])


def _dtype(value: Value | None) -> DType:
    assert value is not None and isinstance(value.type, TensorType)
    return value.type.dtype
