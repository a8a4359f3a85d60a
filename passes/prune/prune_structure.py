"""Structured pruning: heads, neurons, channels, hidden units go, and every runtime is faster for it.

Three questions, each answered in one place.  What goes together: ``tersor.structure``, by the op table's
ties.  How many units of which group go: a share, or a budget that ``tersor.analysis.allocation`` divides by
curves of loss.  Which: ``tersor.analysis.unit_order`` or a criterion of ``tersor.analysis.importance``.

With calibration, groups go one after the other in the order of the graph.  Each sees the activations that
the cut before it left, and the layers that read it are fitted anew to what the uncut model computes there
(``tersor.analysis.reconstruction``), so that errors do not add up:

    y = x W, x of 4 neurons     cut neuron 3     y ~ x[0,1,2] V + c,   V, c by least squares
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tersor.analysis import allocation, budgets
from tersor.analysis.gram import Gram, grams
from tersor.analysis.importance import CRITERIA, importance, refusal
from tersor.analysis.pruned_outputs import output_loss
from tersor.analysis.reconstruction import (
    Moments,
    bias_operand,
    matrices,
    moments,
    node_making,
    set_matrices,
)
from tersor.analysis.scopes import chosen
from tersor.analysis.unit_order import (
    Order,
    Reader,
    by_energy,
    by_least_squares,
    equal_shares,
    layer_of,
    met,
    only_met,
    readers,
)
from tersor.errors import InvalidOption, suggest
from tersor.ir import Graph, Value
from tersor.pipeline import LOSSY, Context, Feeds, Pass
from tersor.structure import AxisGroup, axis_groups, join_vectors, joined, part_vectors, slice_graph
from tersor.structure.costs import Measure, carried, costs, macs, parameters
from tersor.structure.tracking import (
    Tracked,
    follow_all,
    positions_left,
    spans,
    tie_vector,
)

TOLD = 5  # One in so many calibration batches tells what a trial cut costs.
MIDDLE = 0.375  # The share of a group that is cut once to learn how much the outputs depend on it.
ROUNDS = 24  # Mutations of the evolutionary search.


@dataclass(frozen=True)
class PruneStructure(Pass):
    """Options, of which one says how much goes (by default nothing):

    ratio: the share of every group's units that goes.
    threshold: units that are worth less go, by ``criterion``, where 1 is the mean of a group.
    macs: the share of the multiply-adds that stays, at the largest of the sizes that are measured.
    parameters: the share of the weights that stays.
    latency: the share of the measured time that stays, at the same sizes.

    criterion: what a unit is worth: ``obs`` (least squares), or one of ``tersor.analysis.importance``.
    allocation: how a budget is shared out: ``uniform``, the same share of every group; ``global``, by the
        criterion's scores alone; ``greedy``, by losses that are scaled by what each group does to the
        outputs; ``exact``, the same by dynamic programming, for latency; ``evolutionary``, greedy, then
        mutations by measured loss.
    reconstruct: fit the layers that read a group anew.
    inexact: also groups whose removal changes what a norm sees (the channels of a residual stream).
    scopes: patterns of groups' names (``encoder.layer.0.*``); none: all.
    ignored_scopes: patterns of groups that stay as they are.
    damping: added to the diagonals of least squares, relative to their mean.
    seed: of what is random.
    """

    keeps = LOSSY
    one_of = frozenset({"ratio", "threshold", "macs", "parameters", "latency"})
    ratio: float = 0.0
    threshold: float = 0.0
    macs: float = 1.0
    parameters: float = 1.0
    latency: float = 1.0
    criterion: str = "obs"
    allocation: Literal["uniform", "global", "greedy", "exact", "evolutionary"] = "greedy"
    reconstruct: bool = True
    inexact: bool = False
    scopes: tuple[str, ...] = field(default=())
    ignored_scopes: tuple[str, ...] = field(default=())
    damping: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise InvalidOption(f"pass prune-structure: {problem}")

    def run(self, graph: Graph, context: Context) -> None:
        self._check_data(context)
        parted = part_vectors(graph)
        groups = self._wanted(graph, context)
        tracked = [Tracked(g) for g in groups]
        if not self._asked or not tracked:
            why = "nothing is asked to go" if tracked else "no group of units may be cut"
            context.report.notes.append(f"{why}: nothing is pruned")
            join_vectors(graph, parted)
            return
        before = _sizes_of(graph, context)
        work = _Work(self, graph, tracked, context)
        gone = work.amounts()
        work.prune(gone)
        join_vectors(graph, parted)
        _tell(tracked, before, _sizes_of(graph, context), context)

    # -- options -------------------------------------------------------------------------------------

    @property
    def _asked(self) -> list[str]:
        """Names of the options that say how much goes."""
        none = {"ratio": 0.0, "threshold": 0.0, "macs": 1.0, "parameters": 1.0, "latency": 1.0}
        return [name for name, value in none.items() if getattr(self, name) != value]

    def _problem(self) -> str:
        """What is wrong with the options; empty if nothing is."""
        if len(self._asked) > 1:
            return f"{' and '.join(self._asked)} are given, and one of them says how much goes"
        if not 0 <= self.ratio < 1:
            return f"ratio {self.ratio:g} is not from 0 to less than 1, where no unit is left"
        if not 0 <= self.threshold < float("inf"):
            return f"threshold {self.threshold:g} is not a number from 0"
        if not 0 < self.damping < float("inf"):
            return f"damping {self.damping:g} is not a number above 0"
        for name in ("macs", "parameters", "latency"):
            if not 0 < (share := getattr(self, name)) <= 1:
                return f"{name} {share:g} is not a share that stays, more than 0 and at most 1"
        if self.criterion != "obs" and self.criterion not in CRITERIA:
            known = ["obs", *CRITERIA]
            hint = suggest(self.criterion, known)
            return f"no criterion {self.criterion!r}{hint}; there are {', '.join(known)}"
        if self.allocation == "exact" and self._asked and self._asked != ["latency"]:
            return "allocation exact is for latency, whose savings add up"
        return ""

    def _check_data(self, context: Context) -> None:
        if "latency" in self._asked and context.latency is None:
            raise InvalidOption(
                f"{self.label} needs a target that can be measured here; macs=… counts instead"
            )
        if context.calibration and context.evaluate is not None:
            return
        needing = [
            text
            for needed, text in (
                (self.criterion == "obs", "criterion obs (without data there is l2)"),
                (self.reconstruct, "reconstruct (or reconstruct=false)"),
                (
                    self.allocation in ("greedy", "exact", "evolutionary") and self._is_budget,
                    f"allocation {self.allocation} (without data there are uniform and global)",
                ),
            )
            if needed
        ]
        if needing and self._asked:
            raise InvalidOption(f"{self.label} needs calibration, for {'; '.join(needing)}")

    @property
    def _is_budget(self) -> bool:
        return bool({"macs", "parameters", "latency"} & set(self._asked))

    # -- groups --------------------------------------------------------------------------------------

    def _wanted(self, graph: Graph, context: Context) -> list[AxisGroup]:
        """Groups to cut; why the others stay is told."""
        found = axis_groups(graph)
        wanted = chosen([_Named(g) for g in found], self.scopes, self.ignored_scopes, context)
        kept = []
        for group in (named.group for named in wanted):
            node = group.links[0].node
            broken = [v for _, v, _ in group.weights(summed=False) if not _finite(v)]
            broken += [v for _, v, _ in group.weights(summed=True) if not _finite(v)]
            if not group.free:
                reason = next(iter(group.pinned.values()))
                context.skip(node, f"the {group.units} units of {group.name} stay: {reason}")
            elif broken:
                context.skip(
                    node, f"the units of {group.name} stay: {broken[0].name} holds NaN or infinity"
                )
            elif group.inexact and not self.inexact and not only_met(group):
                context.skip(node, f"the units of {group.name} stay: {group.inexact}")
            else:
                kept.append(group)
        return kept


@dataclass(frozen=True)
class _Named:
    """A group as :func:`chosen` sees nodes."""

    group: AxisGroup

    @property
    def scope(self) -> str:
        return self.group.name

    @property
    def label(self) -> str:
        return self.group.name


class _Work:
    """One run of the pass over one graph."""

    def __init__(
        self, options: PruneStructure, graph: Graph, tracked: Sequence[Tracked], context: Context
    ) -> None:
        self.options, self.graph, self.tracked, self.context = options, graph, tracked, context
        self.original = graph.copy()
        self.fit, self.told = _divided(context.calibration)
        self.has_data = bool(context.calibration) and context.evaluate is not None
        self.orders: list[Order] = []
        self.seen: dict[Value, Gram] = {}
        self.wanted: list[Mapping[str, np.ndarray]] | None = None

    # -- how many ------------------------------------------------------------------------------------

    def amounts(self) -> list[int]:
        """Units that go, for each group."""
        groups = [t.group for t in self.tracked]
        if self.options.ratio:
            return [_whole(self.options.ratio, g) for g in groups]
        if self.options.threshold:
            scores, least = self._scores(groups), self.options.threshold
            return [_below(least, g, s) for g, s in zip(groups, scores, strict=True)]
        self.orders = self._orders(groups)
        at = [budgets.levels(g) for g in groups]
        if self.options.latency < 1:
            return self._by_latency(groups, at)
        sizes = budgets.largest_sizes(self.graph, self.context.latency)
        measure: Measure = macs(sizes) if self.options.macs < 1 else parameters
        counted = costs(self.graph, groups, measure)
        share = self.options.macs if self.options.macs < 1 else self.options.parameters
        return self._shared_out(groups, at, budgets.by_count(counted), share * counted.total)

    def _by_latency(self, groups: Sequence[AxisGroup], at: list[list[int]]) -> list[int]:
        assert self.context.latency is not None
        tell = self.context.progress
        whole, savings = budgets.by_latency(self.graph, groups, at, self.context.latency, tell)
        budget = whole * self.options.latency
        table = [dict(zip(own, saved, strict=True)) for own, saved in zip(at, savings, strict=True)]

        def cost(gone: Sequence[int]) -> float:
            return whole - sum(saved[g] for saved, g in zip(table, gone, strict=True))

        if self.options.allocation == "exact":
            curves = self._curves(groups, at)
            own = [[t[g] for g in c.levels] for t, c in zip(table, curves, strict=True)]
            return self._within(allocation.exact(curves, own, whole - budget), cost, budget)
        return self._shared_out(groups, at, cost, budget)

    def _shared_out(
        self, groups: Sequence[AxisGroup], at: list[list[int]], cost: allocation.Cost, budget: float
    ) -> list[int]:
        if self.options.allocation == "uniform":
            gone = allocation.uniform(at, [g.units for g in groups], cost, budget)
        elif self.options.allocation == "evolutionary":
            gone = allocation.evolutionary(
                self._curves(groups, at), cost, budget, self._loss, rounds=ROUNDS, seed=self.options.seed
            )  # fmt: skip
        else:
            gone = allocation.greedy(self._curves(groups, at), cost, budget)
        return self._within(gone, cost, budget)

    def _within(self, gone: list[int], cost: allocation.Cost, budget: float) -> list[int]:
        """``gone``; tells where the budget is not met."""
        if (left := cost(gone)) > budget * 1.001:
            self.context.report.notes.append(
                f"the budget is not met: {left / cost([0] * len(gone)):.3f} is the least that is left"
            )
        return gone

    def _curves(
        self, groups: Sequence[AxisGroup], at: Sequence[Sequence[int]]
    ) -> list[allocation.Curve]:
        scales = [1.0] * len(groups)
        if self.options.allocation != "global":
            scales = [self._sensitivity(i, list(own)) for i, own in enumerate(at)]
        if not any(scales):
            scales = [1.0] * len(groups)  # No output is a float, or none depends on any group.
        return [
            budgets.curve(order, own, scale)
            for order, own, scale in zip(self.orders, at, scales, strict=True)
        ]

    def _sensitivity(self, i: int, at: list[int]) -> float:
        """What the outputs lose for each part that the group itself loses, by one cut of it."""
        group, order = self.tracked[i].group, self.orders[i]
        self.context.progress(i, len(self.tracked), f"what {group.name} does to the outputs")
        usable = [g for g in at if 0 < g <= len(order.units)]
        if not usable:
            return 1.0
        level = min(usable, key=lambda g: abs(g - MIDDLE * group.units))
        own = float(order.losses[level - 1])
        if own <= 0:
            return 1.0
        counts = [0] * len(self.tracked)
        counts[i] = level
        scale = self._loss(counts) / own
        return scale if np.isfinite(scale) else 1.0

    def _loss(self, gone: Sequence[int]) -> float:
        """What the outputs lose on some of the batches, with the first units of each order gone and their
        readers fitted as the uncut model's activations have it."""
        assert self.context.evaluate is not None
        copy = self.graph.copy()
        held = list(zip([t.group for t in self.tracked], self.orders, gone, strict=True))
        cut = joined(*(g.positions(order.units[:count].tolist()) for g, order, count in held))
        # Once each: heads, and the lanes of them, have one reader.
        layers = {r.node: r for group, _, count in held if count for r in readers(group)}
        sliced = carried(cut, copy)
        for reader in layers.values():
            made = self._refit_copy(copy, reader, cut[_last(reader.x)])
            if made is not None and (columns := cut.get(_last(reader.node.output))) is not None:
                sliced[made, 0] = columns
        slice_graph(copy, sliced)
        if self.wanted is None:
            self.wanted = [self.context.evaluate(self.original, f) for f in self.told]
        got = [self.context.evaluate(copy, f) for f in self.told]
        return output_loss(self.wanted, got)

    def _refit_copy(self, copy: Graph, reader: Reader, gone: np.ndarray) -> Value | None:
        """A layer without the inputs ``gone``, the others fitted; before the copy is cut. The bias, where
        there was none."""
        gram = self.seen.get(reader.x)
        if gram is None or not reader.alone:
            return None
        _, xtx, matrix, _ = layer_of(reader, gram)
        kept = np.setdiff1d(np.arange(len(xtx)), gone)
        pull = self.options.damping * max(float(np.diagonal(xtx).mean()), 1e-30)
        own = xtx[np.ix_(kept, kept)] + pull * np.eye(len(kept))
        fitted = np.zeros_like(matrix)
        fitted[kept] = np.linalg.solve(own, xtx[kept] @ matrix + pull * matrix[kept])
        bias = matrices(reader.node, reader.weight)[1]
        shift = gram.mean @ (matrix - fitted)
        node = node_making(copy, reader.node.output.name)
        return set_matrices(node, reader.weight, fitted, shift if bias is None else bias + shift)

    # -- which ---------------------------------------------------------------------------------------

    def _orders(self, groups: Sequence[AxisGroup]) -> list[Order]:
        """Of each group, by the uncut model's activations."""
        self.seen = self._grams(groups)
        found: list[Order | None] = [None] * len(groups)
        for i, group in enumerate(groups):
            self.context.progress(i, len(groups), f"ordering {group.name}")
            found[i] = self._second_order(group)
        rest = [g for g, order in zip(groups, found, strict=True) if order is None]
        scores = dict(zip(map(id, rest), self._scores(rest), strict=True))
        return [
            order or Order.by_scores(scores[id(group)], group.free)
            for group, order in zip(groups, found, strict=True)
        ]

    def _grams(self, groups: Sequence[AxisGroup]) -> dict[Value, Gram]:
        if not self.has_data:
            return {}
        assert self.context.evaluate is not None
        values = {g: [r.x for r in readers(g)] + [v for v, _ in met(g)] for g in groups}
        every = [v for held in values.values() for v in held]
        found = grams(self.graph, every, self.fit, self.context.evaluate)
        sound = {v: g for v, g in found.items() if g.rows and np.isfinite(g.xtx).all()}
        for group, held in values.items():
            if broken := [found[v] for v in held if v not in sound]:
                why = (
                    "leads to NaN or infinity"
                    if broken[0].rows
                    else "has no rows of what reads them"
                )
                node = group.links[0].node
                self.context.skip(node, f"units of {group.name} go by l2: calibration {why}")
        return sound

    def _second_order(self, group: AxisGroup) -> Order | None:
        """By least squares or energy, where the criterion is that and the group allows it."""
        if self.options.criterion != "obs":
            return None
        energy = by_energy(group, self.seen)
        if energy is not None:
            return Order.by_scores(energy, group.free)
        layers = [(r, self.seen[r.x]) for r in readers(group) if r.x in self.seen]
        if not layers or not all(equal_shares(group, r) for r, _ in layers):
            return None
        entries = [layer_of(r, gram) for r, gram in layers]
        return by_least_squares(group, entries, self.options.damping)

    def _scores(self, groups: Sequence[AxisGroup], first: int = 0) -> list[np.ndarray]:
        """By the criterion; by l2 where that is least squares, or tells nothing of a group. ``first``: the
        number of the first of ``groups`` among all."""
        evaluate = self.context.evaluate if self.has_data else None
        feeds, found = self.context.calibration, []
        for i, group in enumerate(groups, first):
            criterion = "l2" if self.options.criterion == "obs" else self.options.criterion
            if reason := refusal(criterion, self.graph, group):
                self.context.skip(group.links[0].node, f"units of {group.name} go by l2: {reason}")
                criterion = "l2"
            seed = self.options.seed + i
            found += importance(criterion, self.graph, [group], feeds, evaluate, seed)
        return found

    # -- the cut -------------------------------------------------------------------------------------

    def prune(self, gone: Sequence[int]) -> None:
        """Cuts so many units of each group, in the order of the graph."""
        place = {node: i for i, node in enumerate(self.graph.walk())}
        groups = [t.group for t in self.tracked]
        last = [max(place[link.node] for link in g.links) for g in groups]
        for done, i in enumerate(np.argsort(last, kind="stable").tolist()):
            if not gone[i] or not self.context.may_rewrite():
                continue
            group = groups[i]
            self.context.progress(done, len(groups), f"pruning {gone[i]} units of {group.name}")
            self._cut(i, gone[i])
            self.context.rewrote()

    def _cut(self, i: int, count: int) -> None:
        group = self.tracked[i].group
        count = min(count, len(group.free), group.units - 1)
        layers = self._layers(group)
        units = self._order_now(i, layers, count).units[:count]
        fits = []
        for reader, seen in layers if self.options.reconstruct else ():
            if not reader.alone:
                self.context.skip(reader.node, "its weight has other readers: not fitted anew")
                continue
            before, _ = matrices(reader.node, reader.weight)
            kept = np.setdiff1d(np.arange(len(before)), reader.inputs(units))
            biased = bias_operand(reader.node) is not None
            fits.append((reader, *seen.solve(before, kept, self.options.damping, biased=biased)))
        cut = group.positions(units.tolist())
        slice_graph(self.graph, cut)
        follow_all(self.tracked, cut)
        for reader, matrix, bias in fits:
            made = set_matrices(reader.node, reader.weight, matrix, bias)
            if made is not None:
                tie_vector(self.tracked, made, _last(reader.node.output))

    def _layers(self, group: AxisGroup) -> list[tuple[Reader, Moments]]:
        """The group's readers with what they read now and what they are to make of it."""
        if not self.has_data or not (self.options.reconstruct or self.options.criterion == "obs"):
            return []
        assert self.context.evaluate is not None
        found = []
        for reader in readers(group):
            name = reader.node.output.name
            columns = positions_left(self.tracked, _last(reader.node.output))
            seen = moments(
                self.original, self.graph, name, self.fit, self.context.evaluate, columns
            )
            if seen is not None and seen.finite:
                found.append((reader, seen))
            else:
                why = "has no rows of it" if seen is None else "leads to NaN or infinity"
                self.context.skip(reader.node, f"calibration {why}: not fitted anew")
        return found

    def _order_now(self, i: int, layers: Sequence[tuple[Reader, Moments]], count: int) -> Order:
        """By the activations of the graph as it is, and, where that is asked for, by what is best for
        the targets."""
        group = self.tracked[i].group
        if self.options.criterion == "obs" and self.has_data:
            if layers and all(equal_shares(group, r) for r, _ in layers):
                entries = []
                for reader, seen in layers:
                    before, _ = matrices(reader.node, reader.weight)
                    every = np.arange(len(before))
                    weight, _ = seen.solve(before, every, self.options.damping, biased=True)
                    xtx = seen.centred()[0]
                    squares = float(np.einsum("ij,ij->", weight, xtx @ weight))
                    entries.append((reader, xtx, weight, squares))
                return by_least_squares(group, entries, self.options.damping, count)
            self.seen = self._grams([group])
            energy = by_energy(group, self.seen)
            if energy is not None:
                return Order.by_scores(energy, group.free)
        (scores,) = self._scores([group], i)
        return Order.by_scores(scores, group.free)


