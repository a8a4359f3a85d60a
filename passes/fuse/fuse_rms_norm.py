"""RMSNormalization from its formula, as in T5 and LLaMA (Zhang and Sennrich 2019).

    y = x * rsqrt(mean(x^2) + eps) * scale

rsqrt is Reciprocal(Sqrt(v)), 1 / Sqrt(v), Pow(v, -0.5), or a Div by Sqrt(v). A missing scale (or one of ones,
which was folded away) is 1. Applied to ``x - mean(x)`` it is the LayerNormalization of x without bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import (
    dims,
    is_last_axis_mean,
    is_scalar,
    operand,
    operand_orders,
    producer_if,
    rank,
    scalar,
)
from tersor.ir import Graph, Node, Value
from tersor.pipeline import ROUNDING, Pass, Rewrite


@dataclass(frozen=True)
class FuseRmsNorm(Pass):
    """No options."""

    keeps = ROUNDING

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        if (plain := _normalized(node.output)) is not None:
            return _unscaled(graph, node, *plain)
        if node.op != "Mul":
            return None
        for normal, scale in operand_orders(node):
            if not scale.is_constant:
                continue
            match = _normalized(normal)
            if match is None:
                continue
            x, epsilon = match
            if scale.tensor.shape != (dims(x) or (None,))[-1:]:
                continue  # Not the scale of the norm, just a product.
            return _norm(graph, x, scale, epsilon)
        return None


def _norm(graph: Graph, x: Value, scale: Value, epsilon: float) -> Value:
    centred, attrs = producer_if(x, "Sub"), {"axis": -1, "epsilon": epsilon}
    if centred is not None and is_last_axis_mean(operand(centred, 1), operand(centred, 0)):
        return graph.emit("LayerNormalization", [operand(centred, 0), scale], attrs)
    return graph.emit("RMSNormalization", [x, scale], attrs)


def _unscaled(graph: Graph, node: Node, x: Value, epsilon: float) -> Rewrite:
    width = (dims(x) or (None,))[-1]
    if not isinstance(width, int) or any(
        _scales(use.user, node.output) for use in node.output.uses
    ):
        return None
    ones = graph.constant(np.ones(width, x.tensor.dtype.numpy), "scale")
    return _norm(graph, x, ones, epsilon)


def _scales(user: Node | Graph, normal: Value) -> bool:
    """Whether ``user`` multiplies by a constant vector of the last axis, so that it is fused as the scale."""
    if isinstance(user, Graph) or user.op != "Mul":
        return False
    last = (dims(normal) or (None,))[-1:]
    return any(
        a is normal and b.is_constant and b.tensor.shape == last for a, b in operand_orders(user)
    )


def _normalized(value: Value) -> tuple[Value, float] | None:
    node = value.producer
    if node is None or node.op not in ("Mul", "Div"):
        return None
    for x, inverse in (
        operand_orders(node) if node.op == "Mul" else [(operand(node, 0), operand(node, 1))]
    ):
        inside = _under_root(inverse, node.op)
        total = producer_if(inside, "Add")
        if total is None:
            continue
        for square_mean, epsilon in operand_orders(total):
            number = scalar(epsilon)
            if number is not None and _is_mean_square(square_mean, x):
                return x, number
    return None


def _under_root(value: Value, op: str) -> Value | None:
    """v, if ``value`` is 1/sqrt(v) (``op`` Mul) or sqrt(v) (``op`` Div)."""
    if op == "Mul":
        power = producer_if(value, "Pow")
        if power is not None and is_scalar(operand(power, 1), -0.5):
            return operand(power, 0)
        if (inverse := producer_if(value, "Reciprocal")) is not None:
            value = operand(inverse, 0)
        elif (inverse := producer_if(value, "Div")) is not None and is_scalar(inverse.inputs[0], 1):
            value = operand(inverse, 1)
        else:
            return None
    root = producer_if(value, "Sqrt")
    return operand(root, 0) if root is not None else None


def _is_mean_square(value: Value, x: Value) -> bool:
    mean = producer_if(value, "ReduceMean")
    if mean is None or not mean.attrs["keepdims"]:
        return False
    axes = mean.input(1)
    if axes is None or (not is_scalar(axes, -1) and not is_scalar(axes, (rank(x) or 0) - 1)):
        return False
    square = operand(mean, 0).producer
    if square is None or square.op not in ("Pow", "Mul") or operand(square, 0) is not x:
        return False
    return is_scalar(operand(square, 1), 2) if square.op == "Pow" else operand(square, 1) is x
