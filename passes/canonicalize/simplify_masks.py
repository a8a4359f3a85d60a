"""Simplifies mask arithmetic as exporters write it.

1. ``range >= 0`` and ``not (range < 0)`` are always true, and ``true & m`` is m (broadcast to the other's
   shape).
2. Indexing with an element's own coordinates is a view:
       GatherND(m[batch, seq], [range(batch) broadcast, range(seq) broadcast])  =  m as [batch, 1, 1, seq]
       Gather(m as [batch*seq, 1], range(batch) * seq + range(seq))             =  m as [batch, 1, 1, seq, 1]
3. Indexing a constant of equal elements gives that number, whatever the indices; a ConstantOfShape is its
   number, whatever the shape, if its users broadcast (rule 4).
4. A value is not expanded for users that broadcast anyway, if all types that are visible downstream stay the
   same.
5. ``(1 - m) * c``, of a boolean m cast to numbers, is ``where(m, 0, c)``, and
   ``where(not m, a, b) = where(m, b, a)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import (
    dims,
    dtype,
    iota_axis,
    operand,
    operand_orders,
    producer_if,
    rank,
    same_type,
    scalar,
    uniform,
)
from tersor.ir import Dim, DType, Graph, Node, TensorType, Value, ValueType
from tersor.ir.dims import product
from tersor.ops import contents_of
from tersor.pipeline import EXACT, Pass, Rewrite

# Ops that broadcast their operands, or whose result has the shape of the operand.
_BROADCASTS = {
    "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "And", "Or", "Xor", "Not", "Where", "Equal",
    "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Cast", "Neg", "Abs", "Identity", "Expand",
}  # fmt: skip


@dataclass(frozen=True)
class SimplifyMasks(Pass):
    """No options; the rules are numbered in the module."""

    keeps = EXACT

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        if node.op == "GatherND":
            return _own_coordinates(graph, node)
        if node.op == "And":
            return _true_and(graph, node)
        if node.op == "Expand":
            return _narrowed(graph, node, operand(node, 0))
        if node.op == "Gather" and (view := _flat_coordinates(graph, node)) is not None:
            return view
        if node.op in ("Gather", "GatherElements", "Slice"):
            return _uniform_lookup(graph, node)
        if node.op == "Mul":
            return _zero_or(graph, node)
        if node.op == "Where":
            return _swapped(graph, node)
        if node.op == "ConstantOfShape":
            return _one_element(graph, node, uniform(node.output))
        return None


def _own_coordinates(graph: Graph, node: Node) -> Rewrite:
    x, indices = operand(node, 0), producer_if(operand(node, 1), "Concat")
    size, out = rank(x), dims(node.output)
    if indices is None or node.attrs["batch_dims"] or size != len(indices.inputs) or out is None:
        return None
    if indices.attrs["axis"] not in (-1, len(out)):
        return None
    axes = []
    for column in indices.inputs:
        assert column is not None
        axis, shape = iota_axis(column), dims(column)
        if axis is None or shape is None or len(shape) != len(out) + 1 or shape[-1] != 1:
            return None
        axes.append(axis)
    if axes != sorted(set(axes)) or None in out:
        return None
    kept = tuple(out[a] for a in axes)
    rest = [a for a in range(len(out)) if a not in axes]
    if kept != dims(x) or any(out[a] != 1 for a in rest):
        return None
    return graph.emit("Unsqueeze", [x, graph.constant(np.array(rest, np.int64), "axes")])


def _flat_coordinates(graph: Graph, node: Node) -> Value | None:
    """Rule 2 on a flattened matrix."""
    flat, index = operand(node, 0), producer_if(operand(node, 1), "Add")
    view = flat.producer
    if index is None or view is None or view.op not in ("Flatten", "Reshape") or node.attrs["axis"]:
        return None
    matrix, out = operand(view, 0), node.output.tensor.dims
    have, flat_dims = matrix.tensor.dims, flat.tensor.dims
    if have is None or len(have) != 2 or None in have or out is None or flat_dims is None:
        return None
    if flat_dims[0] != product(have) or any(d != 1 for d in flat_dims[1:]):
        return None
    for column, scaled in operand_orders(index):
        row = _times(scaled, have[1])
        axes = (None if row is None else iota_axis(row), iota_axis(column))
        if axes[0] is None or axes[1] is None or axes[0] >= axes[1]:
            continue
        rest = [a for a in range(len(out)) if a not in axes]
        if tuple(out[a] for a in axes if a is not None) == have and all(out[a] == 1 for a in rest):
            axes_value = graph.constant(np.array(rest, np.int64), "axes")
            return graph.emit("Unsqueeze", [matrix, axes_value])
    return None


def _times(value: Value, size: Dim) -> Value | None:
    """x, if ``value`` is x * size."""
    node = producer_if(value, "Mul")
    if node is None:
        return None
    for x, factor in operand_orders(node):
        contents = contents_of(factor)
        if contents is not None and list(contents.reshape(-1)) == [size]:
            return x
    return None


def _always_true(value: Value) -> bool:
    if value.is_constant:
        return value.tensor.dtype is DType.BOOL and uniform(value) == 1.0
    inverse = producer_if(value, "Not")
    least = producer_if(operand(inverse, 0), "Less") if inverse is not None else None
    node = least or producer_if(value, "GreaterOrEqual")
    if node is not None:
        # An iota is never negative.
        return uniform(operand(node, 1)) == 0.0 and iota_axis(operand(node, 0)) is not None
    both = producer_if(value, "And")
    return both is not None and all(_always_true(operand(both, i)) for i in (0, 1))


def _true_and(graph: Graph, node: Node) -> Rewrite:
    a, b = operand(node, 0), operand(node, 1)
    for true, other in ((a, b), (b, a)):
        if _always_true(true):
            return other if same_type(other, node.output) else _narrowed(graph, node, other)
    return None


def _zero_or(graph: Graph, node: Node) -> Rewrite:
    """Rule 5. (Zero times a negative number is -0.)"""
    for rest, number in operand_orders(node):
        low = scalar(number)
        inverse = producer_if(rest, "Sub")
        if (
            inverse is None
            or low is None
            or not np.isfinite(low)
            or not _is_number_first(inverse, 1.0)
        ):
            continue
        mask = producer_if(operand(inverse, 1), "Cast")
        if mask is None or dtype(operand(mask, 0)) is not DType.BOOL or rank(number):
            continue
        kind = node.output.tensor.dtype
        if not kind.is_float:
            continue
        zero = graph.constant(np.asarray(0.0 * low, kind.numpy), "zero")
        return graph.emit("Where", [operand(mask, 0), zero, number])
    return None


def _is_number_first(node: Node, number: float) -> bool:
    """Whether a node's first operand is the scalar ``number``."""
    first = operand(node, 0)
    return scalar(first) == number and rank(first) == 0


