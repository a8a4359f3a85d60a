"""One form for axes, steps and sizes.

1. Axes that are operands count from the front:   Unsqueeze(x[b, s], -1)  =  Unsqueeze(x, 2)
2. Steps of 1 are omitted:                        Slice(x, 0, n, 0, 1)    =  Slice(x, 0, n, 0)
3. Sizes are read from the first graph input that has them, however they were computed:
       Slice(Shape(h[batch, seq, 384]), 0, 2)  =  Shape(ids[batch, seq])
       Gather(Shape(h[batch, seq, 384]), 1)    =  Squeeze(Shape(ids[batch, seq]) {start = 1, end = 2})
4. Indexing an axis of size 1:                    Gather(h[1, b, 8], -1)  =  Squeeze(h, 0)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import dims, operand, producer_if, rank, scalar
from tersor.ir import Dim, DType, Graph, Node, Sym, Value
from tersor.pipeline import EXACT, Pass, Rewrite

# Op -> index of the operand with axes of operand 0; of Unsqueeze, axes of the result.
_AXES = {
    "Unsqueeze": 1, "Squeeze": 1, "Slice": 3, "Pad": 3, "ReduceSum": 1, "ReduceMean": 1,
    "ReduceMax": 1, "ReduceMin": 1, "ReduceProd": 1, "ReduceL1": 1, "ReduceL2": 1,
    "ReduceLogSum": 1, "ReduceLogSumExp": 1, "ReduceSumSquare": 1,
}  # fmt: skip
_STEPS = 4


@dataclass(frozen=True)
class NormalizeAxes(Pass):
    """No options; the rules are numbered in the module."""

    keeps = EXACT

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        sizes = _sizes(node)
        if sizes is not None:
            return _of_input(graph, node, sizes)
        if node.op == "Gather":
            return _only_one(graph, node)
        changed = node.op in _AXES and _axes(graph, node)
        if node.op == "Slice":
            changed = _steps(graph, node) or changed
        return bool(changed)


def _axes(graph: Graph, node: Node) -> bool:
    index = _AXES[node.op]
    axes = node.input(index)
    size = rank(node.output if node.op == "Unsqueeze" else operand(node, 0))
    if axes is None or not axes.is_constant or size is None:
        return False
    data = axes.numpy()
    if not (data < 0).any():
        return False
    counted = np.where(data < 0, data + size, data).astype(data.dtype)
    graph.set_input(node, index, graph.constant(counted, "axes"))
    return True


def _steps(graph: Graph, node: Node) -> bool:
    steps = node.input(_STEPS)
    if steps is None or not steps.is_constant or not (steps.numpy() == 1).all():
        return False
    graph.set_input(node, _STEPS, None)
    return True


def _only_one(graph: Graph, node: Node) -> Rewrite:
    x, index, axis = operand(node, 0), operand(node, 1), node.attrs["axis"]
    have = dims(x)
    if have is None or not isinstance(axis, int) or x.is_constant:
        return None
    if have[axis] != 1 or rank(index) != 0 or scalar(index) not in (0, -1):
        return None
    return graph.emit("Squeeze", [x, graph.constant(np.array([axis % len(have)]), "axes")])


def _sizes(node: Node) -> tuple[Dim, ...] | None:
    """The elements of an i64 vector or scalar of sizes, at least one of them a symbol."""
    if len(node.outputs) != 1 or node.output.contents is None or node.output.contents.ndim > 1:
        return None
    sizes = tuple(node.output.contents.reshape(-1))
    symbolic = any(isinstance(s, Sym) for s in sizes) and None not in sizes
    return sizes if symbolic and node.output.tensor.dtype is DType.I64 else None


def _of_input(graph: Graph, node: Node, sizes: tuple[Dim, ...]) -> Value | None:
    place = _place(graph, sizes)
    if place is None:
        return None
    value, start = place
    attrs = {"start": start, "end": start + len(sizes)}
    is_scalar = node.output.tensor.rank == 0
    shape = producer_if(operand(node, 0), "Shape") if is_scalar and node.op == "Squeeze" else node
    done = shape is not None and shape.op == "Shape" and operand(shape, 0) is value
    if done and shape is not None and {k: shape.attrs.get(k) for k in attrs} == attrs:
        return None
    # A size of a graph input belongs to no module.
    vector = graph.emit("Shape", [value], attrs, scope="")
    return graph.emit("Squeeze", [vector], scope="") if is_scalar else vector


def _place(graph: Graph, sizes: tuple[Dim, ...]) -> tuple[Value, int] | None:
    """The first (input of the outermost graph, axis) from which on the dims are ``sizes``."""
    while graph.outer is not None:
        graph = graph.outer
    for value in graph.inputs:
        have = dims(value) or ()
        for start in range(len(have) - len(sizes) + 1):
            if have[start : start + len(sizes)] == sizes:
                return value, start
    return None
