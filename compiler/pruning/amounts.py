"""How many units to remove from each group: by a share, by a threshold, or within a budget for all groups.

A budget is allocated by curves: the loss of a group at each of its levels (``tersor.pruning.budgets``).
Losses of an order are relative to its group, so one trial cut per group measures what they do to the model's
outputs, and scales the curve.
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
from tersor.pruning.unit_order import Order, Reader, readers
from tersor.statistics.kept_outputs import KeptOutputs
from tersor.statistics.products import matrices, set_matrices
from tersor.statistics.scores import with_scores
from tersor.statistics.thinning import sample_count, thinned
from tersor.structure import AxisGroup, slice_graph, union
from tersor.structure.costs import Measure, costs, cut_of_copy, macs, parameters

TRIAL_SAMPLES = 256  # To measure trial cuts on, at least; a fifth of all if that is more.
TRIAL_SHARE = 0.375  # Of a group's units, removed in its trial cut.
LATENCY_ROUNDS = 4  # Corrections of the target until a latency budget is met.
LATENCY_NOISE = 0.02  # Of a latency budget.
EVOLUTION_ROUNDS = 24  # Mutations of the evolutionary search.


@dataclass(frozen=True)
class Budget:
    """What the pruned model may cost.

    Attributes:
        kind: ``macs``, ``parameters`` or ``latency``.
        share: of the whole model's, above 0 and at most 1.
        allocation: ``uniform``, ``global``, ``greedy``, ``exact`` or ``evolutionary``.
    """

    kind: str
    share: float
    allocation: str


def by_share(groups: Sequence[AxisGroup], ratio: float) -> list[int]:
    """``ratio`` of each group's units, leaving one at least."""
    return [min(round(ratio * g.units), len(g.free), g.units - 1) for g in groups]


def by_threshold(groups: Sequence[AxisGroup], ranking: Ranking, threshold: float) -> list[int]:
    """The units of each group that score below ``threshold`` times the group's mean, leaving one at least."""
    scores = ranking.scores(groups)
    below = [
        int((s[g.free] < threshold * float(s.mean())).sum())
        for g, s in zip(groups, scores, strict=True)
    ]
    return [min(count, g.units - 1) for count, g in zip(below, groups, strict=True)]


def by_budget(groups: Sequence[AxisGroup], ranking: Ranking, budget: Budget) -> list[int]:
    """The number of units to remove from each group; reports a budget that cannot be met."""
    return _Allocation(groups, ranking, budget).amounts()


