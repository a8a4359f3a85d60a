"""Cuts groups one after the other, and refits the layers that read them.

Each group is ranked by the activations after the cuts before it. The layers that read it are refitted to what
the uncut model computes there (``tersor.pruning.reconstruction``), so that errors do not add up:

    y = x W, x of 4 neurons     cut neuron 3     y ~ x[0,1,2] V + c,   V, c by least squares
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.ir import Graph
from tersor.pruning.ranking import Ranking
from tersor.pruning.reconstruction import Moments, moments
from tersor.pruning.unit_order import Reader, not_refittable, readers
from tersor.statistics.gram import report_few_rows
from tersor.statistics.products import columns_at, matrices, set_matrices
from tersor.structure import AxisGroup, slice_graph
from tersor.structure.links import Positions
from tersor.structure.tracking import Tracked, follow_cut, remaining_positions, tie_vector

NOT_REFITTED = "not refitted"


def prune(
    original: Graph,
    ranking: Ranking,
    tracked: Sequence[Tracked],
    gone: Sequence[int],
    *,
    reconstruct: bool,
) -> None:
    """Removes ``gone`` units from each group of the ranking's graph, in graph order.

    Args:
        original: a copy of the uncut graph.
        tracked: the groups, updated after every cut.
        reconstruct: whether readers are refitted.
    """
    graph, context = ranking.graph, ranking.context
    place = {node: i for i, node in enumerate(graph.walk())}
    last = [max(place[link.node] for link in t.group.links) for t in tracked]
    fitted: list[tuple[int, int]] = []
    for done, i in enumerate(np.argsort(last, kind="stable").tolist()):
        if not gone[i] or not context.may_rewrite():
            continue
        name = tracked[i].group.name
        context.progress(done, len(tracked), f"pruning {gone[i]} units of {name}")
        fitted += _Cutter(original, ranking, tracked, reconstruct).cut(i, gone[i])
        context.rewrote()
    report_few_rows(fitted, context.report)


class _Cutter:
    def __init__(
        self, original: Graph, ranking: Ranking, tracked: Sequence[Tracked], reconstruct: bool
    ) -> None:
        self.original, self.ranking, self.tracked = original, ranking, tracked
        self.reconstruct = reconstruct
        self.graph, self.context = ranking.graph, ranking.context

    def cut(self, i: int, count: int) -> list[tuple[int, int]]:
        """Removes ``count`` units of the ``i``-th group, leaving one at least; returns (rows, inputs) of each
        refitted layer."""
        group = self.tracked[i].group
        count = min(count, len(group.free), group.units - 1)
        layers = self._layers(group)
        units = self.ranking.order_now(i, group, layers, count).units[:count]
        cut = group.positions(units.tolist())
        fits = self._fits(layers, cut) if self.reconstruct else []
        slice_graph(self.graph, cut)
        follow_cut(self.tracked, cut)
        for reader, matrix, bias in fits:
            new_bias = set_matrices(reader.node, reader.weight, matrix, bias)
            if new_bias is not None:
                tie_vector(self.tracked, new_bias, reader.outputs)
        return [(seen.rows, len(seen.xtx) - 1) for _, seen in layers] if fits else []

    def _layers(self, group: AxisGroup) -> list[tuple[Reader, Moments]]:
        """The group's readers with the moments of their present inputs and of their targets."""
        wanted = self.reconstruct or self.ranking.criterion == "obs"
        if not self.ranking.has_data or not wanted:
            return []
        assert self.context.evaluate is not None
        for node, why in not_refittable(group) if self.reconstruct else ():
            self.context.skip(node, why, method=NOT_REFITTED)
        layers = []
        for reader in readers(group):
            seen = moments(
                self.original,
                self.graph,
                reader.node.output.name,
                self.context.calibration,
                self.context.evaluate,
                remaining_positions(self.tracked, reader.outputs),
                reader.weight,
            )
            if seen is not None and seen.finite:
                layers.append((reader, seen))
            else:
                why = (
                    "no calibration rows reach it"
                    if seen is None
                    else "its inputs or targets contain NaN or infinity on calibration data"
                )
                self.context.skip(reader.node, why, method=NOT_REFITTED)
        return layers

    def _fits(
        self, layers: Sequence[tuple[Reader, Moments]], cut: Positions
    ) -> list[tuple[Reader, np.ndarray, np.ndarray]]:
        """(reader, its matrix, its bias) after the cut."""
        fits = []
        for reader, seen in layers:
            if not reader.sole:
                why = "its weight has other readers"
                self.context.skip(reader.node, why, method=NOT_REFITTED)
                continue
            before, _ = matrices(reader.node, reader.weight)
            kept = np.setdiff1d(np.arange(len(before)), reader.inputs_at(cut))
            biased = reader.weight.bias is not None
            weight, bias = seen.solve(before, kept, self.ranking.damping, biased=biased)
            # A layer within a residual connection loses outputs together with its inputs.
            value, axis = reader.outputs
            left = np.delete(np.arange(value.tensor.shape[axis]), cut.get(reader.outputs, ()))
            columns = columns_at(reader.node, reader.weight, left)
            fits.append((reader, weight[:, columns], bias[columns]))
        return fits
