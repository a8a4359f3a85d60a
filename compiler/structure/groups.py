"""Axis groups: the units that can be pruned from a model, and those that cannot, with the reason.

A group consists of the units of one kind in one place: the heads of an attention, the neurons of a
feed-forward layer, the channels of a residual connection, an LSTM's hidden units.  Groups are derived from
the op table's ties alone (:mod:`tersor.structure.links`), so they do not depend on the exporter or on
known architectures.  Dependency graphs for pruning: Fang et al. 2023, DepGraph (arXiv 2301.12900).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np

from tersor.errors import Unsupported
from tersor.ir import Graph, Node, Value
from tersor.ops import TABLE
from tersor.structure.labels import Ambiguous, Labels, alternatives
from tersor.structure.links import (
    Axis,
    End,
    Link,
    Place,
    cut_of_node,
    links,
    links_by_axis,
    size_of,
)

Table = Mapping[Axis, Mapping[Place, list[tuple[Link, End]]]]


@dataclass(eq=False)
class AxisGroup:
    """Units that are cut from several axes together.

    Attributes:
        name: the scope of the node that computes the units, else of the first node that has them.
        units: the number of units.
        axes: for each axis i64[size], the unit of each position; -1: not cut with the group.
        pinned: units that cannot be removed, with the reason.
        links: the ties that connect the axes, in the order they were followed.
        inexact: why removing units is not equivalent to zeroing them; empty if it is.
    """

    name: str
    units: int
    axes: dict[Axis, np.ndarray]
    pinned: dict[int, str] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)
    inexact: str = ""

    @property
    def scope(self) -> str:
        """What options select groups by: its name."""
        return self.name

    @property
    def label(self) -> str:
        """What messages call it: its name."""
        return self.name

    @property
    def free(self) -> list[int]:
        """Units that can be removed."""
        return [u for u in range(self.units) if u not in self.pinned]

    def positions(self, units: Collection[int]) -> dict[Axis, np.ndarray]:
        """The positions of ``units``, ascending, by axis."""
        gone = np.asarray(sorted(units), np.int64)
        cut = {axis: np.flatnonzero(np.isin(owner, gone)) for axis, owner in self.axes.items()}
        return {axis: at for axis, at in cut.items() if len(at)}

    def weights(self, *, summed: bool) -> Iterator[tuple[Node, Value, int]]:
        """(node, constant, axis) of the weights that compute the units or, with ``summed``, of those with
        which nodes sum over them."""
        ends = [(link.node, end) for link in self.links for end in link.ends]
        yield from dict.fromkeys(
            (node, *end.axis)
            for node, end in ends
            if end.summed is summed and end.axis[0].is_constant
        )

    def zeroed(self) -> Iterator[Axis]:
        """Axes of constants at which zeroing units is equivalent to removing them, unless the group is
        inexact."""
        for link in self.links:
            yield from _zeroed(link)


def axis_groups(graph: Graph) -> list[AxisGroup]:
    """All groups with an axis of a weight, in the order of the graph, including those that are pinned
    completely. An axis that can be cut in several ways (by heads, by the lanes of all heads) has a group
    for each, and both can be cut."""
    every = links(graph)
    table = links_by_axis(every)
    connected: nx.Graph[Axis] = nx.Graph()
    for link in every:
        nx.add_path(connected, [end.axis for end in link.ends])
    order = {node: i for i, node in enumerate(graph.walk())}
    first = {axis: i for i, axis in enumerate(connected.nodes)}
    groups = []
    for component in nx.connected_components(connected):
        axes = sorted(component, key=first.__getitem__)
        if any(_is_weight(a[0]) for a in axes):
            groups += list(_of_component(axes, table))
    groups.sort(key=lambda g: min(order[link.node] for link in g.links))
    _name(groups)
    return groups


def _of_component(axes: Sequence[Axis], table: Table) -> Iterator[AxisGroup]:
    """The distinct groups of connected axes."""
    grouped: set[Axis] = set()
    followed: set[Link] = set()
    ambiguous: dict[Axis, str] = {}
    for axis, labels in _starts(axes, table, grouped, ambiguous, followed):
        spread = Labels(table)
        try:
            spread.spread(axis, labels)
        except Ambiguous as reason:
            for other in (axis, *spread.equivalent_starts(len(labels))):
                ambiguous.setdefault(other, str(reason))
            continue
        grouped |= set(spread.axes)
        followed |= set(spread.links)
        if any(_is_weight(a[0]) for a in spread.axes):
            yield _group(spread)
    for axis, why in ambiguous.items():
        if axis not in grouped and _is_weight(axis[0]):
            size = size_of(axis) or 0
            own = [link for link, _ in next(iter(table[axis].values()))]
            grouped.add(axis)
            pinned = dict.fromkeys(range(size), why)
            yield AxisGroup("", size, {axis: np.arange(size)}, pinned, own)


def _starts(
    axes: Sequence[Axis],
    table: Table,
    grouped: Collection[Axis],
    ambiguous: Collection[Axis],
    followed: set[Link],
) -> Iterator[tuple[Axis, np.ndarray]]:
    """The axes and labels to spread from: each axis in no group yet, with a label per position, unless
    that is known to be ambiguous; then the units of each alternative tie that was not followed. The
    caller extends the collections between the starts.

    A group follows every tie that its labels fit, so a tie that was not followed belongs to another
    group. Ties of a single unit (one head, or heads of one lane) are skipped: they say nothing.
    """
    for axis in axes:
        size = size_of(axis)
        if axis not in grouped and axis not in ambiguous and size is not None and size > 1:
            yield axis, np.arange(size)
    for axis in axes:
        for link, end in alternatives(table.get(axis, {})):
            if link not in followed and link.size > 1:
                followed.add(link)
                yield axis, end.owner


def _group(spread: Labels) -> AxisGroup:
    """The group of a set of labels: units numbered from 0 in the order of the labels."""
    names = np.unique(np.concatenate([a[a >= 0] for a in spread.axes.values()]))
    axes = {
        axis: np.where(labels >= 0, np.searchsorted(names, labels), -1)
        for axis, labels in spread.axes.items()
    }
    number = {int(label): i for i, label in enumerate(names)}
    pinned = {number[label]: reason for label, reason in spread.pinned.items()}
    group = AxisGroup("", len(names), axes, dict(sorted(pinned.items())), list(spread.links))
    if len(names) == 1:
        group.pinned.setdefault(0, "all of its positions belong together")
    if group.free:
        _pin_if_fixed(group)
    group.inexact = _inexact(group)
    return group


def _pin_if_fixed(group: AxisGroup) -> None:
    """Pins all units if a node fixes a size that cannot be changed."""
    cut = group.positions(group.free[:1])
    for node in dict.fromkeys(link.node for link in group.links):
        try:
            TABLE.follow(node, cut_of_node(node, cut))
        except Unsupported as reason:
            for unit in range(group.units):
                group.pinned.setdefault(unit, str(reason))
            return


def _inexact(group: AxisGroup) -> str:
    for link in group.links:
        summed = any(end.summed for end in link.ends)
        if link.kind == "shape" and not summed:
            return f"{link.node.label} normalizes over them"
        if summed and not _zeroed(link):
            return f"{link.node.label} sums over them, and no weight there or before zeroes them"
    return ""


def _zeroed(link: Link) -> list[Axis]:
    """Axes of constants in which zeros remove units from the sum that a link's node computes: its
    constant operands, else the linear layer that computes an operand."""
    summed = [end.axis for end in link.ends if end.summed]
    weights = [axis for axis in summed if axis[0].is_constant]
    return weights or next(filter(None, (_columns_of_producer(*axis) for axis in summed)), [])


def _columns_of_producer(value: Value, axis: int) -> list[Axis]:
    """The weight's columns and the bias of the linear layer that computes ``value``, ``axis`` being its
    last axis; empty if there is none, or its activation may not map zero to zero."""
    node = value.producer
    forms = TABLE.weights(node) if node is not None else ()
    if node is None or len(forms) != 1 or node.attrs.get("activation", "none") != "none":
        return []
    (form,) = forms
    if form.activation is None or form.window is not None or form.bias is None:
        return []
    constants = [
        v for v in (node.input(form.operand), node.input(form.bias.operand)) if v is not None
    ]
    if axis != len(value.tensor.dims or ()) - 1 or not all(v.is_constant for v in constants):
        return []
    return [(v, len(v.tensor.shape) - 1) for v in constants]


def _is_weight(value: Value) -> bool:
    return value.is_constant and value.tensor.dtype.is_float


def _name(groups: Sequence[AxisGroup]) -> None:
    taken: dict[str, int] = {}
    for group in groups:
        makers = [n for n, v, _ in group.weights(summed=False) if len(v.tensor.shape) > 1]
        first = makers[0] if makers else group.links[0].node
        base = first.scope or first.name or first.output.name
        taken[base] = taken.get(base, 0) + 1
        group.name = base if taken[base] == 1 else f"{base}#{taken[base]}"
