"""Einsum of two operands to MatMul, which all other passes handle.

Labels are batch (in both operands and the result), rows (only in the first), columns (only in the second), or
summed (in both operands, not in the result):

    Einsum(a, b)  ->  MatMul(a as [batch, rows, summed], b as [batch, summed, columns]) in the result's order

    bhqd,bhkd->bhqk      MatMul(a, Transpose(b))
    bqhd,bkhd->bhqk      MatMul(Transpose(a), Transpose(b))
    btd,@dnh->btnh       Reshape(MatMul(a, @[d, n*h]))     a constant without batch labels may have
    btnh,@nhd->btd       MatMul(Reshape(a), @[n*h, d])     several of a kind: they are merged
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import dims, dtype, operand
from tersor.ir import Dim, DType, Graph, Node, Value
from tersor.ops.families.einsum import Equation, Labels, equation_of
from tersor.pipeline import ROUNDING, Pass, Rewrite, Skip


@dataclass(frozen=True)
class EinsumToMatMul(Pass):
    """No options."""

    keeps = ROUNDING

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        if node.op != "Einsum" or len(node.inputs) != 2:
            return None
        equation = equation_of(node)
        if equation is None or operand(node, 0).is_constant:
            return None
        if dtype(operand(node, 0)) is DType.BF16:
            raise Skip("ONNX Runtime has no bfloat16 MatMul on CPUs")
        kinds = _kinds(node, equation)
        if operand(node, 1).is_constant:
            return _by_constant(graph, node, equation, kinds)
        return _by_value(graph, node, equation, kinds)


@dataclass(frozen=True)
class _Kinds:
    """The labels of each kind: batch and rows in the first operand's order, columns in the second's."""

    batch: Labels
    rows: Labels
    columns: Labels
    summed: Labels


def _kinds(node: Node, equation: Equation) -> _Kinds:
    first, second = equation.operands
    if any(len(set(labels)) != len(labels) for labels in (first, second, equation.result)):
        raise Skip("it takes a diagonal")
    shared = [label for label in first if label in second]
    size = _sizes(node, equation)
    if any(size[0][label] != size[1][label] for label in shared):
        raise Skip("its operands broadcast, or sizes are not known to be equal")
    alone = [label for label in (*first, *second) if label not in (*shared, *equation.result)]
    if alone:
        raise Skip("it sums an axis of only one operand")
    return _Kinds(
        batch=tuple(label for label in shared if label in equation.result),
        rows=tuple(label for label in first if label not in second),
        columns=tuple(label for label in second if label not in first),
        summed=tuple(label for label in shared if label not in equation.result),
    )


def _sizes(node: Node, equation: Equation) -> list[dict[str, Dim]]:
    shapes = [dims(operand(node, i)) or () for i in range(2)]
    return [dict(zip(o, s, strict=True)) for o, s in zip(equation.operands, shapes, strict=True)]


def _by_value(graph: Graph, node: Node, equation: Equation, kinds: _Kinds) -> Rewrite:
    if any(len(labels) != 1 for labels in (kinds.rows, kinds.columns, kinds.summed)):
        raise Skip("its rows, columns or summed labels are not exactly one axis each")
    a, b = operand(node, 0), operand(node, 1)
    a = _ordered(graph, a, equation.operands[0], (*kinds.batch, *kinds.rows, *kinds.summed))
    b = _ordered(graph, b, equation.operands[1], (*kinds.batch, *kinds.summed, *kinds.columns))
    y = graph.emit("MatMul", [a, b])
    return _ordered(graph, y, (*kinds.batch, *kinds.rows, *kinds.columns), equation.result)


def _by_constant(graph: Graph, node: Node, equation: Equation, kinds: _Kinds) -> Rewrite:
    if kinds.batch or not (kinds.rows and kinds.columns and kinds.summed):
        raise Skip("its constant has batch labels, or no rows, columns or summed labels")
    a, weight = operand(node, 0), operand(node, 1)
    encoding, labels = weight.encoding, equation.operands[1]
    assert encoding is not None
    sizes = dict(zip(labels, weight.tensor.shape, strict=True))
    if labels != (*kinds.summed, *kinds.columns):
        encoding = encoding.permute(_order(labels, (*kinds.summed, *kinds.columns)))
    merged, columns = (
        int(np.prod([sizes[label] for label in kind])) for kind in (kinds.summed, kinds.columns)
    )
    matrix = encoding if len(labels) == 2 else encoding.reshape((merged, columns))
    if matrix is None:
        raise Skip("the scales of its constant are not per row or column")
    if matrix is not weight.encoding:
        weight = graph.constant(matrix, weight.name)
    a = _ordered(graph, a, equation.operands[0], (*kinds.rows, *kinds.summed))
    if len(kinds.summed) > 1:
        a = _reshaped(graph, a, len(kinds.rows), [merged])
    y = graph.emit("MatMul", [a, weight])
    if len(kinds.columns) > 1:
        y = _reshaped(graph, y, len(kinds.rows), [sizes[label] for label in kinds.columns])
    return _ordered(graph, y, (*kinds.rows, *kinds.columns), equation.result)


def _order(old: Labels, new: Labels) -> tuple[int, ...]:
    return tuple(old.index(label) for label in new)


def _ordered(graph: Graph, x: Value, old: Labels, new: Labels) -> Value:
    if old == new:
        return x
    return graph.emit("Transpose", [x], {"perm": _order(old, new)})


def _reshaped(graph: Graph, x: Value, kept: int, rest: Sequence[int]) -> Value:
    """``x`` reshaped to its first ``kept`` dims followed by ``rest``."""
    target = np.array([*[0] * kept, *rest], np.int64)
    return graph.emit("Reshape", [x, graph.constant(target, "shape")])
