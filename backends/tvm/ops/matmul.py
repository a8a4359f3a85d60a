"""Matrix products: MatMul, Gemm, and Linear with its activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from tersor.backends.tvm.lowering import Lowering, Refused, Rule
from tersor.backends.tvm.ops.broadcast import Operand, Scalar, dims_of, each, kind, operand
from tersor.backends.tvm.ops.contraction import Labels, accumulated, contract, whole
from tersor.backends.tvm.ops.elementwise import gelu, relu, sigmoid, swish
from tersor.ir import Node, TensorType, Value

ACTIVATIONS: dict[str, Scalar] = {
    "none": lambda x: x,
    "relu": relu,
    "gelu": gelu,
    "gelu_tanh": lambda x: gelu(x, approximate="tanh"),
    "tanh": tirx.tanh,
    "sigmoid": sigmoid,
    "silu": swish,
}


def matrix_labels(a: int, b: int) -> tuple[Labels, Labels, Labels]:
    """Labels of [..., m, k] x [..., k, n] -> [..., m, n], for operands of ranks ``a`` and ``b``."""
    lead = [f".{i}" for i in reversed(range(max(a, b) - 2))]
    rows, columns = ["m"] if a > 1 else [], ["n"] if b > 1 else []

    def batch(rank: int) -> list[str]:
        return lead[len(lead) - max(rank - 2, 0) :]

    return [*batch(a), *rows, "k"], [*batch(b), "k", *columns], [*lead, *rows, *columns]


def operands_of(node: Node, count: int = 2) -> list[Value]:
    """The required operands."""
    given = [v for v in node.inputs[:count] if v is not None]
    if len(given) < count:
        raise Refused("a required operand is missing")
    return given


def _product(
    lowering: Lowering, a: Value, b: Value, labels: tuple[Labels, Labels, Labels], type: TensorType
) -> Any:
    operands = [whole(lowering, a), whole(lowering, b)]
    return contract(lowering, "matmul", operands, labels[:2], labels[2], type, equal=("k",))


def _matmul(lowering: Lowering, node: Node) -> Sequence[Any]:
    a, b = operands_of(node)
    labels = matrix_labels(len(dims_of(a)), len(dims_of(b)))
    return [_product(lowering, a, b, labels, node.output.tensor)]


def _finished(
    lowering: Lowering, node: Node, summed: Any, added: Value | None, scalar: Scalar
) -> Any:
    """``scalar`` of each sum of products, and of the element of ``added`` where there is one."""
    operands = [Operand(summed, dims_of(node.output))]
    operands += [] if added is None else [operand(lowering, added)]
    return each(lowering, "epilogue", operands, node.output.tensor, scalar)


def _gemm(lowering: Lowering, node: Node) -> Sequence[Any]:
    a, b = operands_of(node)
    c, alpha, beta = node.input(2), node.attrs["alpha"], node.attrs["beta"]
    rows = ["k", "m"] if node.attrs["transA"] else ["m", "k"]
    columns = ["n", "k"] if node.attrs["transB"] else ["k", "n"]
    labels, type = (rows, columns, ["m", "n"]), node.output.tensor
    if c is None and alpha == 1:
        return [_product(lowering, a, b, labels, type)]
    summed = _product(lowering, a, b, labels, accumulated(type))

    def scaled(y: Any, z: Any = None) -> Any:
        if {alpha, beta} != {1.0} and not kind(y).startswith("float"):
            # Factors are real: an integer result is truncated once.
            y, z = (None if n is None else n.astype("float64") for n in (y, z))
        y = y if alpha == 1 else tirx.const(alpha, kind(y)) * y
        return y if z is None else y + (z if beta == 1 else tirx.const(beta, kind(z)) * z)

    return [_finished(lowering, node, summed, c, scaled)]


def _linear(lowering: Lowering, node: Node) -> Sequence[Any]:
    x, weight = operands_of(node)
    bias, activation = node.input(2), str(node.attrs["activation"])
    labels, type = matrix_labels(len(dims_of(x)), len(dims_of(weight))), node.output.tensor
    if bias is None and activation == "none":
        return [_product(lowering, x, weight, labels, type)]
    summed = _product(lowering, x, weight, labels, accumulated(type))

    def activated(y: Any, b: Any = None) -> Any:
        return ACTIVATIONS[activation](y if b is None else y + b)

    return [_finished(lowering, node, summed, bias, activated)]


RULES: dict[str, Rule] = {"MatMul": _matmul, "Gemm": _gemm, "tersor.Linear": _linear}
