"""What goes with a unit: from the positions of one axis, through all links, to everything that must be cut
with them.

Every position of the axis begins as a unit of its own (a label).  At each node the label of a tie's unit
goes to all positions that the unit owns on the tie's other axes; positions that come to hold two labels,
or share a unit of a tie, make one label of the two:

    Concat of itself:  y = [x, x]            y = a b c a b c
    y + z, z of two heads of 3 lanes         the tie of heads joins a b c: one unit is left in x

**Alternatives.** A Reshape of h*d lanes into h heads ties the axis twice: by heads (blocks of d), and by
lanes (one in each head).  From the side of the heads every block has one label and only the first tie
fits; from single positions neither fits, and either would: nothing is chosen, the axis is
:class:`Ambiguous` and is left to whoever begins with the labels of one of the ties (:func:`rivals`):

    h d = 2 3      from the heads: 0 0 0 1 1 1      from the lanes: 0 1 2 0 1 2
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tersor.structure.links import Axis, End, Link, Place, places

_NONE = np.iinfo(np.int64).max


class Ambiguous(Exception):
    """Positions belong together in more than one way."""


class Labels:
    """Labels of all axes that hang together with one.

    Attributes:
        axes: i64[size] for each axis, the label of each position; -1: none.
        pinned: why a label must stay.
        links: the links that were followed, each once.
    """

    def __init__(self, table: Mapping[Axis, Mapping[Place, list[tuple[Link, End]]]]) -> None:
        self.axes: dict[Axis, np.ndarray] = {}
        self.pinned: dict[int, str] = {}
        self.links: dict[Link, None] = {}
        self._table = table
        self._parent = np.zeros(0, np.int64)
        self._carried: dict[Link, np.ndarray] = {}  # The labels that a link's ends last got.

    def spread(self, axis: Axis, labels: np.ndarray) -> None:
        """Gives the positions of ``axis`` their first labels (i64[size], -1: none) and follows them
        everywhere.

        Raises:
            Ambiguous: they may be put together in several ways.
        """
        self._parent = np.arange(labels.max() + 1)
        self.axes[axis] = labels
        work = {axis: None}
        while work:
            current = next(iter(work))
            del work[current]
            for links in self._table.get(current, {}).values():
                for link, end in self._chosen(current, links):
                    self.links[link] = None
                    work.update(dict.fromkeys(self._follow(link, end)))
        self._flatten()
        for found in self.axes:
            self._pin(found)

    def pin(self, axis: Axis, where: np.ndarray, reason: str) -> None:
        """Every label at the positions ``where`` (a mask) must stay."""
        labels = self.axes[axis][where]
        for label in np.unique(labels[labels >= 0]).tolist():
            self.pinned.setdefault(label, reason)

    def alike(self, size: int) -> list[Axis]:
        """Axes of which each of ``size`` positions has one label of its own: to begin there is to begin
        where these began."""
        return [
            axis
            for axis in self.axes
            if np.array_equal(np.sort(self._roots(axis)), np.arange(size))
        ]

    # -- inner -----------------------------------------------------------------------------------

    def _chosen(self, axis: Axis, links: Sequence[tuple[Link, End]]) -> Iterator[tuple[Link, End]]:
        """Of the links of one place, those to follow: of several that hold the same positions the one
        whose units have one label each."""
        labels = self._roots(axis)
        for group in _overlapping(links):
            touched = [r for r in group if (labels[r[1].owner >= 0] >= 0).any()]
            if len(group) == 1:
                yield from touched
                continue
            fitting = [r for r in touched if not _mixed(labels, r[1].owner, r[0].size)]
            if fitting:
                # Where several fit (an axis of which a unit is all), the finest says the most.
                yield max(fitting, key=lambda r: r[0].size)
            elif touched:
                raise Ambiguous(f"{touched[0][0].node.label} can be cut in several ways")

    def _follow(self, link: Link, end: End) -> Iterator[Axis]:
        """Carries labels from one end of a link to all; the axes whose labels changed."""
        labels = self._roots(end.axis)
        held = (end.owner >= 0) & (labels >= 0)
        low = np.full(link.size, _NONE)
        np.minimum.at(low, end.owner[held], labels[held])
        for unit, label in zip(end.owner[held].tolist(), labels[held].tolist(), strict=True):
            if low[unit] != label:
                self._join(int(low[unit]), label)
        self._settle()
        units = np.where(low == _NONE, -1, self._parent[np.where(low == _NONE, 0, low)])
        before = self._carried.get(link)
        if before is not None:
            units = np.where((units < 0) & (before >= 0), self._parent[before], units)
            if (units == before).all():
                return  # All ends have them: of a Sum of thousands each would look at all others.
        self._carried[link] = units
        for other in link.ends:
            if self._assign(other, units):
                yield other.axis

    def _assign(self, end: End, units: np.ndarray) -> bool:
        new = np.where(end.owner >= 0, units[end.owner], -1)
        before = self.axes.get(end.axis)
        if before is None:
            if (new < 0).all():
                return False
            self.axes[end.axis] = new
            return True
        old = self._roots(end.axis)
        both = (old >= 0) & (new >= 0) & (old != new)
        for a, b in zip(old[both].tolist(), new[both].tolist(), strict=True):
            self._join(a, b)
        self._settle()
        merged = np.where(old >= 0, old, new)
        merged = np.where(merged >= 0, self._parent[merged], -1)
        changed = bool((merged != before).any())
        self.axes[end.axis] = merged
        return changed

    def _roots(self, axis: Axis) -> np.ndarray:
        labels = self.axes[axis]
        return np.where(labels >= 0, self._parent[labels], -1)

    def _join(self, a: int, b: int) -> None:
        a, b = self._root(a), self._root(b)
        self._parent[max(a, b)] = min(a, b)

    def _root(self, label: int) -> int:
        while self._parent[label] != label:
            label = int(self._parent[label])
        return label

    def _settle(self) -> None:
        """Every label names its root directly."""
        while (self._parent[self._parent] != self._parent).any():
            self._parent = self._parent[self._parent]

    def _flatten(self) -> None:
        for axis in self.axes:
            self.axes[axis] = self._roots(axis)

    def _pin(self, axis: Axis) -> None:
        """Pins the labels that some place of the value has no link for."""
        held: dict[Place, list[tuple[Link, End]]] = {}
        for key, links in self._table.get(axis, {}).items():
            held.setdefault(key[:2] if key[0] == "bound" else key, []).extend(links)
        for place, reason in places(axis[0]):
            free = np.ones(len(self.axes[axis]), bool)
            for link, end in held.get(place, ()):
                if link in self.links:
                    free &= end.owner < 0
            if free.any():
                self.pin(axis, free, reason)


def rivals(places: Mapping[Place, Sequence[tuple[Link, End]]]) -> Iterator[tuple[Link, End]]:
    """Of the links that hold an axis, by place, those that hold positions another one there holds too."""
    for links in places.values():
        for group in _overlapping(links):
            if len(group) > 1:
                yield from group


def _overlapping(links: Sequence[tuple[Link, End]]) -> list[list[tuple[Link, End]]]:
    """Links of one place, those together that hold some position both."""
    found: list[tuple[np.ndarray, list[tuple[Link, End]]]] = []
    for entry in links:
        held = entry[1].owner >= 0
        near = [f for f in found if (f[0] & held).any()]
        joined = [entry for _, group in near for entry in group] + [entry]
        found = [f for f in found if all(f is not n for n in near)]
        found.append((np.logical_or.reduce([held, *(mask for mask, _ in near)]), joined))
    return [group for _, group in found]


def _mixed(labels: np.ndarray, owner: np.ndarray, size: int) -> bool:
    """Whether some unit holds positions of different labels, or some with and some without."""
    held = owner >= 0
    low, high = np.full(size, _NONE), np.full(size, -_NONE)
    np.minimum.at(low, owner[held], labels[held])
    np.maximum.at(high, owner[held], labels[held])
    return bool(((low != high) & (low != _NONE)).any())