def _whole(share: float, group: AxisGroup) -> int:
    """So many units as a share is, leaving one."""
    return min(round(share * group.units), len(group.free), group.units - 1)


def _divided(feeds: Feeds) -> tuple[Feeds, Feeds]:
    """Batches to fit on, which are all, and those of them that losses are told on."""
    held = [f for i, f in enumerate(feeds) if i % TOLD == TOLD - 1]
    return feeds, held or list(feeds[:1])


def _last(value: Value) -> tuple[Value, int]:
    """Its last axis."""
    return value, (value.tensor.rank or 0) - 1


def _below(threshold: float, group: AxisGroup, scores: np.ndarray) -> int:
    """How many units are worth less than the mean of the group times ``threshold``."""
    below = int((scores[group.free] < threshold * float(scores.mean())).sum())
    return min(below, group.units - 1)


def _finite(value: Value) -> bool:
    return bool(np.isfinite(value.numpy()).all())


def _sizes_of(graph: Graph, context: Context) -> tuple[float, float]:
    sizes = budgets.largest_sizes(graph, context.latency)
    return sum(macs(sizes)(graph).values()), sum(parameters(graph).values())


def _tell(
    tracked: Sequence[Tracked],
    before: tuple[float, float],
    after: tuple[float, float],
    context: Context,
) -> None:
    for name, was, now in zip(("multiply-adds", "weights"), before, after, strict=True):
        context.report.notes.append(
            f"{name}: {now:.4g} of {was:.4g} ({now / was:.1%})" if was else f"{name}: unknown"
        )
    for one in tracked:
        context.report.kept[one.group.name] = spans(one.original)
    if not context.calibration:
        context.report.notes.append("no calibration inputs: what it cost is unknown")
