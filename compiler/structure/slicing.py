"""Cutting positions out of axes: one slicer for all ops, without naming any.

Constants lose the positions, the types of results shrink, and stated sizes (attributes, shape operands)
are adjusted by the op table.  ``zero_graph`` is the alternative that keeps all shapes: zero wherever a node
sums over the unit.  Where both apply they are equivalent, which is how cuts are tested.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from tersor.ir import Dense, Graph, Value
from tersor.ops import TABLE
from tersor.structure.groups import AxisGroup
from tersor.structure.links import Axis, Positions, cut_of_node, size_of
from tersor.structure.ties import axis_order, retie, tied_sets


def union(*parts: Positions) -> dict[Axis, np.ndarray]:
    """The union of several cuts."""
    whole: dict[Axis, np.ndarray] = {}
    for part in parts:
        for axis, at in part.items():
            whole[axis] = np.union1d(whole[axis], at) if axis in whole else at
    return whole


def slice_graph(graph: Graph, cut: Positions) -> None:
    """Removes positions from ``graph``, in place; they must be those of whole units of its groups.

    Raises:
        Unsupported: a size is stated by an operand that is not constant.
    """
    by_value: set[Value | None] = {value for value, _ in cut}
    nodes = [n for n in graph.walk() if any(v in by_value for v in (*n.outputs, *n.inputs))]
    tied = [
        (values[0], other, axis_order(values[0], other))
        for values in tied_sets(graph)
        for other in values[1:]
        if any(v in by_value for v in values)
    ]
    follows = [TABLE.follow(node, cut_of_node(node, cut)) for node in nodes]
    for (value, axis), at in cut.items():
        size = size_of((value, axis))
        assert size is not None, "only axes of static size are in groups"
        value.graph.slice_axis(value, axis, np.setdiff1d(np.arange(size), at))
    for first, other, perm in tied:
        retie(first, other, perm)
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
    ``inexact``, or which compute the operands of those sums: equivalent to removing the units."""
    cut = group.positions(units)
    for value, axis in dict.fromkeys(group.zeroed()):
        array = value.numpy().copy()
        array[(slice(None),) * axis + (cut.get((value, axis), ()),)] = 0
        value.graph.set_encoding(value, Dense(array))
