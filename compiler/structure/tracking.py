"""Groups while their graph is cut: what is left of each, and which units those were at the beginning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.ir import Value
from tersor.structure.groups import AxisGroup
from tersor.structure.links import Axis, End, Link, Positions


class Tracked:
    """A group of a graph that is being cut.

    Attributes:
        group: as it is now, units numbered from 0.
        original: i64[units], the number that each unit had at first.
        positions: for each axis, i64, the positions at first of those that it has left.
    """

    def __init__(self, group: AxisGroup) -> None:
        self.group = group
        self.original = np.arange(group.units)
        self.positions = {axis: np.arange(len(owner)) for axis, owner in group.axes.items()}

    def follow(self, cut: Positions) -> None:
        """Takes notice that ``cut`` was made, of units of this group or of others on the same axes."""
        self.group.links = [_link_left(link, cut) for link in self.group.links]
        if not any(axis in cut for axis in self.group.axes):
            return
        axes = {axis: _without(owner, axis, cut) for axis, owner in self.group.axes.items()}
        self.positions = {axis: _without(at, axis, cut) for axis, at in self.positions.items()}
        left = np.unique(np.concatenate([owner[owner >= 0] for owner in axes.values()]))
        self.group.axes = {axis: _renumbered(owner, left) for axis, owner in axes.items()}
        number = {int(unit): i for i, unit in enumerate(left)}
        self.group.pinned = {
            number[unit]: reason for unit, reason in self.group.pinned.items() if unit in number
        }
        self.group.units = len(left)
        self.original = self.original[left]


def follow_all(tracked: Sequence[Tracked], cut: Positions) -> None:
    """Every group takes notice of ``cut``."""
    for one in tracked:
        one.follow(cut)


def tie_vector(tracked: Sequence[Tracked], value: Value, like: Axis) -> None:
    """The last axis of a new constant, on which biases lie one after the other, belongs to the groups
    that the axis ``like`` belongs to."""
    last = value, len(value.tensor.shape) - 1
    for one in tracked:
        if (owner := one.group.axes.get(like)) is not None:
            size = value.tensor.shape[-1]
            one.group.axes[last] = np.tile(owner, size // len(owner))
            one.positions[last] = np.arange(size)


def positions_left(tracked: Sequence[Tracked], axis: Axis) -> np.ndarray | None:
    """The positions at first of those that an axis has left; None where no group has it: all."""
    return next((one.positions[axis] for one in tracked if axis in one.positions), None)


def spans(units: Sequence[int] | np.ndarray) -> str:
    """Numbers in a few words: ``0-11,13``."""
    found: list[list[int]] = []
    for unit in sorted(int(u) for u in units):
        if found and found[-1][1] == unit - 1:
            found[-1][1] = unit
        else:
            found.append([unit, unit])
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in found)


def _without(array: np.ndarray, axis: Axis, cut: Positions) -> np.ndarray:
    return np.delete(array, cut[axis]) if axis in cut else array


def _renumbered(owner: np.ndarray, left: np.ndarray) -> np.ndarray:
    return np.where(owner >= 0, np.searchsorted(left, owner), -1)


def _link_left(link: Link, cut: Positions) -> Link:
    """A link whose owners are those of the positions that are left, its own units numbered anew."""
    if not any(end.axis in cut for end in link.ends):
        return link
    owners = [_without(end.owner, end.axis, cut) for end in link.ends]
    left = np.unique(np.concatenate([owner[owner >= 0] for owner in owners]))
    ends = tuple(
        End(end.axis, end.place, _renumbered(owner, left), end.summed)
        for end, owner in zip(link.ends, owners, strict=True)
    )
    return Link(link.node, len(left), ends, link.kind)
