"""What the units of groups are worth, and in which order they go, by the activations of a graph as it is.

By least squares or by energy (``tersor.pruning.unit_order``) where the criterion is ``obs`` and a group
allows it; else by a criterion of ``tersor.pruning.importance``.
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
    met,
    readers,
)
from tersor.statistics.gram import Gram, grams_of_rows
from tersor.statistics.observing import Rows
from tersor.statistics.products import matrices
from tersor.structure import AxisGroup


class Ranking:
    """Of one graph, which may be cut meanwhile.

    Attributes:
        has_data: whether there are activations to go by.
        seen: second moments of what readers of the groups read, as they were last looked at.
    """

    def __init__(
        self, graph: Graph, context: Context, *, criterion: str, damping: float, seed: int
    ) -> None:
        self.graph, self.context = graph, context
        self.criterion, self.damping, self.seed = criterion, damping, seed
        self.has_data = bool(context.calibration) and context.evaluate is not None
        self.seen: dict[Rows, Gram] = {}

    def orders(self, groups: Sequence[AxisGroup]) -> list[Order]:
        """Of all units of each group, none of them cut."""
        self._look(groups)
        found: list[Order | None] = [None] * len(groups)
        for i, group in enumerate(groups):
            self.context.progress(i, len(groups), f"ordering {group.name}")
            found[i] = self._second_order(group)
        rest = [g for g, order in zip(groups, found, strict=True) if order is None]
        scores = dict(zip(map(id, rest), self.scores(rest), strict=True))
        return [
            order or Order.by_scores(scores[id(group)], group.free)
            for group, order in zip(groups, found, strict=True)
        ]

    def order_now(
        self, i: int, group: AxisGroup, layers: Sequence[tuple[Reader, Moments]], count: int
    ) -> Order:
        """Of ``count`` units of the ``i``-th group, in view of what was cut before: by the activations of
        the graph as it is and, where ``layers`` tell it, by what is best for the readers' targets."""
        if self.criterion == "obs" and self.has_data:
            if layers and all(equal_shares(group, r) for r, _ in layers):
                entries = [self._entry(reader, seen) for reader, seen in layers]
                return by_least_squares(group, entries, self.damping, count)
            self._look([group])
            energy = by_energy(group, self.seen)
            if energy is not None:
                return Order.by_scores(energy, group.free)
        (scores,) = self.scores([group], i)
        return Order.by_scores(scores, group.free)

    def scores(self, groups: Sequence[AxisGroup], first: int = 0) -> list[np.ndarray]:
        """f64[units] of each group by the criterion; by l2 where that is least squares, or tells nothing of
        a group. ``first``: the number of the first of ``groups`` among all."""
        evaluate = self.context.evaluate if self.has_data else None
        feeds, found = self.context.calibration, []
        for i, group in enumerate(groups, first):
            criterion = "l2" if self.criterion == "obs" else self.criterion
            if reason := refusal(criterion, self.graph, group):
                self._falls_back(group, reason)
                criterion = "l2"
            found += importance(criterion, self.graph, [group], feeds, evaluate, self.seed + i)
        return found

    def _look(self, groups: Sequence[AxisGroup]) -> None:
        """Runs the graph, and takes the moments of what the groups' units go by."""
        self.seen = {}
        if not self.has_data:
            return
        assert self.context.evaluate is not None
        wanted = {g: [r.rows for r in readers(g)] + [Rows(v) for v, _ in met(g)] for g in groups}
        every = [rows for held in wanted.values() for rows in held]
        found = grams_of_rows(self.graph, every, self.context.calibration, self.context.evaluate)
        self.seen = {r: g for r, g in found.items() if g.rows and np.isfinite(g.xtx).all()}
        for group, held in wanted.items():
            if broken := [found[rows] for rows in held if rows not in self.seen]:
                no_rows, infinite = "has no rows of what reads them", "leads to NaN or infinity"
                self._falls_back(group, f"calibration {infinite if broken[0].rows else no_rows}")

    def _falls_back(self, group: AxisGroup, reason: str) -> None:
        method = f"units of {group.name} go by l2"
        self.context.skip(group.links[0].node, reason, method=method)

    def _second_order(self, group: AxisGroup) -> Order | None:
        """By energy or least squares, where the criterion is that and the group allows it."""
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
        """What least squares asks of a reader: with the weight that is best before anything goes."""
        before, _ = matrices(reader.node, reader.weight)
        weight, _ = seen.solve(before, np.arange(len(before)), self.damping, biased=True)
        xtx = seen.centred()[0]
        return reader, xtx, weight, float(np.einsum("ij,ij->", weight, xtx @ weight))
