"""The readers of units: nodes that sum over them, with an operand and what it is multiplied with.

x W           linear layers, convolutions: x is observed; the unit's rows of W are its weights
h R           hidden units of an LSTM, read at the next step: h is the LSTM's result
q k^T         lanes of queries and keys: both are observed, there are no weights
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
        size: number of terms of the sum; of a grouped convolution: in each group.
        operand: the end to mask units at: an activation, or else a constant (R).
        observed: activations that are multiplied with each other or with the weights.
        weights: constants that are multiplied with an activation.
    """

    node: Node
    size: int
    operand: End
    observed: tuple[End, ...]
    weights: tuple[End, ...]


def readers(group: AxisGroup) -> list[Reader]:
    """All sums over a group's units, in order."""
    return [reader for link in group.links if (reader := _reader(link)) is not None]


def observed_axes(graph: Graph, group: AxisGroup) -> list[Axis]:
    """The distinct (activation, axis) in ``graph`` itself that the group's readers multiply."""
    ends = (end for reader in readers(group) for end in reader.observed)
    return list(dict.fromkeys(end.axis for end in ends if end.axis[0].graph is graph))


def visible(graph: Graph, group: AxisGroup) -> list[Reader]:
    """Readers whose activations are all observable: not in subgraphs."""
    return [r for r in readers(group) if all(e.axis[0].graph is graph for e in r.observed)]


def lanes(end: End, size: int) -> np.ndarray:
    """i64[n, size]: the n positions on an axis of each of a sum's ``size`` terms."""
    owned = np.flatnonzero(end.owner >= 0)
    ordered = owned[np.argsort(end.owner[owned], kind="stable")]
    return ordered.reshape(size, -1).T


def terms(group: AxisGroup, reader: Reader) -> np.ndarray:
    """i64[size], the unit that each term of a sum belongs to; -1: none."""
    end = reader.operand
    return np.asarray(group.axes[end.axis][lanes(end, reader.size)[0]])


def with_axes_last(graph: Graph, axes: Sequence[Axis]) -> tuple[Graph, dict[Axis, Value]]:
    """A copy of ``graph``, and in it each activation transposed so that the axis is last."""
    copy = graph.copy()
    by_name = {v.name: v for v in copy.values()}
    views = {}
    for value, axis in axes:
        rank = len(value.tensor.dims or ())
        here = by_name[value.name]
        if axis != rank - 1:
            order = (*(i for i in range(rank) if i != axis), axis)
            here = copy.emit("Transpose", [here], {"perm": order})
        views[value, axis] = here
    return copy, views


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
    """The first result with the units, which a recurrent layer reads at the next step."""
    yield from [end for end in link.ends if end.place[0] == "out"][:1]


def _is_float(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype.is_float
