"""How many units go of which group: a budget shared out among groups.

Each group has a curve: levels (numbers of units gone, ascending from 0) and what is lost at each.  Sought
are levels whose cost is within the budget and whose losses add up to the least.

    uniform         the same share of every group, the least that fits the budget
    greedy          from nothing gone, again and again the step that loses the least for what it saves
    exact           the least sum there is, where savings add up: dynamic programming (a knapsack)
    evolutionary    mutations of what greedy found, by measured fitness
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Cost = Callable[[Sequence[int]], float]
"""Of the whole model, with so many units of each group gone."""
FRONT = 4000  # Choices that the exact search carries on.


@dataclass(frozen=True, eq=False)
class Curve:
    """A group's ``levels`` (units gone, ascending, the first 0) and the ``losses`` there."""

    levels: Sequence[int]
    losses: Sequence[float]


def uniform(
    most: Sequence[Sequence[int]], units: Sequence[int], cost: Cost, budget: float
) -> list[int]:
    """The same share of every group, rounded to the group's levels.

    Args:
        most: the levels of each group.
        units: how many units each group has.

    Returns:
        Units gone; as many as there are levels for, where even that is over the budget.
    """
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(_share(most, units, middle)) > budget else (low, middle)
    return _share(most, units, high)


def greedy(curves: Sequence[Curve], cost: Cost, budget: float) -> list[int]:
    """Steps along the curves, the cheapest loss per saving first, until the budget is met."""
    at = [0] * len(curves)
    now = cost(_gone(curves, at))
    while now > budget:
        steps = []
        for i, curve in enumerate(curves):
            for level in range(at[i] + 1, len(curve.levels)):
                saved = now - cost(_gone(curves, [*at[:i], level, *at[i + 1 :]]))
                lost = curve.losses[level] - curve.losses[at[i]]
                if saved > 0:
                    steps.append((lost / saved, i, level))
        if not steps:
            break
        _, i, level = min(steps)
        at[i] = level
        now = cost(_gone(curves, at))
    return _gone(curves, _trimmed(curves, at, cost, budget))


def exact(curves: Sequence[Curve], savings: Sequence[Sequence[float]], needed: float) -> list[int]:
    """The least sum of losses at which savings, which add up, reach ``needed``; all that can go where
    they do not reach it.

    From group to group only those choices are carried on than which none saves as much for less loss;
    where these are more than ``FRONT``, the best of as many equal steps of what is saved.
    """
    if needed <= 0:
        return [0] * len(curves)
    goal = needed * (1 - 1e-9)  # Sums in another order differ in the last digits.
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
    return _gone(curves, levels[::-1])


def _front(saved: np.ndarray, lost: np.ndarray, goal: float) -> np.ndarray:
    """Indices of what none else saves as much as for no more loss, ascending by savings."""
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
    """From what :func:`greedy` finds: one group up, others down until the budget is met again; kept
    where ``fitness`` (less is better) says so. A (1 + 1) evolution strategy, ``rounds`` mutations."""
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
            if cost(_gone(curves, at)) <= budget:
                break
            at[i] = min(at[i] + 1, len(curves[i].levels) - 1)
        candidate = _gone(curves, at)
        if cost(candidate) <= budget and (found := fitness(candidate)) < value:
            best, value = candidate, found
    return best


def _share(most: Sequence[Sequence[int]], units: Sequence[int], share: float) -> list[int]:
    return [
        max((x for x in levels if x <= share * n + 1e-9), default=0)
        for levels, n in zip(most, units, strict=True)
    ]


def _gone(curves: Sequence[Curve], at: Sequence[int]) -> list[int]:
    return [curve.levels[i] for curve, i in zip(curves, at, strict=True)]


def _trimmed(curves: Sequence[Curve], at: list[int], cost: Cost, budget: float) -> list[int]:
    """The last step may have gone further than it had to: back where the budget allows, the dearest
    loss first."""
    for i in sorted(range(len(at)), key=lambda i: -curves[i].losses[at[i]]):
        while at[i] and cost(_gone(curves, [*at[:i], at[i] - 1, *at[i + 1 :]])) <= budget:
            at[i] -= 1
    return at
