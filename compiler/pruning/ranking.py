"""The order in which a group's units are removed, by the activations of the graph in its present state.

By least squares or by energy (``tersor.pruning.unit_order``) if the criterion is ``obs`` and the group allows
it, else by a criterion of ``tersor.pruning.importance``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.ir import Graph
from tersor.pipeline import Context
from tersor.pruning.importance import importance, refusal
from tersor.pruning.reconstruction import Moments
from tersor.pruning.unit_order import (
    Order,
    Reader,
    by_energy,
    by_least_squares,
    equal_shares,
    layer_of,
    multiplied_activations,
    readers,
)
from tersor.statistics.gram import Gram, grams_of_rows
from tersor.statistics.observing import Rows
from tersor.statistics.products import matrices
from tersor.structure import AxisGroup


class Ranking:
    """Ranks units of one graph, which may be cut between calls.

    Attributes:
        has_data: whether there are calibration inputs.
        seen: second moments of the inputs of the groups' readers, as last observed.
    """

    def __init__(
        self, graph: Graph, context: Context, *, criterion: str, damping: float, seed: int
    ) -> None:
        self.graph, self.context = graph, context
        self.criterion, self.damping, self.seed = criterion, damping, seed
        self.has_data = bool(context.calibration) and context.evaluate is not None
        self.seen: dict[Rows, Gram] = {}

    def orders(self, groups: Sequence[AxisGroup]) -> list[Order]:
        """Orders of all units of each group, none of which is cut yet."""
        self._observe(groups)
        orders: list[Order | None] = []
        for i, group in enumerate(groups):
            self.context.progress(i, len(groups), f"ordering {group.name}")
            orders.append(self._second_order(group))
        rest = [g for g, order in zip(groups, orders, strict=True) if order is None]
        scores = dict(zip(map(id, rest), self.scores(rest), strict=True))
        return [
            order or Order.by_scores(scores[id(group)], group.free)
            for group, order in zip(groups, orders, strict=True)
        ]

    def order_now(
        self, i: int, group: AxisGroup, layers: Sequence[tuple[Reader, Moments]], count: int
    ) -> Order:
        """The order of ``count`` units of the ``i``-th group after the cuts so far: by the present
        activations and, where ``layers`` give targets of the readers, by the loss relative to those."""
        if self.criterion == "obs" and self.has_data:
            if layers and all(equal_shares(group, r) for r, _ in layers):
                entries = [self._entry(reader, seen) for reader, seen in layers]
                return by_least_squares(group, entries, self.damping, count)
            self._observe([group])
            energy = by_energy(group, self.seen)
            if energy is not None:
                return Order.by_scores(energy, group.free)
        (scores,) = self.scores([group], i)
        return Order.by_scores(scores, group.free)

    def scores(self, groups: Sequence[AxisGroup], first: int = 0) -> list[np.ndarray]:
        """f64[units] of each group by the criterion, or by l2 if that is least squares or does not apply.
        ``first``: the index of the first of ``groups`` among all."""
        evaluate = self.context.evaluate if self.has_data else None
        feeds, scores = self.context.calibration, list[np.ndarray]()
        for i, group in enumerate(groups, first):
            criterion = "l2" if self.criterion == "obs" else self.criterion
            if reason := refusal(criterion, self.graph, group):
                self._fall_back(group, reason)
                criterion = "l2"
            scores += importance(criterion, self.graph, [group], feeds, evaluate, self.seed + i)
        return scores

    def _observe(self, groups: Sequence[AxisGroup]) -> None:
        """Runs the graph for the moments by which the groups' units are ordered."""
        self.seen = {}
        if not self.has_data:
            return
        assert self.context.evaluate is not None
        wanted = {
            g: [r.rows for r in readers(g)] + [Rows(v) for v, _ in multiplied_activations(g)]
            for g in groups
        }
        every = [rows for own in wanted.values() for rows in own]
        grams = grams_of_rows(self.graph, every, self.context.calibration, self.context.evaluate)
        self.seen = {r: g for r, g in grams.items() if g.rows and np.isfinite(g.xtx).all()}
        for group, own in wanted.items():
            if broken := [grams[rows] for rows in own if rows not in self.seen]:
                why = (
                    "leads to NaN or infinity" if broken[0].rows else "has no rows of their readers"
                )
                self._fall_back(group, f"calibration {why}")

    def _fall_back(self, group: AxisGroup, reason: str) -> None:
        method = f"units of {group.name} are ranked by l2"
        self.context.skip(group.links[0].node, reason, method=method)

    def _second_order(self, group: AxisGroup) -> Order | None:
        """By energy or least squares, if that is the criterion and the group allows it."""
        if self.criterion != "obs":
            return None
        energy = by_energy(group, self.seen)
        if energy is not None:
            return Order.by_scores(energy, group.free)
        layers = [(r, self.seen[r.rows]) for r in readers(group) if r.rows in self.seen]
        if not layers or not all(equal_shares(group, r) for r, _ in layers):
            return None
        return by_least_squares(group, [layer_of(r, gram) for r, gram in layers], self.damping)

    def _entry(self, reader: Reader, seen: Moments) -> tuple[Reader, np.ndarray, np.ndarray, float]:
        """The arguments of :func:`by_least_squares` for a reader, refitted before any further removal."""
        before, _ = matrices(reader.node, reader.weight)
        weight, _ = seen.solve(before, np.arange(len(before)), self.damping, biased=True)
        xtx = seen.centred()[0]
        return reader, xtx, weight, float(np.einsum("ij,ij->", weight, xtx @ weight))
