"""A model of a graph's cost as a function of the units removed from each group, without cutting each time.

Work and weights are products of axis lengths.  For a linear layer [K, N] from a group a to a group b, of
which the shares x and y are removed:

    cost = K N (1 - x) (1 - y)

Groups that share an axis add up instead (a layer that reads a Concat; the products of an attention, with
lanes of keys and with lanes of values), and a group may be on two axes (an LSTM's recurrent weights,
(1 - x)^2 = 1 - (2 x - x^2)).  So each part of the cost is modelled as a product of factors

    1 - sum over the groups g of a factor of (a_g x_g + b_g x_g^2)

Trial cuts of each group give a and b; a trial cut of two groups shows whether they add or multiply.  All
units of a group are assumed to cost the same; if only some of them reach a layer (after a Split), that is
their average.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tersor.ir import Graph, Node
from tersor.ir.dims import evaluate
from tersor.ops import TABLE
from tersor.structure.groups import AxisGroup
from tersor.structure.links import Axis, Positions
from tersor.structure.slicing import slice_graph, union

Measure = Callable[[Graph], Mapping[str, float]]
"""The costs of a graph's parts, by name."""


@dataclass(frozen=True, eq=False)
class Costs:
    """The cost model of a graph.

    Attributes:
        base: f64[parts], the costs of the uncut graph.
        slopes: f64[2, groups, parts], a and b of each group in each part.
        factors: i64[groups, parts], the factor of the part that a group is in; -1: none.
        units: i64[groups], the number of units of each group.
    """

    base: np.ndarray
    slopes: np.ndarray
    factors: np.ndarray
    units: np.ndarray

    @property
    def total(self) -> float:
        return float(self.base.sum())

    def of(self, gone: Sequence[int] | np.ndarray) -> float:
        """The cost with so many units of each group removed."""
        share = (np.asarray(gone) / self.units)[:, None]
        lost = self.slopes[0] * share + self.slopes[1] * share**2
        left = self.base.copy()
        for factor in range(self.factors.max(initial=-1) + 1):
            left *= 1 - np.where(self.factors == factor, lost, 0).sum(axis=0)
        return float(left.sum())


def costs(graph: Graph, groups: Sequence[AxisGroup], measure: Measure) -> Costs:
    """The cost model of ``graph`` for removing units of ``groups``."""
    before = measure(graph)
    names = [n for n in sorted(before) if before[n] > 0]
    base = np.array([before[n] for n in names])

    def lost(*cuts: Positions) -> np.ndarray:
        """f64[parts], the share of each part's cost that is saved."""
        copy = graph.copy()
        slice_graph(copy, cut_of_copy(union(*cuts), copy))
        after = measure(copy)
        return np.asarray(1 - np.array([after.get(n, 0.0) for n in names]) / base)

    units = np.array([group.units for group in groups], np.int64)
    halves = [group.free[:: min(2, len(group.free))] for group in groups]
    cuts = [group.positions(half) for group, half in zip(groups, halves, strict=True)]
    alone = np.array([lost(cut) for cut in cuts]).reshape(len(groups), len(names))
    slopes = np.zeros((2, len(groups), len(names)))
    for i, (group, half) in enumerate(zip(groups, halves, strict=True)):
        first = lost(group.positions(half[:1])) if len(half) > 1 else None
        slopes[:, i] = _slopes(alone[i], first, len(half), group.units)
    factors = np.where(alone > 0, np.cumsum(alone > 0, axis=0) - 1, -1)
    for i, j in combinations(range(len(groups)), 2):
        both = (alone[i] > 0) & (alone[j] > 0)
        if both.any():
            _merge_factors(factors, i, j, both & _adds(lost(cuts[i], cuts[j]), alone[i], alone[j]))
    return Costs(base, slopes, factors, units)


def _slopes(half: np.ndarray, first: np.ndarray | None, count: int, units: int) -> np.ndarray:
    """f64[2, parts], (a, b) such that a x + b x^2 is ``half`` with ``count`` of ``units`` removed, and
    ``first`` with one."""
    share, one = count / units, 1 / units
    if first is None:
        return np.stack([half / share, np.zeros_like(half)])
    square = (half / share - first / one) / (share - one)
    return np.stack([first / one - square * one, square])


def _adds(both: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """bool[parts], whether the saving of two groups together is closer to the sum of their savings than to
    that of a product."""
    product = 1 - (1 - first) * (1 - second)
    return np.asarray(np.abs(both - (first + second)) < np.abs(both - product))


def _merge_factors(factors: np.ndarray, i: int, j: int, where: np.ndarray) -> None:
    """Merges the factors of groups ``i`` and ``j`` in the parts ``where``."""
    for part in np.flatnonzero(where):
        column = factors[:, part]
        column[column == column[j]] = column[i]


def cut_of_copy(cut: Positions, copy: Graph) -> dict[Axis, np.ndarray]:
    """The same cut for a ``copy`` of the graph, in which values have the same names."""
    by_name = {v.name: v for g in copy.all_graphs() for v in g.values()}
    return {(by_name[value.name], axis): at for (value, axis), at in cut.items()}


def macs(sizes: Mapping[str, int]) -> Measure:
    """Measures the multiply-adds of each node at ``sizes`` of the symbolic dims, without nodes for which
    they are unknown. A node with several weights (an LSTM's for inputs and states) has a part per weight,
    in proportion to its elements."""

    def measure(graph: Graph) -> dict[str, float]:
        parts = {}
        for node in graph.walk():
            work = TABLE.cost(node).macs
            if work is None or not node.outputs:
                continue
            try:
                count = float(evaluate(work, sizes))
            except KeyError:
                continue  # A size known only at run time.
            for i, share in enumerate(_shares(node)):
                parts[f"{node.output.name} {i}"] = count * share
        return parts

    return measure


def _shares(node: Node) -> list[float]:
    """Each weight's share of the elements of all; [1] if there are not several."""
    operands = [node.input(weight.operand) for weight in TABLE.weights(node)]
    counts = [v.tensor.numel if v is not None else None for v in operands]
    numbers = [n for n in counts if isinstance(n, int)]
    if len(counts) < 2 or len(numbers) < len(counts) or not sum(numbers):
        return [1.0]
    return [n / sum(numbers) for n in numbers]


def parameters(graph: Graph) -> dict[str, float]:
    """The number of elements of each float constant."""
    return {
        v.name: float(np.prod(v.tensor.shape))
        for inner in graph.all_graphs()
        for v in inner.constants.values()
        if v.tensor.dtype.is_float
    }
