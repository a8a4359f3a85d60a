"""Cutting positions out of axes: one slicer for all ops, which knows none of them.

Constants lose the positions, results' types shrink, and what states sizes (attributes, shape operands)
follows as the op table says.  ``zero_graph`` is the other way to take a unit out, of the same shapes:
zero wherever a node sums over it.  Where both can be done they agree, which is how cuts are tested.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from tersor.ir import Dense, Graph, Node, Value
from tersor.ops import TABLE
from tersor.structure.groups import AxisGroup
from tersor.structure.links import Axis, Positions, cut_of_node, size_of
from tersor.structure.ties import tie_again, tied_sets, turn


def joined(*parts: Positions) -> dict[Axis, np.ndarray]:
    """The union of several cuts."""
    found: dict[Axis, np.ndarray] = {}
    for part in parts:
        for axis, at in part.items():
            found[axis] = np.union1d(found[axis], at) if axis in found else at
    return found


def slice_graph(graph: Graph, cut: Positions) -> None:
    """Removes positions from ``graph``, in place. They must be those of whole units of its groups.

    Raises:
        Unsupported: a size is stated by an operand that is no constant.
    """
    by_value: dict[Value, dict[int, np.ndarray]] = {}
    for (value, axis), at in cut.items():
        by_value.setdefault(value, {})[axis] = at
    nodes = [n for n in graph.walk() if _touched(n, by_value)]
    tied = [
        (values[0], other, turn(values[0], other))
        for values in tied_sets(graph)
        for other in values[1:]
        if any(v in by_value for v in values)
    ]
    follows = [TABLE.follow(node, cut_of_node(node, cut)) for node in nodes]
    for value, axes in by_value.items():
        for axis, at in axes.items():
            size = size_of((value, axis))
            assert size is not None, "only axes of known sizes are in groups"
            kept = np.setdiff1d(np.arange(size), at)
            value.graph.slice_axis(value, axis, kept)
    for first, other, perm in tied:
        tie_again(first, other, perm)
    for node, follow in zip(nodes, follows, strict=True):
        owner = node.graph
        assert owner is not None
        owner.set_attributes(node, follow.attrs)
        for index, array in follow.operands.items():
            owner.set_input(node, index, owner.constant(array, "sizes"))
    for node in nodes:
        if node.graph is not None and not node.subgraphs:
            node.graph.infer(node)


def zero_graph(graph: Graph, group: AxisGroup, units: Collection[int]) -> None:
    """Zeroes, in place, the weights with which nodes sum over ``units`` of a group that is not
    ``inexact``, or that make what they sum over: the model then computes what it does without them."""
    cut = group.positions(units)
    for value, axis in dict.fromkeys(group.zeroed()):
        array = value.numpy().copy()
        array[(slice(None),) * axis + (cut.get((value, axis), ()),)] = 0
        value.graph.set_encoding(value, Dense(array))


def _touched(node: Node, by_value: Mapping[Value, object]) -> bool:
    return any(v in by_value for v in node.outputs) or any(
        v in by_value for v in node.inputs if v is not None
    )
