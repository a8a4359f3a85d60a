"""Groups while their graph is cut: what is left of each, and which units those were at the beginning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.ir import Value
from tersor.structure.groups import AxisGroup
from tersor.structure.links import Axis, Positions


class Tracked:
    """A group of a graph that is being cut.

    Attributes:
        group: as it is now, units numbered from 0.
        original: i64[units], the number that each unit had at first.
    """

    def __init__(self, group: AxisGroup) -> None:
        self.group = group
        self.original = np.arange(group.units)

    def follow(self, cut: Positions) -> None:
        """Takes notice that ``cut`` was made, of units of this group or of others on the same axes."""
        if not any(axis in cut for axis in self.group.axes):
            return
        axes = {
            axis: np.delete(owner, cut[axis]) if axis in cut else owner
            for axis, owner in self.group.axes.items()
        }
        left = np.unique(np.concatenate([owner[owner >= 0] for owner in axes.values()]))
        self.group.axes = {
            axis: np.where(owner >= 0, np.searchsorted(left, owner), -1)
            for axis, owner in axes.items()
        }
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
    """A new constant vector belongs to the groups that the axis ``like`` belongs to."""
    for one in tracked:
        if like in one.group.axes:
            one.group.axes[value, 0] = one.group.axes[like]


def spans(units: Sequence[int] | np.ndarray) -> str:
    """Numbers in a few words: ``0-11,13``."""
    found: list[list[int]] = []
    for unit in sorted(int(u) for u in units):
        if found and found[-1][1] == unit - 1:
            found[-1][1] = unit
        else:
            found.append([unit, unit])
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in found)
