"""Quantizers with one scale per row for ONNX Runtime, in standard ops: it has no kernels for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.analysis.match import uniform
from tersor.backends.ort import unsigned
from tersor.backends.ort.lowering import Lowering
from tersor.ir import DType, Graph, Node, Value
from tersor.ops.onnx_schema import TO_ONNX


def lower_dynamic_rows(graph: Graph, node: Node, lowering: Lowering) -> Sequence[Value]:
    """The op table's formula step by step, so that it rounds the same."""
    x = node.inputs[0]
    assert x is not None
    zero, one, top = (graph.constant(np.array(n, np.float32), "level") for n in (0, 1, 255))
    axes = graph.constant(np.array([-1]), "axes")
    low = graph.emit("Min", [graph.emit("ReduceMin", [x, axes]), zero])
    high = graph.emit("Max", [graph.emit("ReduceMax", [x, axes]), zero])
    step = graph.emit("Div", [graph.emit("Sub", [high, low]), top])
    scale = graph.emit("Where", [graph.emit("Equal", [step, zero]), one, step])

    def rounded(numbers: Value) -> Value:
        return graph.emit("Round", [graph.emit("Div", [numbers, scale])])

    def saturated(levels: Value) -> tuple[Value, Value]:
        clipped = graph.emit("Clip", [levels, zero, top])
        return clipped, graph.emit("Cast", [clipped], {"to": TO_ONNX[DType.U8]})

    level, zero_point = saturated(rounded(graph.emit("Neg", [low])))
    _, q = saturated(graph.emit("Add", [rounded(x), level]))
    return [q, scale, zero_point]


def lower_dequantize(graph: Graph, node: Node, lowering: Lowering) -> Sequence[Value] | None:
    """Activations with one block per row, and weights that become unsigned; others are kept."""
    rows = _lower_dequantize_rows(graph, node, lowering)
    return unsigned.lower_dequantized(graph, node, lowering) if rows is None else rows


def _lower_dequantize_rows(graph: Graph, node: Node, lowering: Lowering) -> Sequence[Value] | None:
    """Activations with one block per row. ONNX Runtime has the op, but fuses it with the product of a
    quantized weight into a kernel that refuses more than one zero point."""
    q, scale, axis = node.inputs[0], node.inputs[1], node.attrs["axis"]
    assert q is not None and scale is not None and isinstance(axis, int)
    blocks = scale.tensor.dims
    if q.is_constant or not node.attrs["block_size"] or not blocks or blocks[axis] != 1:
        return None
    return [dequantized(graph, q, scale, node.input(2))]


def dequantized(graph: Graph, q: Value, scale: Value, zero_point: Value | None) -> Value:
    """(q - zero_point) * scale in elementwise ops; the operands broadcast."""
    to = {"to": TO_ONNX[scale.tensor.dtype]}
    wide = graph.emit("Cast", [q], to)
    if zero_point is not None:
        if zero_point.tensor.dtype is not scale.tensor.dtype:
            zero_point = graph.emit("Cast", [zero_point], to)
        wide = graph.emit("Sub", [wide, zero_point])
    return wide if uniform(scale) == 1 else graph.emit("Mul", [wide, scale])
