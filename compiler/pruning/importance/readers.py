"""Where units are read: the sums over them, each of an operand and what it is multiplied with.

x W           linear layers, convolutions: x is observed, W's rows of a unit are its weights
h R           an LSTM's hidden units, which it reads again: h is what it returned
q k^T         lanes of queries and keys: no weights there, both are observed
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tersor.ir import Graph, Node, TensorType, Value
from tersor.structure import AxisGroup
from tersor.structure.links import Axis, End, Link


@dataclass(frozen=True, eq=False)
class Reader:
    """A node that sums over units.

    Attributes:
        node: it.
        size: how many terms the sum has; convolutions of several groups: for each of them.
        operand: the end that a mask of units would go on: an activation, a constant where only that
            is an operand (R).
        observed: activations that are multiplied with each other, or with the weights.
        weights: constants that are.
    """

    node: Node
    size: int
    operand: End
    observed: tuple[End, ...]
    weights: tuple[End, ...]


def readers(group: AxisGroup) -> list[Reader]:
    """All sums over a group's units, in order."""
    return [found for link in group.links if (found := _reader(link)) is not None]


def observed_axes(graph: Graph, group: AxisGroup) -> list[Axis]:
    """(activation, axis) that the group's readers multiply, of the outermost level; each once."""
    ends = (end for reader in readers(group) for end in reader.observed)
    return list(dict.fromkeys(end.axis for end in ends if end.axis[0].graph is graph))


def visible(graph: Graph, group: AxisGroup) -> list[Reader]:
    """Readers that are seen on calibration in whole."""
    return [r for r in readers(group) if all(e.axis[0].graph is graph for e in r.observed)]


def lanes(end: End, size: int) -> np.ndarray:
    """i64[n, size]: the positions on an axis of each of a sum's ``size`` terms, which has n of them."""
    held = np.flatnonzero(end.owner >= 0)
    ordered = held[np.argsort(end.owner[held], kind="stable")]
    return ordered.reshape(size, -1).T


def terms(group: AxisGroup, reader: Reader) -> np.ndarray:
    """i64[size], the unit that each term of a sum belongs to; -1: none."""
    end = reader.operand
    return np.asarray(group.axes[end.axis][lanes(end, reader.size)[0]])


def with_axes_last(graph: Graph, axes: Sequence[Axis]) -> tuple[Graph, dict[Axis, Value]]:
    """A copy of ``graph`` and in it each activation with its axis moved to the end."""
    copy = graph.copy()
    by_name = {v.name: v for v in copy.values()}
    found = {}
    for value, axis in axes:
        rank = len(value.tensor.dims or ())
        here = by_name[value.name]
        if axis != rank - 1:
            order = (*(i for i in range(rank) if i != axis), axis)
            here = copy.emit("Transpose", [here], {"perm": order})
        found[value, axis] = here
    return copy, found


def _reader(link: Link) -> Reader | None:
    summed = [end for end in link.ends if end.summed and _is_float(end.axis[0])]
    weights = tuple(end for end in summed if end.axis[0].is_constant)
    read = tuple(end for end in summed if not end.axis[0].is_constant and end.place[0] == "in")
    if not weights and not read:
        return None
    return Reader(
        link.node, link.size, (read or weights)[0], read or tuple(_returned(link)), weights
    )


def _returned(link: Link) -> Iterator[End]:
    """The first result that has the units: what a recurrent layer reads again."""
    yield from [end for end in link.ends if end.place[0] == "out"][:1]


def _is_float(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype.is_float
