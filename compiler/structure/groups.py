"""Axis groups: what of a model can be made smaller, unit by unit, and what cannot and why.

A group is one kind of unit in one place: the heads of an attention, the neurons of a feed-forward layer,
the channels that a residual connection carries, an LSTM's hidden units.  They are found from the op
table's ties alone (:mod:`tersor.structure.links`), so a graph from torch and one from ONNX are treated
alike, and no architecture has a name here.  Dependency graphs for pruning: Fang et al. 2023, DepGraph
(arXiv 2301.12900).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np

from tersor.errors import Unsupported
from tersor.ir import Graph, Node, Value
from tersor.ops import TABLE
from tersor.structure.labels import Ambiguous, Labels, rivals
from tersor.structure.links import Axis, End, Link, Place, by_axis, cut_of_node, links, size_of

Table = Mapping[Axis, Mapping[Place, list[tuple[Link, End]]]]


@dataclass(eq=False)
class AxisGroup:
    """Units that are cut from all of these axes together.

    Attributes:
        name: the scope of the node that makes the units, else that of the first that has them.
        units: how many.
        axes: i64[size] for each axis, the unit of each position; -1: the group's cut leaves it.
        pinned: units that must stay, with the reason.
        links: the ties that hold the axes together, in the order they were found.
        inexact: why removing units is not the same as zeroing them; empty where it is.
    """

    name: str
    units: int
    axes: dict[Axis, np.ndarray]
    pinned: dict[int, str] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)
    inexact: str = ""

    @property
    def scope(self) -> str:
        """Its name, by which options choose among groups."""
        return self.name

    @property
    def label(self) -> str:
        """Its name, by which messages call it."""
        return self.name

    @property
    def free(self) -> list[int]:
        """Units that may go."""
        return [u for u in range(self.units) if u not in self.pinned]

    def positions(self, units: Collection[int]) -> dict[Axis, np.ndarray]:
        """What the ``units`` own, ascending, by axis."""
        gone = np.asarray(sorted(units), np.int64)
        found = {axis: np.flatnonzero(np.isin(owner, gone)) for axis, owner in self.axes.items()}
        return {axis: at for axis, at in found.items() if len(at)}

    def weights(self, *, summed: bool) -> Iterator[tuple[Node, Value, int]]:
        """(node, constant, axis): where units are made from weights or, ``summed``, where a node sums
        over them."""
        seen = set()
        for link in self.links:
            for end in link.ends:
                value, axis = end.axis
                if (
                    end.summed is summed
                    and value.is_constant
                    and (link.node, *end.axis) not in seen
                ):
                    seen.add((link.node, *end.axis))
                    yield link.node, value, axis

    def zeroed(self) -> Iterator[Axis]:
        """Constants in which units that are zero are as good as gone, unless the group is inexact."""
        for link in self.links:
            yield from _zeroed(link)


def axis_groups(graph: Graph) -> list[AxisGroup]:
    """All groups of axes that hold weights, in the order of the graph; also those that are pinned as a
    whole. Where an axis can be cut in several ways (by heads, by the lanes of all heads) there is a
    group for each, and units of both may go."""
    found = links(graph)
    table = by_axis(found)
    together: nx.Graph[Axis] = nx.Graph()
    for link in found:
        nx.add_path(together, [end.axis for end in link.ends])
    together.add_nodes_from(a for link in found for a in (e.axis for e in link.ends))
    order = {node: i for i, node in enumerate(graph.walk())}
    first = {axis: i for i, axis in enumerate(together.nodes)}
    groups = []
    for component in nx.connected_components(together):
        axes = sorted(component, key=first.__getitem__)
        if any(_is_weight(a[0]) for a in axes):
            groups += list(_of_component(axes, table))
    groups.sort(key=lambda g: min(order[link.node] for link in g.links))
    _name(groups)
    return groups


def _of_component(axes: Sequence[Axis], table: Table) -> Iterator[AxisGroup]:
    """Groups of axes that hang together, no two alike."""
    told: set[Axis] = set()
    tried: set[Link] = set()
    open_axes: dict[Axis, str] = {}
    for axis, labels in _starts(axes, table, told, open_axes, tried):
        spread = Labels(table)
        try:
            spread.spread(axis, labels)
        except Ambiguous as reason:
            for other in (axis, *spread.alike(len(labels))):
                open_axes.setdefault(other, str(reason))
            continue
        told |= set(spread.axes)
        tried |= set(spread.links)
        if any(_is_weight(a[0]) for a in spread.axes):
            yield _group(spread)
    for axis, why in open_axes.items():
        if axis not in told and _is_weight(axis[0]):
            size = size_of(axis) or 0
            held = [link for link, _ in next(iter(table[axis].values()))]
            told.add(axis)
            yield AxisGroup(
                "", size, {axis: np.arange(size)}, dict.fromkeys(range(size), why), held
            )


def _starts(
    axes: Sequence[Axis],
    table: Table,
    told: Collection[Axis],
    open_axes: Collection[Axis],
    tried: set[Link],
) -> Iterator[tuple[Axis, np.ndarray]]:
    """Where to begin, with which labels: at each axis that no group has ``told`` of yet with a label for
    each position, unless that is known to be ambiguous (``open_axes``), then with the units of each
    rival tie that none has followed (``tried``). All of them grow as the starts are taken.

    A group follows every tie that holds its labels, so what begins at another is another one; and an
    axis of one head, or of heads of one lane, has ties of a single unit, which tell nothing.
    """
    for axis in axes:
        size = size_of(axis)
        if axis not in told and axis not in open_axes and size is not None and size > 1:
            yield axis, np.arange(size)
    for axis in axes:
        for link, end in rivals(table.get(axis, {})):
            if link not in tried and link.size > 1:
                tried.add(link)
                yield axis, end.owner


def _group(spread: Labels) -> AxisGroup:
    """Labels as a group: units numbered from 0 in the order of the labels."""
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
        _pin_unfollowed(group)
    group.inexact = _inexact(group)
    return group


def _pin_unfollowed(group: AxisGroup) -> None:
    """Pins all where a node states a size that cannot be changed."""
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
            return (
                f"{link.node.label} sums over them, and no weight there or before makes them zero"
            )
    return ""


def _zeroed(link: Link) -> list[Axis]:
    """Axes of constants whose zeros take units out of the sum that a link's node makes: those of its
    operands, else those of the linear layer that makes one, since a product with zero is zero."""
    summed = [end.axis for end in link.ends if end.summed]
    weights = [axis for axis in summed if axis[0].is_constant]
    if weights:
        return weights
    return next((made for value, axis in summed if (made := _made_by(value, axis))), [])


def _made_by(value: Value, axis: int) -> list[Axis]:
    """The columns and the bias of the linear layer that makes ``value`` along ``axis``; empty where
    none does, or one whose zeros do not come out as such."""
    node = value.producer
    forms = TABLE.weights(node) if node is not None else ()
    if node is None or len(forms) != 1 or node.attrs.get("activation", "none") != "none":
        return []
    (form,) = forms
    if form.activation is None or form.window is not None or form.bias is None:
        return []
    held = [v for v in (node.input(form.operand), node.input(form.bias.operand)) if v is not None]
    if axis != len(value.tensor.dims or ()) - 1 or not all(v.is_constant for v in held):
        return []
    return [(v, len(v.tensor.shape) - 1) for v in held]


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
