"""Reductions with keepdims followed by a view that drops the kept dims.

Reshape(ReduceMean(x[b, 64, 2, 2], [2, 3]) {keepdims = 1} -> [b, 64])
  = ReduceMean(x, [2, 3]) {keepdims = 0}
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.analysis.match import dims, has_one_use, operand, rank
from tersor.ir import Graph, Node
from tersor.ops import TABLE
from tersor.pipeline import EXACT, Pass, Rewrite


@dataclass(frozen=True)
class DropKeptDims(Pass):
    """No options."""

    keeps = EXACT

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        if not TABLE.has(node.op, "view"):
            return None
        x = operand(node, 0)
        reduction = x.producer
        if reduction is None or not TABLE.has(reduction.op, "reduction"):
            return None
        if not reduction.attrs["keepdims"]:
            return None
        axes, size, shape = reduction.input(1), rank(x), dims(x)
        if axes is None or not axes.is_constant or axes.numpy().size == 0 or size is None:
            return None
        reduced = {int(a) % size for a in axes.numpy()}
        if shape is None or not has_one_use(x):
            return None
        left = tuple(d for i, d in enumerate(shape) if i not in reduced)
        if None in left or dims(node.output) != left:
            return None
        attrs = {**reduction.attrs, "keepdims": 0}
        return graph.emit(reduction.op, reduction.inputs, attrs, scope=reduction.scope)
