"""Ops that ONNX Runtime's optimizer fuses (``com.microsoft``), decomposed on import.

A file that ONNX Runtime or its transformers tools optimized then means the same graph as the file it was made
of: its layers have types, are compressed, and run on other runtimes.  Formulas are those of ONNX Runtime's
ContribOperators.md:

    FusedMatMul               alpha op(A) op(B), op optionally transposes the last two axes
    FusedConv                 activation(conv(x, w, b) + z)
    FusedGemm                 activation(gemm(a, b, c))
    BiasGelu, FastGelu        gelu(x + b), by erf or by tanh
    QuickGelu                 x sigmoid(alpha x)
    SkipLayerNormalization    norm(x + skip + b) gamma + beta; its fourth result is the sum
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tersor.frontends.onnx.legacy import LegacyNode
from tersor.ir import Attribute, Value

DOMAIN = "com.microsoft"
Results = Sequence[Value | None]
Rule = Callable[[LegacyNode], Results | None]


def decomposed(node: LegacyNode, read: Sequence[bool]) -> list[Value | None] | None:
    """The results of ``node`` by standard ops; None if it is kept: there is no rule, the rank of an operand
    is unknown, or a result that is ``read`` has no formula."""
    rule = RULES.get(node.op)
    if rule is None or any(
        v is not None and node.rank(i) is None for i, v in enumerate(node.inputs)
    ):
        return None
    if any(read[i] for i in range(len(read)) if i not in _RESULTS.get(node.op, (0,))):
        return None
    found = rule(node)
    if found is None:
        return None
    return [*found, *[None] * len(read)][: len(read)]


# -- what rules share ------------------------------------------------------------------------------


def _needed(node: LegacyNode, index: int) -> Value:
    value = node.operand(index)
    if value is None:
        raise TypeError(f"{node.op} needs operand {index}, which is left out")
    return value


def _number(node: LegacyNode, name: str, default: float) -> float:
    (value,) = _numbers(name, (node.attrs.get(name, default),))
    return value


def _numbers(name: str, values: object) -> list[float]:
    """The attribute ``name``, a list of numbers.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(values, tuple) or not all(isinstance(v, int | float) for v in values):
        raise TypeError(f"attribute {name!r} is not numbers")
    return [float(v) for v in values]


def _like(node: LegacyNode, number: float, x: Value, name: str) -> Value:
    return node.constant(number, name, x.tensor.dtype.numpy)


def _plus(node: LegacyNode, x: Value, bias: Value | None) -> Value:
    return x if bias is None else node.emit("Add", x, bias)


def _activated(node: LegacyNode, x: Value, params: Sequence[float]) -> Value | None:
    """The activation that a fused op names, with its parameters; None if it is another than these."""
    name = node.attrs.get("activation", "")
    name = name if isinstance(name, str) else ""
    match name, len(params):
        case "", _:
            return x
        case (("Relu" | "Sigmoid" | "Tanh"), _):
            return node.emit(name, x)
        case "LeakyRelu", 1:
            return node.emit(name, x, alpha=params[0])
        case "HardSigmoid", 2:
            return node.emit(name, x, alpha=params[0], beta=params[1])
        case "Clip", 2:
            ends = (_like(node, end, x, "end") for end in params)
            return node.emit(name, x, *ends)
    return None


def _without(node: LegacyNode, *names: str) -> dict[str, Attribute]:
    return {k: v for k, v in node.attrs.items() if k not in names}


# -- rules -----------------------------------------------------------------------------------------


def _gelu(node: LegacyNode) -> Results:
    x = _plus(node, _needed(node, 0), node.operand(1))
    approximate = "tanh" if node.op.endswith(".FastGelu") else "none"
    return [node.emit("Gelu", x, approximate=approximate)]


def _quick_gelu(node: LegacyNode) -> Results:
    x = _needed(node, 0)
    alpha = _like(node, _number(node, "alpha", 1.702), x, "alpha")
    return [node.emit("Mul", x, node.emit("Sigmoid", node.emit("Mul", x, alpha)))]


def _matmul(node: LegacyNode) -> Results | None:
    if node.attrs.get("transBatchA") or node.attrs.get("transBatchB"):
        return None
    operands = []
    for index, name in enumerate(("transA", "transB")):
        x = _needed(node, index)
        rank = x.tensor.rank or 0
        if node.attrs.get(name) and rank > 1:
            x = _transposed(node, x, (*range(rank - 2), rank - 1, rank - 2))
        operands.append(x)
    y = node.emit("MatMul", *operands)
    alpha = _number(node, "alpha", 1.0)
    return [y if alpha == 1.0 else node.emit("Mul", y, _like(node, alpha, y, "alpha"))]


def _transposed(node: LegacyNode, x: Value, axes: tuple[int, ...]) -> Value:
    if x.encoding is not None:
        return node.graph.constant(np.ascontiguousarray(x.numpy().transpose(axes)), x.name)
    return node.emit("Transpose", x, perm=axes)


def _conv(node: LegacyNode) -> Results | None:
    attrs = _without(node, "activation", "activation_params")
    y = node.emit("Conv", *node.inputs[:3], **attrs)
    params = _numbers("activation_params", node.attrs.get("activation_params", ()))
    made = _activated(node, _plus(node, y, node.operand(3)), params)
    return None if made is None else [made]


def _gemm(node: LegacyNode) -> Results | None:
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    y = node.emit("Gemm", *node.inputs, **_without(node, "activation", *names))
    made = _activated(node, y, [_number(node, n, 0.0) for n in names if n in node.attrs])
    return None if made is None else [made]


def _skip_norm(node: LegacyNode) -> Results:
    simplified = node.op.endswith(".SkipSimplifiedLayerNormalization")
    x, skip, gamma = (_needed(node, i) for i in range(3))
    beta, bias = (None, node.operand(3)) if simplified else (node.operand(3), node.operand(4))
    total = _plus(node, node.emit("Add", x, skip), bias)
    epsilon = _number(node, "epsilon", 1e-12)
    if simplified:
        y = node.emit("RMSNormalization", total, gamma, axis=-1, epsilon=epsilon)
    else:
        y = node.emit("LayerNormalization", total, gamma, beta, axis=-1, epsilon=epsilon)
    return [y, None, None, total]


RULES: dict[str, Rule] = {
    f"{DOMAIN}.{name}": rule
    for name, rule in {
        "BiasGelu": _gelu,
        "FastGelu": _gelu,
        "FusedConv": _conv,
        "FusedGemm": _gemm,
        "FusedMatMul": _matmul,
        "Gelu": _gelu,
        "QuickGelu": _quick_gelu,
        "SkipLayerNormalization": _skip_norm,
        "SkipSimplifiedLayerNormalization": _skip_norm,
    }.items()
}
# The results that rules give, where they are others than the first.
_RESULTS = {op: (0, 3) for op, rule in RULES.items() if rule is _skip_norm}
