"""LayerNormalization from its formula, as older exporters write it.

    d = x - mean(x);   y = d / sqrt(mean(d^2) + eps) * scale + bias

d^2 may be Pow(d, 2) or Mul(d, d); the division may be Div by Sqrt, or Mul by its Reciprocal, which may be
multiplied by the scale first.  A mean may be a sum times 1/n, its axis dropped and restored.  JAX has
max(0, mean(x^2) - mean(x)^2) for mean(d^2), which differs in rounding only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tersor.analysis.match import (
    dims,
    is_scalar,
    operand,
    operand_orders,
    producer_if,
    rank,
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
        for product, bias in operand_orders(node):
            if not bias.is_constant:
                continue
            for centred, inverse, scale in _factors(product):
                if (match := _normalized(centred, inverse)) is not None:
                    x, epsilon = match
                    rows = [_row(graph, v, x) for v in (scale, bias)]
                    attrs = {"axis": -1, "epsilon": epsilon}
                    return graph.emit("LayerNormalization", [x, *rows], attrs)
        return None


def _factors(product: Value) -> Iterator[tuple[Value, Node, Value]]:
    """(d, the Sqrt in the denominator, scale) of (d / sqrt) * scale or d * (1 / sqrt * scale)."""
    outer = producer_if(product, "Mul")
    for a, b in operand_orders(outer) if outer is not None else ():
        if b.is_constant and a.producer is not None:
            inner = a.producer
            if inner.op == "Div" and (root := producer_if(operand(inner, 1), "Sqrt")) is not None:
                yield operand(inner, 0), root, b
            for d, inverse in operand_orders(inner) if inner.op == "Mul" else ():
                if (root := _inverse_root(inverse)) is not None:
                    yield d, root, b
        factor = producer_if(b, "Mul")
        for inverse, scale in operand_orders(factor) if factor is not None else ():
            if scale.is_constant and (root := _inverse_root(inverse)) is not None:
                yield a, root, scale


def _inverse_root(value: Value) -> Node | None:
    """The Sqrt in Reciprocal(Sqrt(v))."""
    inverse = producer_if(value, "Reciprocal")
    return producer_if(operand(inverse, 0), "Sqrt") if inverse is not None else None


def _row(graph: Graph, value: Value, x: Value) -> Value:
    """A scale or bias as a vector of the last axis."""
    shape, like = value.tensor.shape, dims(x) or (None,)
    if shape[-1:] != like[-1:] or any(d != 1 for d in shape[:-1]) or len(shape) > len(like):
        raise Skip("its scale or bias is not a vector of the last axis")
    return value if len(shape) == 1 else graph.constant(value.numpy().reshape(-1), value.name)


def _normalized(centred: Value, root: Node) -> tuple[Value, float] | None:
    """(x, epsilon) if ``centred`` is x - mean and ``root`` the root of variance + epsilon."""
    sub = producer_if(centred, "Sub")
    if sub is None:
        return None
    x, mean = operand(sub, 0), operand(sub, 1)
    # Both are per row: of the shape of x, with the last axis of size 1.
    if _mean_of(mean) is not x or not all(_is_per_row(v, x) for v in (mean, root.output)):
        return None
    epsilon = _epsilon(operand(root, 0), x, centred)
    return None if epsilon is None else (x, epsilon)


def _is_per_row(value: Value, x: Value) -> bool:
    shape = dims(x)
    return shape is not None and dims(value) == (*shape[:-1], 1)


def _epsilon(value: Value, x: Value, centred: Value) -> float | None:
    total = producer_if(value, "Add")
    for variance, epsilon in operand_orders(total) if total is not None else ():
        number = scalar(epsilon)
        if number is not None and _is_variance(_unviewed(variance), x, centred):
            return number
    return None


def _is_variance(value: Value, x: Value, centred: Value) -> bool:
    """Whether ``value`` is mean(centred^2), or max(0, mean(x^2) - mean(x)^2)."""
    squares = _mean_of(value)
    if squares is not None and _squared(squares) is centred:
        return True
    bounded = producer_if(value, "Max")
    if bounded is not None and len(bounded.inputs) == 2:
        value = next(
            (_unviewed(v) for v, zero in operand_orders(bounded) if is_scalar(zero, 0)), value
        )
    difference = producer_if(value, "Sub")
    if difference is None:
        return False
    squares, mean = _mean_of(operand(difference, 0)), _squared(operand(difference, 1))
    of_squares = squares is not None and _squared(squares) is x
    return of_squares and mean is not None and _mean_of(mean) is x


def _squared(value: Value) -> Value | None:
    """v of Pow(v, 2) or Mul(v, v), up to dims of 1."""
    node = _unviewed(value).producer
    if node is None or node.op not in ("Pow", "Mul"):
        return None
    base = operand(node, 0)
    square = is_scalar(operand(node, 1), 2) if node.op == "Pow" else operand(node, 1) is base
    return base if square else None


def _mean_of(value: Value) -> Value | None:
    """The value whose mean over the last axis, with or without keepdims, is ``value``."""
    node = _unviewed(value).producer
    if node is None:
        return None
    if node.op == "ReduceMean":
        return _reduced(node)
    if node.op not in ("Mul", "Div"):
        return None
    in_order = [(operand(node, 0), operand(node, 1))]
    for total, factor in in_order if node.op == "Div" else operand_orders(node):
        reduction = producer_if(total, "ReduceSum")
        x = _reduced(reduction) if reduction is not None else None
        size = (dims(x) or (None,))[-1] if x is not None else None
        if isinstance(size, int) and is_scalar(factor, size if node.op == "Div" else 1 / size):
            return x
    return None


def _reduced(node: Node) -> Value | None:
    """The operand of a reduction over the last axis alone; None for other axes."""
    x, axes = operand(node, 0), node.input(1)
    if axes is None or not axes.is_constant or axes.numpy().size != 1:
        return None
    axis, size = int(axes.numpy().reshape(-1)[0]), rank(x)
    return x if axis == -1 or (size is not None and axis == size - 1) else None


def _unviewed(value: Value) -> Value:
    """``value`` before views that only insert or drop dims of 1."""
    while value.producer is not None and value.producer.op in ("Reshape", "Unsqueeze", "Squeeze"):
        before = operand(value.producer, 0)
        old, new = dims(before), dims(value)
        if old is None or new is None or None in (*old, *new):
            break
        if [d for d in old if d != 1] != [d for d in new if d != 1]:
            break
        value = before
    return value
