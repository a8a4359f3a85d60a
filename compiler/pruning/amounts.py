"""How many units of which group go: a share or a threshold of each, or a budget that is shared out.

A budget goes by curves, the loss of a group at each of its levels (``tersor.pruning.budgets``).  What an
order says of a loss is relative to the group itself; one trial cut of each group tells what that does to the
model's outputs, and scales its curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tersor.ir import Graph, Value
from tersor.numerics import allocation
from tersor.pipeline import Context, Feeds
from tersor.pruning import budgets
from tersor.pruning.pruned_outputs import OutputLoss
from tersor.pruning.ranking import Ranking
from tersor.pruning.reconstruction import Moments, node_producing
from tersor.pruning.unit_order import Reader, readers
from tersor.statistics.kept_outputs import KeptOutputs
from tersor.statistics.products import matrices, set_matrices
from tersor.statistics.scores import with_scores
from tersor.statistics.thinning import sample_count, thinned
from tersor.structure import AxisGroup, joined, slice_graph
from tersor.structure.costs import Measure, carried, costs, macs, parameters

TOLD = (
    256  # Samples that tell what a trial cut costs, some of every batch; of many, a fifth of all.
)
MIDDLE = 0.375  # The share of a group that is cut once to learn how much the outputs depend on it.
GOALS = 4  # How often a goal in time is set anew.
NEAR = 0.02  # A share of a budget in time that noise makes.
ROUNDS = 24  # Mutations of the evolutionary search.


@dataclass(frozen=True)
class Budget:
    """What stays.

    Attributes:
        kind: ``macs``, ``parameters`` or ``latency``.
        share: of it, above 0 and at most 1.
        allocation: ``uniform``, ``global``, ``greedy``, ``exact`` or ``evolutionary``.
    """

    kind: str
    share: float
    allocation: str


def by_share(groups: Sequence[AxisGroup], ratio: float) -> list[int]:
    """So many units of each group as ``ratio`` is, leaving one."""
    return [min(round(ratio * g.units), len(g.free), g.units - 1) for g in groups]


def by_threshold(groups: Sequence[AxisGroup], ranking: Ranking, threshold: float) -> list[int]:
    """How many units of each group are worth less than the mean of the group times ``threshold``."""
    scores = ranking.scores(groups)
    below = [
        int((s[g.free] < threshold * float(s.mean())).sum())
        for g, s in zip(groups, scores, strict=True)
    ]
    return [min(count, g.units - 1) for count, g in zip(below, groups, strict=True)]


def by_budget(groups: Sequence[AxisGroup], ranking: Ranking, budget: Budget) -> list[int]:
    """How many units of each group go; notes where the budget is not met."""
    return _Sharing(groups, ranking, budget).amounts()


class _Sharing:
    """Shares out one budget among the groups of an uncut graph."""

    def __init__(self, groups: Sequence[AxisGroup], ranking: Ranking, budget: Budget) -> None:
        self.groups, self.ranking, self.budget = groups, ranking, budget
        self.graph, self.context = ranking.graph, ranking.context
        # The last one looks at what it cut, and so needs what the ranking saw of this graph.
        anew = budget.allocation == "evolutionary"
        self.orders = (
            ranking.orders(groups)
            if anew
            else ranking.context.remember("orders", lambda: ranking.orders(groups))
        )
        self.at = [budgets.levels(g) for g in groups]

    def amounts(self) -> list[int]:
        if self.budget.kind == "latency":
            return self._by_latency()
        sizes = budgets.largest_sizes(self.graph, self.context.latency)
        measure: Measure = macs(sizes) if self.budget.kind == "macs" else parameters
        counted = costs(self.graph, self.groups, measure)
        cost, budget = budgets.by_count(counted), self.budget.share * counted.total
        gone = self._shared_out(cost, budget)
        self.context.report.left = cost(gone) / counted.total
        if cost(gone) > budget * 1.001:
            self._tell_missed(cost(gone) / counted.total)
        return gone

    def _tell_missed(self, left: float) -> None:
        why = f"the budget is not met: {left:.3f} is the least that is left"
        self.context.remark(why)
        self.context.report.missed = why

    def _by_latency(self) -> list[int]:
        """Savings add up, but for groups that meet in a layer, and for noise: what a choice takes in all is
        measured, and the goal is set anew by what it missed."""
        latency = self.context.latency
        assert latency is not None
        whole, savings = self.context.remember(
            "savings",
            lambda: budgets.by_latency(
                self.graph, self.groups, self.at, latency, self.context.progress
            ),
        )
        goal = budget = whole * self.budget.share
        found: list[tuple[float, list[int]]] = []
        for i in range(GOALS):
            gone = self._for_goal(whole, savings, goal)
            if any(gone == known for _, known in found):
                break
            self.context.progress(i, GOALS, "measuring what they save together")
            taken = budgets.milliseconds(self.graph, self.groups, gone, latency)
            found.append((taken, gone))
            if abs(taken - budget) <= NEAR * budget:
                break
            goal += budget - taken
        meeting = [one for one in found if one[0] <= budget * (1 + NEAR)]
        taken, gone = max(meeting) if meeting else min(found)
        self.context.remark(
            f"milliseconds: {taken:.4g} of {whole:.4g} ({taken / whole:.1%}), before readers are fitted"
        )
        self.context.report.left = taken / whole
        if not meeting:
            self._tell_missed(taken / whole)
        return gone

    def _for_goal(self, whole: float, savings: Sequence[Sequence[float]], goal: float) -> list[int]:
        """As if savings added up."""
        table = [dict(zip(own, s, strict=True)) for own, s in zip(self.at, savings, strict=True)]
        if self.budget.allocation == "exact":
            own = [[t[g] for g in c.levels] for t, c in zip(table, self._curves, strict=True)]
            return allocation.exact(self._curves, own, whole - goal)
        return self._shared_out(
            lambda gone: whole - sum(saved[g] for saved, g in zip(table, gone, strict=True)), goal
        )

    def _shared_out(self, cost: allocation.Cost, budget: float) -> list[int]:
        if self.budget.allocation == "uniform":
            return allocation.uniform(self.at, [g.units for g in self.groups], cost, budget)
        if self.budget.allocation == "evolutionary":
            return allocation.evolutionary(
                self._curves, cost, budget, self._loss, rounds=ROUNDS, seed=self.ranking.seed
            )
        return allocation.greedy(self._curves, cost, budget)

    # -- what cuts cost ------------------------------------------------------------------------------

    @cached_property
    def _curves(self) -> list[allocation.Curve]:
        scales = [1.0] * len(self.groups)
        if self.budget.allocation != "global":
            scales = self.context.remember(
                "scales", lambda: [self._sensitivity(i) for i in range(len(self.groups))]
            )
        if not any(scales):
            scales = [1.0] * len(scales)  # No output is a float, or none depends on any group.
        return [
            budgets.curve(order, own, scale)
            for order, own, scale in zip(self.orders, self.at, scales, strict=True)
        ]

    def _sensitivity(self, i: int) -> float:
        """What the outputs lose for each part that the group itself loses, by one cut of it."""
        group, order = self.groups[i], self.orders[i]
        self.context.progress(i, len(self.groups), f"what {group.name} does to the outputs")
        usable = [g for g in self.at[i] if 0 < g <= len(order.units)]
        if not usable:
            return 1.0
        level = min(usable, key=lambda g: abs(g - MIDDLE * group.units))
        own = float(order.losses[level - 1])
        if own <= 0:
            return 1.0
        counts = [0] * len(self.groups)
        counts[i] = level
        scale = self._loss(counts) / own
        return scale if np.isfinite(scale) else 1.0

    def _loss(self, gone: Sequence[int]) -> float:
        """What outputs and scores lose on some samples of all batches, with the first units of each order
        gone and their readers fitted as the uncut model's activations have it."""
        assert self.context.evaluate is not None
        copy = self.graph.copy()
        held = list(zip(self.groups, self.orders, gone, strict=True))
        cut = joined(*(g.positions(order.units[:count].tolist()) for g, order, count in held))
        # Once each: heads, and the lanes of them, have one reader.
        layers = {
            (r.node, r.weight): r for group, _, count in held if count for r in readers(group)
        }
        sliced = carried(cut, copy)
        for reader in layers.values():
            made = self._refit(copy, reader, reader.inputs_at(cut))
            if made is not None and reader.outputs in cut:
                sliced[made, len(made.tensor.shape) - 1] = reader.biases_at(cut)
        slice_graph(copy, sliced)
        evaluate, (kept, loss) = self.context.evaluate, self._wanted
        copy, _ = with_scores(copy)
        return loss((wanted, evaluate(copy, feed)) for feed, wanted in kept)

    @cached_property
    def _wanted(self) -> tuple[KeptOutputs, OutputLoss]:
        """Outputs of the uncut model."""
        assert self.context.evaluate is not None
        whole, _ = with_scores(self.graph)
        told = _told(self.graph, self.context)
        kept = KeptOutputs(whole, told, self.context.evaluate)
        return kept, OutputLoss(outputs for _, outputs in kept)

    def _refit(self, copy: Graph, reader: Reader, gone: np.ndarray) -> Value | None:
        """A layer of ``copy`` without the inputs ``gone``, the others fitted; before the copy is cut. The
        bias, where there was none."""
        gram = self.ranking.seen.get(reader.rows)
        if gram is None or not reader.alone:
            return None
        matrix, bias = matrices(reader.node, reader.weight)
        kept = np.setdiff1d(np.arange(len(matrix)), gone)
        seen = Moments.of_layer(gram, matrix, bias)
        fitted = np.zeros_like(matrix)
        fitted[kept], shift = seen.solve(matrix, kept, self.ranking.damping, biased=True)
        return set_matrices(
            node_producing(copy, reader.node.output.name), reader.weight, fitted, shift
        )


def _told(graph: Graph, context: Context) -> Feeds:
    """What losses are told on."""
    feeds, evaluate = context.calibration, context.evaluate
    count = sample_count(graph, feeds)
    if evaluate is None or count is None:
        return feeds
    return thinned(graph, feeds, max(TOLD, count // 5), evaluate)
