"""Allocation of a budget against exhaustive search on small tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from tersor.numerics.allocation import Curve, evolutionary, exact, greedy, uniform


def table(seed: int, groups: int = 4) -> tuple[list[Curve], list[list[float]]]:
    """Curves of 4 levels (units gone 0, 2, 4, 6), losses that grow, and savings in whole numbers."""
    rng = np.random.default_rng(seed)
    curves, savings = [], []
    for _ in range(groups):
        losses = np.concatenate([[0], np.cumsum(rng.random(3))])
        curves.append(Curve([0, 2, 4, 6], losses.tolist()))
        saved = np.concatenate([[0], np.cumsum(rng.integers(1, 30, 3))])
        savings.append([float(s) for s in saved])
    return curves, savings


def saving(gone: Sequence[int], savings: Sequence[Sequence[float]]) -> float:
    return sum(saved[g // 2] for saved, g in zip(savings, gone, strict=True))


def lost(gone: Sequence[int], curves: Sequence[Curve]) -> float:
    return sum(c.losses[g // 2] for c, g in zip(curves, gone, strict=True))


def least(curves: Sequence[Curve], savings: Sequence[Sequence[float]], needed: float) -> float:
    """The least loss of all choices that save what is needed."""
    every = product(*(c.levels for c in curves))
    return min(lost(g, curves) for g in every if saving(g, savings) >= needed)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 1.0])
def test_exact_is_the_best_and_the_others_are_within_the_budget(seed: int, share: float) -> None:
    curves, savings = table(seed)
    most = sum(s[-1] for s in savings)
    needed = float(int(share * most))
    best = least(curves, savings, needed)
    chosen = exact(curves, savings, needed)
    assert saving(chosen, savings) >= needed
    assert lost(chosen, curves) == pytest.approx(best)

    def cost(gone: Sequence[int]) -> float:
        return most - saving(gone, savings)

    fast = greedy(curves, cost, most - needed)
    assert saving(fast, savings) >= needed
    assert best <= lost(fast, curves) + 1e-12
    evolved = evolutionary(
        curves, cost, most - needed, lambda g: lost(g, curves), rounds=40, seed=seed
    )
    assert saving(evolved, savings) >= needed
    assert best - 1e-12 <= lost(evolved, curves) <= lost(fast, curves)


def test_mutations_improve_on_greedy() -> None:
    better = 0
    for seed in range(12):
        curves, savings = table(seed)
        most = sum(s[-1] for s in savings)
        chosen = [
            lost(g, curves)
            for g in (
                greedy(curves, lambda g: most - saving(g, savings), most / 2),  # noqa: B023
                evolutionary(
                    curves,
                    lambda g: most - saving(g, savings),  # noqa: B023
                    most / 2,
                    lambda g: lost(g, curves),  # noqa: B023
                    rounds=100,
                ),
            )
        ]
        better += chosen[1] < chosen[0] - 1e-9
    assert better > 0


def test_exact_reaches_savings_despite_rounding() -> None:
    curves = [Curve([0, 1], [0, 1.0])] * 3 + [Curve([0, 1], [0, 9.0])]
    # 0.1 + 0.1 + 0.1 is what is needed, and not quite 0.3.
    assert exact(curves, [[0, 0.1]] * 4, 0.1 + 0.1 + 0.1) == [1, 1, 1, 0]


@pytest.mark.parametrize(("needed", "gone"), [(0.0, [0, 0]), (-1.0, [0, 0]), (99.0, [6, 6])])
def test_exact_if_nothing_or_too_much_is_needed(needed: float, gone: list[int]) -> None:
    curves, savings = table(0, groups=2)
    assert exact(curves, savings, needed) == gone


def test_greedy_if_nothing_or_too_much_is_needed() -> None:
    curves, savings = table(0)
    most = sum(s[-1] for s in savings)
    assert greedy(curves, lambda g: most + 1 - saving(g, savings), 0.5) == [6] * 4
    assert greedy(curves, lambda g: most - saving(g, savings), most) == [0] * 4
    assert greedy([], lambda g: 1.0, 0.5) == []


def test_greedy_steps_over_a_level_that_saves_nothing_by_itself() -> None:
    curve = Curve([0, 1, 2], [0.0, 0.1, 0.2])
    assert greedy([curve], lambda g: {0: 10.0, 1: 10.0, 2: 5.0}[g[0]], 6) == [2]


def test_greedy_undoes_steps_that_the_last_step_makes_needless() -> None:
    curves = [Curve([0, 1], [0.0, 0.1]), Curve([0, 1], [0.0, 5.0])]
    # The first is the cheaper for what it saves, but does not do; with the second it is not needed.
    assert greedy(curves, lambda g: 10 - g[0] - 6 * g[1], 4) == [0, 1]


def test_evolution_returns_the_greedy_result_if_nothing_can_change() -> None:
    curves = [Curve([0], [0.0]), Curve([0], [0.0])]
    assert evolutionary(curves, lambda g: 1.0, 0.5, lambda g: 0.0, rounds=5) == [0, 0]


@pytest.mark.parametrize("budget", [90, 60, 30, 5])
def test_uniform_is_the_smallest_share_that_fits(budget: float) -> None:
    levels, units = [[0, 4, 8, 12, 16, 20], [0, 1, 2, 3]], [24, 4]

    def cost(gone: Sequence[int]) -> float:
        return 100 - 3 * gone[0] - 5 * gone[1]

    chosen = uniform(levels, units, cost, budget)
    shares = [g / 24 for g in levels[0]] + [g / 4 for g in levels[1]]
    every = [
        [max(x for x in own if x <= s * n + 1e-9) for own, n in zip(levels, units, strict=True)]
        for s in sorted(shares)
    ]
    fitting = [g for g in every if cost(g) <= budget]
    assert chosen == (fitting[0] if fitting else [20, 3])


def test_uniform_is_monotonic_in_the_budget() -> None:
    levels, units = [list(range(16)), list(range(0, 64, 16))], [16, 64]
    chosen = [
        uniform(levels, units, lambda g: 80.0 - sum(g), budget) for budget in (80, 70, 50, 30, 0)
    ]
    assert chosen == sorted(chosen)
    assert chosen[-1] == [15, 48]


@pytest.mark.parametrize("front", [8, 64])
def test_exact_with_a_small_front_keeps_the_budget(
    front: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tersor.numerics.allocation.FRONT", front)
    for seed in range(6):
        curves, savings = table(seed, groups=6)
        needed = 0.5 * sum(s[-1] for s in savings)
        chosen = exact(curves, savings, needed)
        best = least(curves, savings, needed)
        assert saving(chosen, savings) >= needed
        assert best <= lost(chosen, curves) <= best * (1 + 10 / front)
