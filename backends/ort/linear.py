"""Linear layers for ONNX Runtime, in float and in int8.

float:  ``matmul``  x W, then + b, then the activation;  ``gemm``  the same on x as [rows, k], with
        the bias inside the product: one pass over the result less. Matrices always get a Gemm.
int8:   com.microsoft.DynamicQuantizeMatMul quantizes x, multiplies in integers, scales, adds the
        bias.  An x that several layers read is quantized once, and
        com.microsoft.MatMulIntegerToFloat does the rest.
        Portable: DynamicQuantizeLinear, MatMulInteger, Cast, Mul by both scales, Add.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.analysis.saturation import overflows
from tersor.backends.ort import unsigned
from tersor.backends.ort.lowering import Lowering
from tersor.backends.ort.options import LowerOptions
from tersor.errors import Unsupported
from tersor.ir import Affine, DType, Encoding, Graph, Node, TensorType, Value
from tersor.ops.onnx_schema import TO_ONNX

_PLAIN_ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}


def lower_linear(graph: Graph, node: Node, lowering: Lowering) -> Sequence[Value]:
    """The layer in one of the forms above."""
    x, weight, bias = node.inputs[0], node.inputs[1], node.input(2)
    assert x is not None and weight is not None
    activation, options = str(node.attrs["activation"]), lowering.options
    quantizer = _dynamic_quantizer(x)
    encoding = weight.encoding
    if encoding is not None and quantizer is not None and is_per_column(encoding):
        y = _integer(graph, node, quantizer, weight, lowering)
    elif bias is not None and _as_gemm(x, activation, options):
        y = _gemm(graph, x, weight, bias)
    else:
        y = graph.emit("MatMul", [x, weight])
        # BiasGelu is one pass where Add and Gelu are two.
        if bias is not None and activation == "gelu" and not options.portable:
            return [graph.emit_node("com.microsoft.BiasGelu", [y, bias], types=[y.type]).output]
        if bias is not None:
            y = graph.emit("Add", [y, bias])
    return [_activate(graph, y, activation, options)]


def _as_gemm(x: Value, activation: str, options: LowerOptions) -> bool:
    """A matrix needs no reshape for it; where the activation's kernel adds the bias, that is cheaper."""
    if options.linear == "gemm":
        return x.tensor.rank != 1
    return x.tensor.rank == 2 and (options.portable or not activation.startswith("gelu"))


def lower_swish(graph: Graph, node: Node, lowering: Lowering) -> Sequence[Value]:
    """x * sigmoid(alpha x): ONNX Runtime has no kernel of that name."""
    x = node.inputs[0]
    assert x is not None
    inner = x
    if node.attrs["alpha"] != 1.0:
        alpha = np.asarray(node.attrs["alpha"], x.tensor.dtype.numpy)
        inner = graph.emit("Mul", [x, graph.constant(alpha, "alpha")])
    return [graph.emit("Mul", [x, graph.emit("Sigmoid", [inner])])]


def _dynamic_quantizer(x: Value) -> Node | None:
    """The DynamicQuantizeLinear whose integers ``x`` dequantizes."""
    dequantizer = x.producer
    if dequantizer is None or dequantizer.op != "DequantizeLinear":
        return None
    quantized = dequantizer.inputs[0]
    quantizer = quantized.producer if quantized is not None else None
    if quantizer is None or quantizer.op != "DynamicQuantizeLinear":
        return None
    return quantizer if list(dequantizer.inputs) == list(quantizer.outputs) else None


def is_per_column(encoding: Encoding) -> bool:
    """Integer kernels take int8 or uint8 weights with one scale, or one a column."""
    return (
        isinstance(encoding, Affine)
        and encoding.storage in (DType.I8, DType.U8)
        and not encoding.block
        and encoding.is_standard
        and encoding.axis in (None, 1)
        and encoding.values.ndim == 2
    )


