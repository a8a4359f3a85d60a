"""Unsigned weights, for targets on which sums of products of u8 and s8 saturate (``analysis.saturation``):

    (a - za) (w - zw)   =   (a - za) ((w + 128) - (zw + 128))       w + 128 in 0 .. 255

ONNX Runtime then widens both to 16 bits before it multiplies, and its sums are exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.analysis.saturation import PRODUCTS, overflows, weights_of
from tersor.backends.ort.lowering import Lowering
from tersor.ir import DType, Graph, Node, TensorType, Value

SHIFT = 128


def lower_product(graph: Graph, node: Node, lowering: Lowering) -> Sequence[Value] | None:
    """An integer product whose sums may overflow, by unsigned weights. Products of signed activations are
    kept: ONNX Runtime has no product of s8 and u8."""
    place = PRODUCTS[node.op]
    weight, zero = node.input(place.weight), node.input(place.zero)
    if not lowering.options.unsigned_weights or weight is None or not weight.is_constant:
        return None
    activation = None if place.activation is None else node.input(place.activation)
    if activation is not None and not _is_u8(activation):
        return None
    if (zero is not None and not zero.is_constant) or not overflows(node, weight.numpy()):
        return None
    operands: list[Value | None] = [*node.inputs, *[None] * (place.zero + 1 - len(node.inputs))]
    operands[place.weight] = shifted(weight, weight.numpy(), lowering)
    operands[place.zero] = shifted_zero(
        weight, np.int8(0) if zero is None else zero.numpy(), lowering
    )
    types = [value.type for value in node.outputs]
    names = [""] * len(types)
    return graph.emit_node(node.op, operands, node.attrs, names=names, types=types).outputs


def lower_dequantized(graph: Graph, node: Node, lowering: Lowering) -> Sequence[Value] | None:
    """The same for weights that are dequantized before a product, which ONNX Runtime fuses. It makes signed
    activations that are dequantized unsigned by itself, on the processors that this is for."""
    weight, scale, zero = node.inputs[0], node.inputs[1], node.input(2)
    if not lowering.options.unsigned_weights or weight is None or not weight.is_constant:
        return None
    if weight.tensor.dtype is not DType.I8 or (zero is not None and not zero.is_constant):
        return None
    values = weight.numpy()
    if not any(_multiplies(user, values) for user in node.output.users):
        return None
    assert scale is not None
    numbers = np.zeros(scale.tensor.shape, np.int16) if zero is None else zero.numpy()
    zero_points = lowering.part(
        weight, "unsigned_zero_points", (numbers.astype(np.int16) + SHIFT).astype(np.uint8)
    )
    operands = [shifted(weight, values, lowering), scale, zero_points]
    return [graph.emit("DequantizeLinear", operands, node.attrs)]


def _multiplies(node: Node, values: np.ndarray) -> bool:
    """Whether a node multiplies integers by ``values``, and their sums can overflow."""
    weights = weights_of(node)
    return weights is not None and np.array_equal(weights, values) and overflows(node, values)


def shifted(weight: Value, values: np.ndarray, lowering: Lowering) -> Value:
    """The integers ``values`` of a weight as uint8."""
    return lowering.part(weight, "unsigned", (values.astype(np.int16) + SHIFT).astype(np.uint8))


def shifted_zero(weight: Value, zero: np.ndarray | np.int8, lowering: Lowering) -> Value:
    """The matching zero point; one number where all columns have the same."""
    numbers = (np.asarray(zero, np.int16) + SHIFT).astype(np.uint8)
    if numbers.size and (numbers == numbers.flat[0]).all():
        numbers = numbers.reshape(-1)[0].reshape(())
    return lowering.part(weight, "unsigned_zero_point", numbers)


def _is_u8(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype is DType.U8
