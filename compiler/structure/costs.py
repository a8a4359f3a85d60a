"""What a model costs once so many units of each group are left, without cutting it each time.

Work and weights are products of axis lengths, so each node's cost is linear in how much of each group is
left, and one cut of each group tells its slope.  For a linear layer from a group a to a group b:

    cost = K N (kept a / a) (kept b / b)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tersor.ir import Graph
from tersor.ir.dims import evaluate
from tersor.ops import TABLE
from tersor.structure.groups import AxisGroup
from tersor.structure.links import Positions
from tersor.structure.slicing import slice_graph

Measure = Callable[[Graph], Mapping[str, float]]
"""Costs of the parts of a graph, by name."""


@dataclass(frozen=True, eq=False)
class Costs:
    """Attributes:
    base: f64[parts], of the whole graph.
    slopes: f64[groups, parts], which share of a part's cost goes with all units of a group.
    units: i64[groups], how many units each group has.
    """

    base: np.ndarray
    slopes: np.ndarray
    units: np.ndarray

    @property
    def total(self) -> float:
        return float(self.base.sum())

    def of(self, gone: Sequence[int] | np.ndarray) -> float:
        """The cost with so many units of each group gone."""
        shares = np.asarray(gone) / self.units
        return float((self.base * np.prod(1 - self.slopes * shares[:, None], axis=0)).sum())


def costs(graph: Graph, groups: Sequence[AxisGroup], measure: Measure) -> Costs:
    """Costs as a function of the units that ``groups`` of ``graph`` keep."""
    before = measure(graph)
    names = sorted(before)
    base = np.array([before[n] for n in names])
    slopes = np.zeros((len(groups), len(names)))
    for i, group in enumerate(groups):
        gone = group.free[: max(1, len(group.free) // 2)]
        copy = graph.copy()
        slice_graph(copy, carried(group.positions(gone), copy))
        after = measure(copy)
        left = np.array([after.get(n, 0.0) for n in names])
        share = len(gone) / group.units
        slopes[i] = np.where(base > 0, 1 - left / np.where(base > 0, base, 1), 0) / share
    return Costs(base, slopes, np.array([g.units for g in groups]))


def carried(cut: Positions, copy: Graph) -> dict[tuple[object, int], np.ndarray]:
    """A cut of a graph as one of its ``copy``, where values have the same names."""
    by_name = {v.name: v for g in copy.all_graphs() for v in g.values()}
    return {(by_name[value.name], axis): at for (value, axis), at in cut.items()}


def macs(sizes: Mapping[str, int]) -> Measure:
    """Multiply-adds of each node at ``sizes`` of the open dims; nothing of those where they are unknown."""

    def measure(graph: Graph) -> dict[str, float]:
        found = {}
        for node in graph.walk():
            work = TABLE.cost(node).macs
            if work is None or not node.outputs:
                continue
            try:
                found[node.output.name] = float(evaluate(work, sizes))
            except KeyError:
                continue  # of sizes that only the run tells
        return found

    return measure


def parameters(graph: Graph) -> dict[str, float]:
    """Elements of each constant of floats."""
    return {
        v.name: float(np.prod(v.tensor.shape))
        for inner in graph.all_graphs()
        for v in inner.constants.values()
        if v.tensor.dtype.is_float
    }
