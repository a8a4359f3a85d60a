"""Links: the ties of all nodes of a graph in terms of values, so that they can be followed from node to
node.

A tie's unit has positions on each of its axes.  An *owner* array is the inverse map:

    the heads of an axis of 2 heads of 3 lanes         owner = 0 0 0 1 1 1
    the lanes of that axis                             owner = 0 1 2 0 1 2
    the second operand of a Concat, after one of 2     owner = - - 0 1 2       (-: -1, not in the tie)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from tersor.ir import Graph, Node, TensorType, Value
from tersor.ops import TABLE, Tie
from tersor.structure.ties import axis_order, tied_sets

Axis = tuple[Value, int]
Place = tuple[object, ...]
"""Where a value occurs: as an operand or an output of a node, or of the graph."""

Positions = Mapping[Axis, np.ndarray]
"""Positions to remove, i64, ascending, by axis."""


@dataclass(frozen=True, eq=False)
class End:
    """One axis of a link.

    Attributes:
        axis: the value and its axis.
        place: the occurrence of the value that the link belongs to.
        owner: i64[size of the axis], the unit of each position; -1: none.
        summed: whether the node sums over the units here (see :class:`tersor.ops.Member`).
    """

    axis: Axis
    place: Place
    owner: np.ndarray
    summed: bool


@dataclass(frozen=True, eq=False)
class Link:
    """A tie of one node, or of a node with the inputs and outputs of its subgraphs."""

    node: Node
    size: int
    ends: tuple[End, ...]
    kind: str


def size_of(axis: Axis) -> int | None:
    """The size of an axis; None if it is not a number."""
    type = axis[0].type
    size = type.dims[axis[1]] if isinstance(type, TensorType) and type.dims is not None else None
    return size if isinstance(size, int) else None


def links(graph: Graph) -> list[Link]:
    """All links of ``graph`` and its subgraphs between axes of static size, in order; then those of tied
    constants."""
    result: list[Link | None] = []
    for node in graph.walk():
        result += [_of_tie(node, tie) for tie in TABLE.ties(node) or ()]
        result += [_of_bound(node, same, i) for i, same in enumerate(TABLE.bound(node))]
    for values in tied_sets(graph):
        for other in values[1:]:
            result += _of_tied(values[0], other)
    return [link for link in result if link is not None]


def places(value: Value) -> Iterator[tuple[Place, str]]:
    """Every occurrence of ``value``, with the reason why units without a tie there cannot be removed."""
    if value.producer is not None:
        yield _place(value.producer, "out", value.index), _needed(value.producer)
    elif value.is_input and (holder := value.graph.parent) is not None:
        yield ("bound", holder), _needed(holder)
    elif value.is_input:
        yield ("input", value), f"the model's input {value.name!r} has them"
    for use in value.uses:
        if isinstance(use.user, Node):
            yield _place(use.user, "in", use.operand), _needed(use.user)
        elif (holder := use.user.parent) is not None:
            yield ("bound", holder), _needed(holder)
        else:
            name = use.user.output_names[use.operand]
            yield ("output", use.operand), f"the model's output {name!r} has them"


def _needed(node: Node) -> str:
    if TABLE.get(node.op) is None:
        return f"nothing is known of {node.label}"
    return f"{node.label} needs all of them"


def links_by_axis(links: Sequence[Link]) -> dict[Axis, dict[Place, list[tuple[Link, End]]]]:
    """The links of each axis, by place."""
    table: dict[Axis, dict[Place, list[tuple[Link, End]]]] = {}
    for link in links:
        for end in link.ends:
            at = table.setdefault(end.axis, defaultdict(list))
            at[end.place].append((link, end))
    return table


def cut_of_node(node: Node, cut: Positions) -> dict[tuple[str, int, int], list[int]]:
    """The part of a cut that concerns ``node``, as the op table takes it."""
    sides = [("in", i, v) for i, v in enumerate(node.inputs) if v is not None]
    sides += [("out", i, v) for i, v in enumerate(node.outputs)]
    return {
        (side, index, axis): cut[value, axis].tolist()
        for side, index, value in sides
        if isinstance(value.type, TensorType)
        for axis in range(len(value.type.dims or ()))
        if (value, axis) in cut
    }


def _place(node: Node, side: str, index: int) -> Place:
    # A node with subgraphs has one place: its links are between values inside and outside.
    return ("bound", node) if node.subgraphs else (side, node, index)


def _of_tie(node: Node, tie: Tie) -> Link | None:
    if not isinstance(tie.size, int) or tie.size < 1:
        return None
    ends = []
    for member in tie.members:
        value = node.outputs[member.index] if member.side == "out" else node.input(member.index)
        if value is None or (length := size_of((value, member.axis))) is None:
            return None
        place = _place(node, member.side, member.index)
        owner = _owner(member.outer, member.inner, member.offset, tie.size, length)
        summed = member.summed or (tie.kind == "sum" and member.side == "in")
        ends.append(End((value, member.axis), place, owner, summed))
    return Link(node, tie.size, tuple(ends), tie.kind)


def _of_bound(node: Node, same: Sequence[Axis], number: int) -> Link | None:
    """The link between axes of values inside and outside a subgraph that are the same."""
    sizes = {size_of(axis) for axis in same}
    size = sizes.pop() if len(sizes) == 1 else None
    if size is None:
        return None
    owner = _owner(1, 1, 0, size, size)
    ends = tuple(End(axis, ("bound", node, number), owner, False) for axis in same)
    return Link(node, size, ends, "same")


def _of_tied(first: Value, other: Value) -> Iterator[Link]:
    """Links between the axes of tied constants, which can only be cut together."""
    reader = next(use.user for use in other.uses if isinstance(use.user, Node))
    for axis, own in enumerate(axis_order(first, other)):
        size = size_of((other, axis))
        if size is None:
            continue
        owner = _owner(1, 1, 0, size, size)
        both = ((first, own), (other, axis))
        ends = tuple(End(each, ("tied", first, other), owner, False) for each in both)
        yield Link(reader, size, ends, "same")


@cache
def _owner(outer: int, inner: int, offset: int, size: int, length: int) -> np.ndarray:
    at = np.arange(length) - offset
    owner = np.where((at >= 0) & (at < outer * size * inner), at // inner % size, -1)
    owner.flags.writeable = False
    return owner
