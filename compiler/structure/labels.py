"""Label propagation: from the positions of one axis, along all links, to everything that must be cut with
them.

Every position of the axis starts with a label of its own.  At each node the label of a tie's unit spreads
to all positions of that unit on the tie's other axes.  Positions that get two labels, or share a unit of a
tie, merge the labels:

    Concat with itself:  y = [x, x]          y = a b c a b c
    y + z, z of two heads of 3 lanes         the tie of heads merges a b c: one unit remains in x

**Alternatives.** A Reshape of h*d lanes into h heads ties the axis twice: by heads (blocks of d) and by
lanes (one in each head).  Coming from the heads, every block has one label and only the first tie fits.
Coming from single positions, neither fits and either could be chosen: the axis is :class:`Ambiguous`, and
groups are started from the labels of each of the ties instead (:func:`alternatives`):

    h d = 2 3      from the heads: 0 0 0 1 1 1      from the lanes: 0 1 2 0 1 2
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tersor.structure.links import Axis, End, Link, Place, places

_NONE = np.iinfo(np.int64).max


class Ambiguous(Exception):
    """Positions can be grouped in more than one way."""


class Labels:
    """Labels of all axes connected with one.

    Attributes:
        axes: for each axis i64[size], the label of each position; -1: none.
        pinned: labels that cannot be removed, with the reason.
        links: the links that were followed, each once.
    """

    def __init__(self, table: Mapping[Axis, Mapping[Place, list[tuple[Link, End]]]]) -> None:
        self.axes: dict[Axis, np.ndarray] = {}
        self.pinned: dict[int, str] = {}
        self.links: dict[Link, None] = {}
        self._table = table
        self._parent = np.zeros(0, np.int64)
        self._carried: dict[
            Link, np.ndarray
        ] = {}  # The labels of a link's units when last followed.

    def spread(self, axis: Axis, labels: np.ndarray) -> None:
        """Starts with ``labels`` (i64[size], -1: none) on ``axis`` and follows all links.

        Raises:
            Ambiguous: positions can be grouped in several ways.
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
        self.axes = {axis: self._roots(axis) for axis in self.axes}
        for labelled in self.axes:
            self._pin(labelled)

    def equivalent_starts(self, size: int) -> list[Axis]:
        """Axes whose ``size`` positions have distinct labels: starting there gives the same result."""
        every = np.arange(size)
        return [a for a in self.axes if np.array_equal(np.sort(self._roots(a)), every)]

    # -- inner -----------------------------------------------------------------------------------

    def _chosen(self, axis: Axis, links: Sequence[tuple[Link, End]]) -> Iterator[tuple[Link, End]]:
        """The links of one place to follow: among alternatives, the one whose units have one label each."""
        labels = self._roots(axis)
        for group in _overlapping(links):
            touched = [r for r in group if (labels[r[1].owner >= 0] >= 0).any()]
            if len(group) == 1:
                yield from touched
                continue
            fitting = [r for r in touched if not _mixed(labels, r[1].owner, r[0].size)]
            if fitting:
                # If several fit (a unit is the whole axis), the finest is the most informative.
                yield max(fitting, key=lambda r: r[0].size)
            elif touched:
                raise Ambiguous(f"{touched[0][0].node.label} can be cut in several ways")

    def _follow(self, link: Link, end: End) -> Iterator[Axis]:
        """Carries labels from one end of a link to all ends; yields the axes whose labels changed."""
        labels = self._roots(end.axis)
        both = (end.owner >= 0) & (labels >= 0)
        low = np.full(link.size, _NONE)
        np.minimum.at(low, end.owner[both], labels[both])
        for unit, label in zip(end.owner[both].tolist(), labels[both].tolist(), strict=True):
            if low[unit] != label:
                self._join(int(low[unit]), label)
        self._settle()
        units = np.where(low == _NONE, -1, self._parent[np.where(low == _NONE, 0, low)])
        before = self._carried.get(link)
        if before is not None:
            units = np.where((units < 0) & (before >= 0), self._parent[before], units)
            if (units == before).all():
                return  # All ends have them already: avoids quadratic time for a Sum of thousands.
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
        """Makes every label point to its root directly."""
        while (self._parent[self._parent] != self._parent).any():
            self._parent = self._parent[self._parent]

    def _pin(self, axis: Axis) -> None:
        """Pins the labels without a link at some place of the value."""
        by_place: dict[Place, list[tuple[Link, End]]] = {}
        for key, links in self._table.get(axis, {}).items():
            by_place.setdefault(key[:2] if key[0] == "bound" else key, []).extend(links)
        labels = self.axes[axis]
        for place, reason in places(axis[0]):
            untied = labels >= 0
            for link, end in by_place.get(place, ()):
                if link in self.links:
                    untied &= end.owner < 0
            for label in np.unique(labels[untied]).tolist():
                self.pinned.setdefault(label, reason)


def alternatives(places: Mapping[Place, Sequence[tuple[Link, End]]]) -> Iterator[tuple[Link, End]]:
    """The links of an axis, given by place, that share positions with another link at that place."""
    for links in places.values():
        for group in _overlapping(links):
            if len(group) > 1:
                yield from group


def _overlapping(links: Sequence[tuple[Link, End]]) -> list[list[tuple[Link, End]]]:
    """Groups the links of one place by shared positions."""
    groups: list[tuple[np.ndarray, list[tuple[Link, End]]]] = []
    for entry in links:
        mask, apart = entry[1].owner >= 0, []
        near: list[tuple[Link, End]] = []
        for other, members in groups:
            if (other & mask).any():
                mask, near = mask | other, near + members
            else:
                apart.append((other, members))
        groups = [*apart, (mask, [*near, entry])]
    return [group for _, group in groups]


def _mixed(labels: np.ndarray, owner: np.ndarray, size: int) -> bool:
    """Whether a unit has positions of different labels, or some with and some without a label."""
    own = owner >= 0
    low, high = np.full(size, _NONE), np.full(size, -_NONE)
    np.minimum.at(low, owner[own], labels[own])
    np.maximum.at(high, owner[own], labels[own])
    return bool(((low != high) & (low != _NONE)).any())
