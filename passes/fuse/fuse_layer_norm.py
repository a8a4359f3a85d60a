"""LayerNormalization written out, as older exporters do.

    d = x - mean(x);   y = d / sqrt(mean(d^2) + eps) * scale + bias

d^2 may be Pow(d, 2) or Mul(d, d); the division a Div by Sqrt, or a Mul by its Reciprocal.
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.analysis.match import (
    dims,
    either_way,
    is_last_axis_mean,
    is_scalar,
    made_by,
    operand,
    scalar,
)
from tersor.ir import Graph, Node, Value
from tersor.pipeline import ROUNDING, Pass, Rewrite, Skip


@dataclass(frozen=True)
class FuseLayerNorm(Pass):
    """No options."""

    keeps = ROUNDING

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        if node.op != "Add":
            return None
        for product, bias in either_way(node):
            scaled = made_by(product, "Mul")
            if scaled is None or not bias.is_constant:
                continue
            for normal, scale in either_way(scaled):
                found = _normalized(normal) if scale.is_constant else None
                if found is None:
                    continue
                x, epsilon = found
                _check_parameters(x, scale, bias)
                attrs = {"axis": -1, "epsilon": epsilon}
                return graph.emit("LayerNormalization", [x, scale, bias], attrs)
        return None


def _check_parameters(x: Value, scale: Value, bias: Value) -> None:
    size = (dims(x) or (None,))[-1]
    if scale.tensor.shape != (size,) or bias.tensor.shape != (size,):
        raise Skip("its scale or bias is not a vector of the last axis")


def _normalized(value: Value) -> tuple[Value, float] | None:
    """(x, epsilon) of ``(x - mean) / sqrt(var + epsilon)`` over the last axis."""
    node = value.producer
    if node is None:
        return None
    if node.op == "Div":
        pairs = [(operand(node, 0), operand(node, 1))]
        root = [made_by(pairs[0][1], "Sqrt")]
    elif node.op == "Mul":
        pairs = list(either_way(node))
        root = [_inverse_root(b) for _, b in pairs]
    else:
        return None
    for (centred, _), sqrt in zip(pairs, root, strict=True):
        sub = made_by(centred, "Sub")
        if sqrt is None or sub is None:
            continue
        x, mean = operand(sub, 0), operand(sub, 1)
        epsilon = _variance_epsilon(operand(sqrt, 0), centred)
        if epsilon is not None and is_last_axis_mean(mean, x):
            return x, epsilon
    return None


def _inverse_root(value: Value) -> Node | None:
    """The Sqrt in Reciprocal(Sqrt(v))."""
    inverse = made_by(value, "Reciprocal")
    return made_by(operand(inverse, 0), "Sqrt") if inverse is not None else None


def _variance_epsilon(value: Value, centred: Value) -> float | None:
    total = made_by(value, "Add")
    if total is None:
        return None
    for variance, epsilon in either_way(total):
        number = scalar(epsilon)
        mean = made_by(variance, "ReduceMean")
        if number is None or mean is None or not is_last_axis_mean(variance, operand(mean, 0)):
            continue
        if is_square_of(operand(mean, 0), centred):
            return number
    return None


def is_square_of(value: Value, base: Value) -> bool:
    """Whether ``value`` is Pow(base, 2) or Mul(base, base)."""
    node = value.producer
    if node is None or node.op not in ("Pow", "Mul") or operand(node, 0) is not base:
        return False
    return is_scalar(operand(node, 1), 2) if node.op == "Pow" else operand(node, 1) is base