def _integer(graph: Graph, node: Node, quantizer: Node, weight: Value, lowering: Lowering) -> Value:
    encoding, bias = weight.encoding, node.input(2)
    assert isinstance(encoding, Affine)
    scale = lowering.numbers(weight, "scale", encoding.scale)
    if lowering.options.unsigned_weights and overflows(node, encoding.values):
        values = unsigned.shifted(weight, encoding.values, lowering)
        zero: Value | None = unsigned.shifted_zero(weight, encoding.zero_point, lowering)
    else:
        values = lowering.part(weight, "quantized", encoding.values)
        zero = None
        if not encoding.is_symmetric:
            zero = lowering.part(weight, "zero_point", encoding.zero_point)
    x = quantizer.inputs[0]
    assert x is not None
    q, x_scale, x_zero = quantizer.outputs
    type = x.tensor.with_dims((*(x.tensor.dims or ())[:-1], encoding.values.shape[1]))
    if lowering.options.portable:
        product = graph.emit("MatMulInteger", [q, values, x_zero, zero])
        real = graph.emit("Cast", [product], {"to": TO_ONNX[x.tensor.dtype]})
        if any(_widens(user, node.output) for user in node.output.users):
            y = graph.emit("Mul", [graph.emit("Mul", [real, x_scale]), scale])
        else:
            y = graph.emit("Mul", [real, graph.emit("Mul", [x_scale, scale])])
        return y if bias is None else graph.emit("Add", [y, bias])
    if _readers(quantizer) == 1:
        operands = [x, values, scale, zero, bias]
        return graph.emit_node("com.microsoft.DynamicQuantizeMatMul", operands, types=[type]).output
    operands = [q, values, x_scale, scale, x_zero, zero, bias]
    return graph.emit_node("com.microsoft.MatMulIntegerToFloat", operands, types=[type]).output


def _widens(user: Node, y: Value) -> bool:
    """Whether ``user`` adds something of more axes: ONNX Runtime would fuse that as the product's bias and
    lose the axes. It does not where the scales are multiplied one after the other."""
    return user.op == "Add" and (
        not isinstance(user.output.type, TensorType) or user.output.tensor.rank != y.tensor.rank
    )


def _readers(quantizer: Node) -> int:
    """How many layers read the quantized values, through dequantizers or already lowered."""
    count = 0
    for user in quantizer.outputs[0].users:
        count += len(user.output.users) if user.op == "DequantizeLinear" else 1
    return count


def _gemm(graph: Graph, x: Value, weight: Value, bias: Value) -> Value:
    """[..., k] -> [rows, k] -> Gemm -> [..., n]; the views cost nothing."""
    if x.tensor.rank == 2:
        return graph.emit("Gemm", [x, weight, bias])
    k, n = weight.tensor.shape
    rows = graph.emit("Reshape", [x, graph.constant(np.array([-1, k]), "rows")])
    y = graph.emit("Gemm", [rows, weight, bias])
    shape = _leading_shape(graph, x, n)
    return graph.emit("Reshape", [y, shape])


def _leading_shape(graph: Graph, x: Value, last: int) -> Value:
    """The shape of ``x`` with its last dim replaced: a constant with one -1 where at most one dim is
    not static, else computed from ``x`` at run time."""
    dims = x.tensor.dims
    if dims is None:
        raise Unsupported(f"{x!r}: its rank is unknown")
    static = [d if isinstance(d, int) else -1 for d in dims[:-1]]
    if static.count(-1) <= 1:
        return graph.constant(np.array([*static, last]), "shape")
    leading = graph.emit("Shape", [x], {"end": -1})
    return graph.emit("Concat", [leading, graph.constant(np.array([last]), "last")], {"axis": 0})


def _activate(graph: Graph, y: Value, activation: str, options: LowerOptions) -> Value:
    if activation == "none":
        return y
    if activation in _PLAIN_ACTIVATIONS:
        return graph.emit(_PLAIN_ACTIVATIONS[activation], [y])
    if activation == "silu":
        return graph.emit("Mul", [y, graph.emit("Sigmoid", [y])])
    if options.portable:
        return graph.emit(
            "Gelu", [y], {"approximate": "tanh" if activation == "gelu_tanh" else "none"}
        )
    op = "com.microsoft.FastGelu" if activation == "gelu_tanh" else "com.microsoft.Gelu"
    return graph.emit_node(op, [y], types=[y.type]).output