class _Allocation:
    """Allocates one budget to the groups of an uncut graph."""

    def __init__(self, groups: Sequence[AxisGroup], ranking: Ranking, budget: Budget) -> None:
        self.groups, self.ranking, self.budget = groups, ranking, budget
        self.graph, self.context = ranking.graph, ranking.context
        self.at = [budgets.levels(g) for g in groups]

    def amounts(self) -> list[int]:
        if self.budget.kind == "latency":
            return self._by_latency()
        sizes = budgets.largest_sizes(self.graph, self.context.latency)
        measure: Measure = macs(sizes) if self.budget.kind == "macs" else parameters
        counted = costs(self.graph, self.groups, measure)
        cost, budget = counted.of, self.budget.share * counted.total
        gone = self._allocate(cost, budget)
        self.context.report.remaining = cost(gone) / counted.total
        if cost(gone) > budget * 1.001:
            self._report_shortfall(cost(gone) / counted.total)
        return gone

    def _report_shortfall(self, remaining: float) -> None:
        why = f"the budget is not met: {remaining:.3f} is the least that can be left"
        self.context.remark(why)
        self.context.report.shortfall = why

    def _by_latency(self) -> list[int]:
        """Savings add up except for noise and for groups that share a layer. So the whole choice is measured,
        and the target corrected by its error."""
        latency = self.context.latency
        assert latency is not None
        whole, savings = self.context.remember(
            "savings",
            lambda: budgets.by_latency(
                self.graph, self.groups, self.at, latency, self.context.progress
            ),
        )
        target = budget = whole * self.budget.share
        measured: list[tuple[float, list[int]]] = []
        for i in range(LATENCY_ROUNDS):
            gone = self._for_target(whole, savings, target)
            if any(gone == known for _, known in measured):
                break
            self.context.progress(i, LATENCY_ROUNDS, "measuring all cuts together")
            taken = budgets.milliseconds(self.graph, self.groups, gone, latency)
            measured.append((taken, gone))
            if abs(taken - budget) <= LATENCY_NOISE * budget:
                break
            target += budget - taken
        meeting = [one for one in measured if one[0] <= budget * (1 + LATENCY_NOISE)]
        taken, gone = max(meeting) if meeting else min(measured)
        self.context.remark(
            f"milliseconds: {taken:.4g} of {whole:.4g} ({taken / whole:.1%}), before readers are refitted"
        )
        self.context.report.remaining = taken / whole
        if not meeting:
            self._report_shortfall(taken / whole)
        return gone

    def _for_target(
        self, whole: float, savings: Sequence[Sequence[float]], target: float
    ) -> list[int]:
        """As if savings added up."""
        table = [dict(zip(own, s, strict=True)) for own, s in zip(self.at, savings, strict=True)]
        if self.budget.allocation == "exact":
            own = [[t[g] for g in c.levels] for t, c in zip(table, self._curves, strict=True)]
            return allocation.exact(self._curves, own, whole - target)
        return self._allocate(
            lambda gone: whole - sum(saved[g] for saved, g in zip(table, gone, strict=True)), target
        )

    def _allocate(self, cost: allocation.Cost, budget: float) -> list[int]:
        if self.budget.allocation == "uniform":
            return allocation.uniform(self.at, [g.units for g in self.groups], cost, budget)
        if self.budget.allocation == "evolutionary":
            return allocation.evolutionary(
                self._curves,
                cost,
                budget,
                self._loss,
                rounds=EVOLUTION_ROUNDS,
                seed=self.ranking.seed,
            )
        return allocation.greedy(self._curves, cost, budget)

    # -- losses ------------------------------------------------------------------------------------

    @cached_property
    def orders(self) -> list[Order]:
        """Orders of all units of each group; a uniform allocation needs none."""
        # The evolutionary search refits trial cuts, which needs the ranking's own moments of this graph.
        if self.budget.allocation == "evolutionary":
            return self.ranking.orders(self.groups)
        return self.context.remember("orders", lambda: self.ranking.orders(self.groups))

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
        """Loss of the outputs per loss of the group itself, measured by a trial cut."""
        group, order = self.groups[i], self.orders[i]
        self.context.progress(
            i, len(self.groups), f"measuring how the outputs depend on {group.name}"
        )
        usable = [g for g in self.at[i] if 0 < g <= len(order.units)]
        if not usable:
            return 1.0
        level = min(usable, key=lambda g: abs(g - TRIAL_SHARE * group.units))
        own = float(order.losses[level - 1])
        if own <= 0:
            return 1.0
        counts = [0] * len(self.groups)
        counts[i] = level
        scale = self._loss(counts) / own
        return scale if np.isfinite(scale) else 1.0

    def _loss(self, gone: Sequence[int]) -> float:
        """Loss of outputs and scores on the trial samples if the first units of each order are removed and
        their readers refitted by the uncut model's activations."""
        assert self.context.evaluate is not None
        copy = self.graph.copy()
        cuts = list(zip(self.groups, self.orders, gone, strict=True))
        cut = union(*(g.positions(order.units[:count].tolist()) for g, order, count in cuts))
        # Heads and their lanes share a reader: refit it once.
        layers = {
            (r.node, r.weight): r for group, _, count in cuts if count for r in readers(group)
        }
        sliced = cut_of_copy(cut, copy)
        for reader in layers.values():
            new_bias = self._refit(copy, reader, reader.inputs_at(cut))
            if new_bias is not None and reader.outputs in cut:
                sliced[new_bias, len(new_bias.tensor.shape) - 1] = reader.biases_at(cut)
        slice_graph(copy, sliced)
        evaluate, (kept, loss) = self.context.evaluate, self._wanted
        copy, _ = with_scores(copy)
        return loss((wanted, evaluate(copy, feed)) for feed, wanted in kept)

    @cached_property
    def _wanted(self) -> tuple[KeptOutputs, OutputLoss]:
        """Outputs of the uncut model, and the loss relative to them."""
        assert self.context.evaluate is not None
        whole, _ = with_scores(self.graph)
        kept = KeptOutputs(whole, _trial_feeds(self.graph, self.context), self.context.evaluate)
        return kept, OutputLoss(outputs for _, outputs in kept)

    def _refit(self, copy: Graph, reader: Reader, gone: np.ndarray) -> Value | None:
        """Refits a layer of ``copy``, not yet cut, to do without the inputs ``gone``. Returns its bias if
        that is new."""
        gram = self.ranking.seen.get(reader.rows)
        if gram is None or not reader.sole:
            return None
        matrix, bias = matrices(reader.node, reader.weight)
        kept = np.setdiff1d(np.arange(len(matrix)), gone)
        seen = Moments.of_layer(gram, matrix, bias)
        fitted = np.zeros_like(matrix)
        fitted[kept], shift = seen.solve(matrix, kept, self.ranking.damping, biased=True)
        return set_matrices(
            node_producing(copy, reader.node.output.name), reader.weight, fitted, shift
        )


def _trial_feeds(graph: Graph, context: Context) -> Feeds:
    """Calibration samples, some of every batch, to measure trial cuts on."""
    feeds, evaluate = context.calibration, context.evaluate
    count = sample_count(graph, feeds)
    if evaluate is None or count is None:
        return feeds
    return thinned(graph, feeds, max(TRIAL_SAMPLES, count // 5), evaluate)
