"""How many units to remove from each group, under one budget for all groups.

Each group has a curve: levels (numbers of units removed, ascending from 0) and the loss at each.  The
methods choose a level per group, so that the cost is within the budget and the total loss is small.

    uniform         the same share of every group, the smallest within the budget
    greedy          starting from 0, repeatedly the step with the least loss per saving
    exact           the least total loss, if savings add up: dynamic programming (a knapsack)
    evolutionary    mutations of the greedy solution, by measured fitness
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Cost = Callable[[Sequence[int]], float]
"""The cost of the whole model with so many units of each group removed."""
FRONT = 4000  # Partial solutions that the exact search keeps.


@dataclass(frozen=True, eq=False)
class Curve:
    """A group's ``levels`` (units removed, ascending from 0) and the ``losses`` there."""

    levels: Sequence[int]
    losses: Sequence[float]


def uniform(
    levels: Sequence[Sequence[int]], units: Sequence[int], cost: Cost, budget: float
) -> list[int]:
    """The same share of every group, rounded down to one of the group's levels.

    Args:
        levels: the levels of each group.
        units: the number of units in each group.

    Returns:
        Units to remove; the highest levels if even these exceed the budget.
    """
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        over = cost(_share(levels, units, middle)) > budget
        low, high = (middle, high) if over else (low, middle)
    return _share(levels, units, high)


def greedy(curves: Sequence[Curve], cost: Cost, budget: float) -> list[int]:
    """Steps along the curves, the least loss per saving first, until the budget is met."""
    at = [0] * len(curves)
    now = cost(_removed(curves, at))
    while now > budget:
        steps = []
        for i, curve in enumerate(curves):
            for level in range(at[i] + 1, len(curve.levels)):
                saved = now - cost(_removed(curves, [*at[:i], level, *at[i + 1 :]]))
                lost = curve.losses[level] - curve.losses[at[i]]
                if saved > 0:
                    steps.append((lost / saved, i, level))
        if not steps:
            break
        _, i, level = min(steps)
        at[i] = level
        now = cost(_removed(curves, at))
    return _removed(curves, _trimmed(curves, at, cost, budget))


def exact(curves: Sequence[Curve], savings: Sequence[Sequence[float]], needed: float) -> list[int]:
    """The levels of least total loss whose savings add up to ``needed``; the highest levels if none do.

    From group to group it keeps the Pareto front of savings and losses, thinned to at most ``FRONT``
    points at equal steps of savings.
    """
    if needed <= 0:
        return [0] * len(curves)
    goal = needed * (1 - 1e-9)  # The order of summation changes the last digits.
    saved, lost = np.zeros(1), np.zeros(1)
    steps = []
    for curve, own in zip(curves, savings, strict=True):
        wide = np.minimum(np.add.outer(saved, np.asarray(own)).ravel(), goal)
        loss = np.add.outer(lost, np.asarray(curve.losses)).ravel()
        front = _front(wide, loss, goal)
        steps.append(np.divmod(front, len(own)))
        saved, lost = wide[front], loss[front]
    if saved[-1] < goal:
        return [curve.levels[-1] for curve in curves]
    at, levels = len(saved) - 1, []
    for sources, level in reversed(steps):
        levels.append(int(level[at]))
        at = int(sources[at])
    return _removed(curves, levels[::-1])


def _front(saved: np.ndarray, lost: np.ndarray, goal: float) -> np.ndarray:
    """Indices of the Pareto front (no other point saves as much for less loss), ascending by savings."""
    order = np.lexsort((lost, -saved))
    least = np.minimum.accumulate(lost[order])
    front = order[np.concatenate([[True], lost[order][1:] < least[:-1]])][::-1]
    if len(front) > FRONT:
        _, first = np.unique((saved[front] / goal * FRONT).astype(np.int64), return_index=True)
        front = front[first]
    return np.asarray(front)


def evolutionary(
    curves: Sequence[Curve],
    cost: Cost,
    budget: float,
    fitness: Callable[[Sequence[int]], float],
    *,
    rounds: int,
    seed: int = 0,
) -> list[int]:
    """A (1 + 1) evolution strategy from the :func:`greedy` solution: each of ``rounds`` mutations restores
    units of one group and removes some of others until the budget is met again; it is kept if ``fitness``
    (less is better) improves."""
    rng = np.random.default_rng(seed)
    best = greedy(curves, cost, budget)
    value = fitness(best)
    for _ in range(rounds):
        at = [list(c.levels).index(g) for c, g in zip(curves, best, strict=True)]
        order = rng.permutation(len(curves))
        up = next((i for i in order if at[i] > 0), None)
        if up is None:
            break
        at[up] -= 1
        for i in (j for j in order if j != up):
            if cost(_removed(curves, at)) <= budget:
                break
            at[i] = min(at[i] + 1, len(curves[i].levels) - 1)
        candidate = _removed(curves, at)
        if cost(candidate) <= budget and (own := fitness(candidate)) < value:
            best, value = candidate, own
    return best


def _share(levels: Sequence[Sequence[int]], units: Sequence[int], share: float) -> list[int]:
    return [
        max((level for level in own if level <= share * n + 1e-9), default=0)
        for own, n in zip(levels, units, strict=True)
    ]


def _removed(curves: Sequence[Curve], at: Sequence[int]) -> list[int]:
    return [curve.levels[i] for curve, i in zip(curves, at, strict=True)]


def _trimmed(curves: Sequence[Curve], at: list[int], cost: Cost, budget: float) -> list[int]:
    """Undoes what the budget does not require, since the last step may overshoot it: the largest loss
    first."""
    for i in sorted(range(len(at)), key=lambda i: -curves[i].losses[at[i]]):
        while at[i] and cost(_removed(curves, [*at[:i], at[i] - 1, *at[i + 1 :]])) <= budget:
            at[i] -= 1
    return at
