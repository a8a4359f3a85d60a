"""Rewrites ONNX Runtime's quantized ops (``com.microsoft``) to ops that have lowerings. (Its fused float ops
are decomposed on import.)

Formulas follow ONNX Runtime's ContribOperators.md:

    DynamicQuantizeMatMul     quantize(A) B_quantized, as MatMulIntegerToFloat
    MatMulIntegerToFloat      (A - a_zero) (B - b_zero) a_scale b_scale + b
    DynamicQuantizeLSTM       LSTM of (W - w_zero) w_scale and (R - r_zero) r_scale

ONNX Runtime quantizes the operand and the states of DynamicQuantizeLSTM at each step; here they stay float,
which is closer to the original model.  The file stores the weights as integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tersor.ir import Affine, DType, Graph, Node, TensorType, Value
from tersor.ops.onnx_schema import TO_ONNX
from tersor.pipeline.rewriting import replace_node

DOMAIN = "com.microsoft."
Rule = Callable[[Graph, Node], Sequence[Value | None] | None]


def expand(graph: Graph) -> Graph:
    """A copy of ``graph`` with the ops listed here rewritten; others are kept."""
    result = graph.copy()
    for node in list(result.walk()):
        if node.graph is None:
            continue
        rule = RULES.get(node.op)
        if rule is None:
            if not all(
                map(_is_typed, node.outputs)
            ):  # Its operands may have got their types only now.
                node.graph.infer(node)
        elif all(_is_typed(v) for v in node.inputs if v is not None):
            with node.graph.at(node):
                values = rule(node.graph, node)
            if values is not None:
                _replace(node, values)
    return result


def _is_typed(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dims is not None


def _replace(node: Node, values: Sequence[Value | None]) -> None:
    """Replaces a node, unless one of its outputs is read that has no replacement."""
    missing = len(node.outputs) - len(values)
    padded = [*values, *[None] * missing][: len(node.outputs)]
    pairs = list(zip(node.outputs, padded, strict=True))
    if not any(new is None and old.uses for old, new in pairs):
        replace_node(node, [old if new is None else new for old, new in pairs])


# -- helpers of the rules --------------------------------------------------------------------------


def _float(graph: Graph, x: Value, like: DType) -> Value:
    return graph.emit("Cast", [x], {"to": TO_ONNX[like]})


def _add(graph: Graph, x: Value, bias: Value | None) -> Value:
    return x if bias is None else graph.emit("Add", [x, bias])


def _transposed(graph: Graph, x: Value, axes: Sequence[int]) -> Value:
    """A transpose; of a constant, a transposed constant."""
    if x.is_constant:
        return graph.constant(np.ascontiguousarray(x.numpy().transpose(axes)), x.name)
    return graph.emit("Transpose", [x], {"perm": tuple(axes)})


def _required(node: Node, index: int) -> Value:
    value = node.input(index)
    assert value is not None, f"{node.label} lacks operand {index}"
    return value


# -- rules -----------------------------------------------------------------------------------------


def _integer_product(
    graph: Graph, operands: Sequence[Value | None], scales: Sequence[Value], bias: Value | None
) -> Value:
    """``operands``: A, B and their zero points; ``scales``: of A and of B."""
    product = graph.emit("MatMulInteger", operands)
    floats = _float(graph, product, scales[0].tensor.dtype)
    scale = graph.emit("Mul", list(scales))
    return _add(graph, graph.emit("Mul", [floats, scale]), bias)


def _matmul_to_float(graph: Graph, node: Node) -> Sequence[Value]:
    a, b, a_scale, b_scale = (_required(node, i) for i in range(4))
    operands = [a, b, node.input(4), node.input(5)]
    return [_integer_product(graph, operands, [a_scale, b_scale], node.input(6))]


def _dynamic_matmul(graph: Graph, node: Node) -> Sequence[Value]:
    a, b, b_scale = (_required(node, i) for i in range(3))
    quantizer = graph.emit_node("DynamicQuantizeLinear", [a], names=["q", "scale", "zero"])
    q, scale, zero = quantizer.outputs
    return [_integer_product(graph, [q, b, zero, node.input(3)], [scale, b_scale], node.input(4))]


def _lstm(graph: Graph, node: Node) -> Sequence[Value]:
    x = _required(node, 0)
    w, r = (
        _weight(graph, *(_required(node, i) for i in places)) for places in ((1, 8, 9), (2, 10, 11))
    )
    operands = [x, w, r, *(node.input(i) for i in range(3, 8))]
    while operands[-1] is None:
        operands.pop()
    return graph.emit_node("LSTM", operands, dict(node.attrs), names=["y", "h", "c"]).outputs


def _weight(graph: Graph, codes: Value, scale: Value, zero: Value) -> Value:
    """[directions, inputs, 4 hidden] in LSTM's layout, [directions, 4 hidden, inputs]; scales and zero points
    are one per direction, or one per direction and column."""
    if scale.tensor.rank == 1 and all(v.is_constant for v in (codes, scale, zero)):
        values = np.ascontiguousarray(codes.numpy().transpose(0, 2, 1))
        return graph.constant(Affine(values, scale.numpy(), zero.numpy(), 0), codes.name)
    axes = np.array([2] if scale.tensor.rank == 2 else [1, 2])

    def expanded(part: Value) -> Value:
        return graph.emit("Unsqueeze", [part, graph.constant(axes, "axes")])

    floats = _float(graph, _transposed(graph, codes, (0, 2, 1)), scale.tensor.dtype)
    shift = _float(graph, expanded(zero), scale.tensor.dtype)
    return graph.emit("Mul", [graph.emit("Sub", [floats, shift]), expanded(scale)])


RULES: dict[str, Rule] = {
    DOMAIN + name: rule
    for name, rule in {
        "DynamicQuantizeLSTM": _lstm,
        "DynamicQuantizeMatMul": _dynamic_matmul,
        "MatMulIntegerToFloat": _matmul_to_float,
    }.items()
}
