"""Einsum of two operands becomes MatMul, which everything else knows.

Labels are batch (in both operands and the result), rows (in the first alone), columns (in the second
alone), or summed (in both operands, not in the result):

    Einsum(a, b)  ->  MatMul(a as [batch, rows, summed], b as [batch, summed, columns]) in the result's order

    bhqd,bhkd->bhqk      MatMul(a, Transpose(b))
    bqhd,bkhd->bhqk      MatMul(Transpose(a), Transpose(b))
    btd,@dnh->btnh       Reshape(MatMul(a, @[d, n*h]))     a constant has no batch, and any labels else:
    btnh,@nhd->btd       MatMul(Reshape(a), @[n*h, d])     those of a kind are merged
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
            raise Skip("ONNX Runtime multiplies no matrices of bfloat16 on a processor")
        found = _kinds(node, equation)
        if operand(node, 1).is_constant:
            return _by_constant(graph, node, equation, found)
        return _of_two(graph, node, equation, found)


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
        raise Skip("its operands stretch, or sizes of theirs are not known to be equal")
    alone = [label for label in (*first, *second) if label not in (*shared, *equation.result)]
    if alone:
        raise Skip("it sums an axis of one operand alone")
    return _Kinds(
        batch=tuple(label for label in shared if label in equation.result),
        rows=tuple(label for label in first if label not in second),
        columns=tuple(label for label in second if label not in first),
        summed=tuple(label for label in shared if label not in equation.result),
    )


def _sizes(node: Node, equation: Equation) -> list[dict[str, Dim]]:
    shapes = [dims(operand(node, i)) or () for i in range(2)]
    return [dict(zip(o, s, strict=True)) for o, s in zip(equation.operands, shapes, strict=True)]


def _of_two(graph: Graph, node: Node, equation: Equation, found: _Kinds) -> Rewrite:
    if any(len(labels) != 1 for labels in (found.rows, found.columns, found.summed)):
        raise Skip("its rows, its columns or what it sums are not one axis each")
    a, b = operand(node, 0), operand(node, 1)
    a = _ordered(graph, a, equation.operands[0], (*found.batch, *found.rows, *found.summed))
    b = _ordered(graph, b, equation.operands[1], (*found.batch, *found.summed, *found.columns))
    y = graph.emit("MatMul", [a, b])
    return _ordered(graph, y, (*found.batch, *found.rows, *found.columns), equation.result)


def _by_constant(graph: Graph, node: Node, equation: Equation, found: _Kinds) -> Rewrite:
    if found.batch or not (found.rows and found.columns and found.summed):
        raise Skip("its constant is no matrix")
    a, weight = operand(node, 0), operand(node, 1)
    held, labels = weight.encoding, equation.operands[1]
    assert held is not None
    sizes = dict(zip(labels, weight.tensor.shape, strict=True))
    if labels != (*found.summed, *found.columns):
        held = held.permute(_order(labels, (*found.summed, *found.columns)))
    merged, columns = (
        int(np.prod([sizes[label] for label in kind])) for kind in (found.summed, found.columns)
    )
    matrix = held if len(labels) == 2 else held.reshape((merged, columns))
    if matrix is None:
        raise Skip("the scales of its constant do not go by rows or columns")
    if matrix is not weight.encoding:
        weight = graph.constant(matrix, weight.name)
    a = _ordered(graph, a, equation.operands[0], (*found.rows, *found.summed))
    if len(found.summed) > 1:
        a = _reshaped(graph, a, len(found.rows), [merged])
    y = graph.emit("MatMul", [a, weight])
    if len(found.columns) > 1:
        y = _reshaped(graph, y, len(found.rows), [sizes[label] for label in found.columns])
    return _ordered(graph, y, (*found.rows, *found.columns), equation.result)


def _order(have: Labels, wanted: Labels) -> tuple[int, ...]:
    return tuple(have.index(label) for label in wanted)


def _ordered(graph: Graph, x: Value, have: Labels, wanted: Labels) -> Value:
    if have == wanted:
        return x
    return graph.emit("Transpose", [x], {"perm": _order(have, wanted)})


def _reshaped(graph: Graph, x: Value, kept: int, rest: Sequence[int]) -> Value:
    """Its first ``kept`` axes, then axes of the sizes ``rest``."""
    target = np.array([*[0] * kept, *rest], np.int64)
    return graph.emit("Reshape", [x, graph.constant(target, "shape")])