def _swapped(graph: Graph, node: Node) -> Rewrite:
    inverse = producer_if(operand(node, 0), "Not")
    if inverse is None:
        return None
    return graph.emit("Where", [operand(inverse, 0), operand(node, 2), operand(node, 1)])


def _uniform_lookup(graph: Graph, node: Node) -> Rewrite:
    """Rules 3 and 4: one element instead of all, if users broadcast."""
    x = operand(node, 0)
    return _one_element(graph, node, uniform(x)) if x.is_constant else None


def _one_element(graph: Graph, node: Node, number: float | None) -> Rewrite:
    size = rank(node.output)
    if number is None or size is None:
        return None
    element = np.full((1,) * size, number, node.output.tensor.dtype.numpy)
    return _narrowed(graph, node, graph.constant(element, node.output.name))


def _narrowed(graph: Graph, node: Node, small: Value) -> Value | None:
    """``small`` instead of the node's result, if that is not visible: types are reinferred downstream until
    they are the same as before. If a change reaches a value that must keep its type, all is undone."""
    large = node.output
    if not isinstance(small.type, TensorType) or large.is_output or not same_type(large, large):
        _discard(small)
        return None
    changed: list[tuple[Node, ValueType, np.ndarray | None]] = []
    readers = list(large.uses)
    graph.replace(large, small)
    if _settle(small, changed):
        return small
    for reader, type, contents in reversed(changed):
        reader.output.type, reader.output.contents = type, contents
    for use in readers:
        graph.set_input(use.user, use.operand, large)
    _discard(small)
    return None


def _discard(small: Value) -> None:
    if small.is_constant and not small.uses and small.name in small.graph.constants:
        small.graph.erase_constant(small)


def _settle(start: Value, changed: list[tuple[Node, ValueType, np.ndarray | None]]) -> bool:
    """Reinfers users of ``start``, and users of what changes; False if a change reaches something that does
    not broadcast. What was overwritten is recorded in ``changed``."""
    work = [start]
    while work:
        value = work.pop()
        for use in list(value.uses):
            node = use.user
            if not isinstance(node, Node):
                return False
            if not _tolerates(node, use.operand):
                return False
            before = (node.output.type, node.output.contents)
            assert node.graph is not None
            node.graph.infer(node)
            if node.output.type != before[0]:
                changed.append((node, *before))
                work.append(node.output)
            elif not same_type(node.output, node.output):
                return False  # A type that is not fully known may have changed as well.
    return True


def _tolerates(node: Node, operand_index: int) -> bool:
    if len(node.outputs) != 1:
        return False
    if node.op == "Attention":
        # All axes of a mask broadcast but the last: missing keys are masked.
        dims, keys = operand(node, 3).tensor.dims, operand(node, 1).tensor.dims
        return operand_index == 3 and bool(dims) and bool(keys) and dims[-1] == keys[-2]  # type: ignore[index]
    # Fewer indices give fewer rows, which users must broadcast in turn.
    return node.op in _BROADCASTS or (node.op == "Gather" and operand_index == 1)
