"""Tracking groups while their graph is cut: their remaining units, and the original numbers of these."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.ir import Value
from tersor.structure.groups import AxisGroup
from tersor.structure.links import Axis, End, Link, Positions


class Tracked:
    """A group of a graph that is being cut.

    Attributes:
        group: its present state, units numbered from 0.
        original: i64[units], the original number of each unit.
        positions: for each axis i64, the original positions of those that remain.
    """

    def __init__(self, group: AxisGroup) -> None:
        self.group = group
        self.original = np.arange(group.units)
        self.positions = {axis: np.arange(len(owner)) for axis, owner in group.axes.items()}

    def follow(self, cut: Positions) -> None:
        """Updates the group after ``cut``, of its own units or of other groups' on the same axes."""
        self.group.links = [_cut_link(link, cut) for link in self.group.links]
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


def follow_cut(tracked: Sequence[Tracked], cut: Positions) -> None:
    """Updates all groups after ``cut``."""
    for one in tracked:
        one.follow(cut)


def tie_vector(tracked: Sequence[Tracked], value: Value, like: Axis) -> None:
    """Adds the last axis of a new constant, of one or several concatenated biases, to the groups of the
    axis ``like``."""
    last = value, len(value.tensor.shape) - 1
    for one in tracked:
        if (owner := one.group.axes.get(like)) is not None:
            size = value.tensor.shape[-1]
            one.group.axes[last] = np.tile(owner, size // len(owner))
            one.positions[last] = np.arange(size)


def remaining_positions(tracked: Sequence[Tracked], axis: Axis) -> np.ndarray | None:
    """The original positions of those that remain of an axis; None (all) if it is in no group."""
    return next((one.positions[axis] for one in tracked if axis in one.positions), None)


def spans(units: Sequence[int] | np.ndarray) -> str:
    """Numbers as ranges: ``0-11,13``."""
    ranges: list[list[int]] = []
    for unit in sorted(int(u) for u in units):
        if ranges and ranges[-1][1] == unit - 1:
            ranges[-1][1] = unit
        else:
            ranges.append([unit, unit])
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in ranges)


def _without(array: np.ndarray, axis: Axis, cut: Positions) -> np.ndarray:
    return np.delete(array, cut[axis]) if axis in cut else array


def _renumbered(owner: np.ndarray, left: np.ndarray) -> np.ndarray:
    return np.where(owner >= 0, np.searchsorted(left, owner), -1)


def _cut_link(link: Link, cut: Positions) -> Link:
    """A link after ``cut``, its units renumbered."""
    if not any(end.axis in cut for end in link.ends):
        return link
    owners = [_without(end.owner, end.axis, cut) for end in link.ends]
    left = np.unique(np.concatenate([owner[owner >= 0] for owner in owners]))
    ends = tuple(
        End(end.axis, end.place, _renumbered(owner, left), end.summed)
        for end, owner in zip(link.ends, owners, strict=True)
    )
    return Link(link.node, len(left), ends, link.kind)
