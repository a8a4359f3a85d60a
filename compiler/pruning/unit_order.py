"""The order in which a group's units are removed, and the loss after each of them.

**By least squares** (optimal brain surgeon, Hassibi and Stork 1993, for all inputs of a unit at once), if the
units are inputs of layers (``tersor.statistics.products``): the unit that costs least once the others
compensate for it goes first, and the costs of the rest are those of the refitted layers:

    cost_u = sum over readers of trace(W_u (P_uu)^-1 W_u^T) / |T|^2,    P = (X^T X)^-1

**By energy**, for lanes of queries and keys, which are only multiplied with each other: lane u adds q_u k_u
to a score, so its importance is  sqrt(sum q_u^2 sum k_u^2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tersor.ir import Node, Value
from tersor.numerics.second_order import damped, removal_costs, remove_inputs
from tersor.ops import Weight
from tersor.statistics.gram import Gram
from tersor.statistics.observing import Rows
from tersor.statistics.products import along_inputs, matrices, output_axis, products, rows_of, unfit
from tersor.structure import AxisGroup
from tersor.structure.links import Axis, Positions

STEPS = 48  # How often the costs of all of a group's units are recomputed.
CHOICE = 2  # Candidates per removed unit between two recomputations.
CACHED = (
    1 << 16
)  # Elements of W up to which updating it once a unit costs less than a QR factorization.


@dataclass(frozen=True, eq=False)
class Order:
    """Attributes:
    units: those that may be removed, first to last.
    losses: f64, the cumulative relative loss after each of them, ascending.
    """

    units: np.ndarray
    losses: np.ndarray

    @staticmethod
    def by_scores(scores: np.ndarray, free: Sequence[int]) -> Order:
        """Lowest score first; the loss is the removed share of the scores' sum."""
        units = np.asarray(free)[np.argsort(scores[list(free)], kind="stable")]
        total = float(scores.sum())
        return Order(units, np.cumsum(scores[units]) / (total if total > 0 else 1.0))


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that sums over a group's units.

    Attributes:
        node, weight: the layer, and which of its weights.
        axis: of the weight, along which the units lie.
        owner: i64[k], the unit of each input; -1: none.
    """

    node: Node
    weight: Weight
    axis: Axis
    owner: np.ndarray

    @property
    def rows(self) -> Rows:
        """Its input."""
        return rows_of(self.node, self.weight)

    @property
    def outputs(self) -> Axis:
        """The axis of the weight along which its outputs lie."""
        return output_axis(self.node, self.weight)

    @property
    def sole(self) -> bool:
        """Whether no other node uses its weight."""
        return self.axis[0].only_user() is self.node

    def inputs(self, units: Sequence[int] | np.ndarray) -> np.ndarray:
        """Indices of the units' inputs, i64, ascending."""
        return np.flatnonzero(np.isin(self.owner, units))

    def inputs_at(self, cut: Positions) -> np.ndarray:
        """Indices of the inputs that a cut removes, i64, ascending."""
        value, axis = self.axis
        at = along_inputs(self.node, self.weight, axis, np.arange(value.tensor.shape[axis]))
        return np.flatnonzero(np.isin(at, cut[self.axis]))

    def biases_at(self, cut: Positions) -> np.ndarray:
        """Positions on the last axis of its bias that a cut of its outputs removes, i64, ascending."""
        value, axis = self.outputs
        width = value.tensor.shape[axis]
        bias = self.weight.bias
        count = 1 if bias is None else bias.vectors
        return np.concatenate([cut[self.outputs] + i * width for i in range(count)])


def readers(group: AxisGroup) -> list[Reader]:
    """Layers whose inputs are units of the group and that can be refitted."""
    return [
        Reader(node, weight, axis, along_inputs(node, weight, axis[1], group.axes[axis]))
        for node, axis, weight in _summing(group)
        if weight is not None and not unfit(node, weight)
    ]


def not_refittable(group: AxisGroup) -> list[tuple[Node, str]]:
    """Nodes that sum over units with a constant but cannot be refitted, with the reason."""
    reasons = []
    for node, axis, weight in _summing(group):
        if weight is None:
            reasons.append((node, f"@{axis[0].name} is not a weight of {node.op}"))
        elif reason := unfit(node, weight):
            reasons.append((node, reason))
    return reasons


def _summing(group: AxisGroup) -> Iterator[tuple[Node, Axis, Weight | None]]:
    """(node, axis of a constant, the node's weight that it is) where nodes sum over units."""
    for node, value, axis in group.weights(summed=True):
        weights = [
            w for w in products(node) if node.inputs[w.operand] is value and axis in w.inputs
        ]
        yield from ((node, (value, axis), weight) for weight in weights)
        if not weights:
            yield node, (value, axis), None


def multiplied_activations(group: AxisGroup) -> list[tuple[Value, np.ndarray]]:
    """(value, owner of its last axis) of activations that are multiplied with each other, in sums over units
    without a weight."""
    owners: dict[Value, np.ndarray] = {}
    for link in group.links:
        ends = [end for end in link.ends if end.summed]
        if ends and not any(end.axis[0].is_constant for end in ends):
            for end in ends:
                value, axis = end.axis
                if axis == len(value.tensor.dims or ()) - 1 and value.graph.parent is None:
                    owners[value] = group.axes[end.axis]
    return list(owners.items())


def sums_only_activations(group: AxisGroup) -> bool:
    """Whether all sums over units are of products of activations, and none is a norm."""
    ends = [[end for end in link.ends if end.summed] for link in group.links]
    normed = any(link.kind == "shape" and not e for link, e in zip(group.links, ends, strict=True))
    return any(ends) and not normed and not any(e.axis[0].is_constant for es in ends for e in es)


def by_least_squares(
    group: AxisGroup,
    layers: Sequence[tuple[Reader, np.ndarray, np.ndarray, float]],
    damping: float,
    most: int | None = None,
) -> Order:
    """Each unit is chosen among the cheapest few given those removed before it; which these are is
    recomputed ``STEPS`` times.

    Between two recomputations, removals change W and P of the cheapest few only; the other inputs are
    updated once for all units removed meanwhile, by the block formula of ``remove_inputs``. So the large
    matrices are passed over ``STEPS`` times, not once a unit, and they shrink as inputs go.

    Args:
        layers: for each reader (reader, X^T X f64[k, k], W f64[k, n], sum of squares of its results).
        most: how many units to order; None: all that may be removed.
    """
    left = np.asarray(group.free, np.int64)
    limit = min(len(left), group.units - 1 if most is None else most)
    if limit <= 0:
        return Order(np.zeros(0, np.int64), np.zeros(0))
    states = [
        _Removal.of(reader.owner, left, weight.T, np.linalg.inv(damped(xtx, damping)), squares)
        for reader, xtx, weight, squares in layers
    ]
    step = max(1, limit // STEPS)
    order: list[int] = []
    costs: list[float] = []
    while len(order) < limit:
        count = min(step, limit - len(order))
        cheapest = np.argsort(_total(states), kind="stable")
        near = np.sort(cheapest[: CHOICE * count])
        first, lost = _one_by_one([state.restricted_to(near) for state in states], count)
        going = near[first]
        order += left[going].tolist()
        costs += lost
        if len(order) < limit:
            states = [state.without(going) for state in states]
            left = np.delete(left, going)
    return Order(np.asarray(order, np.int64), np.cumsum(np.maximum(costs, 0.0)))


@dataclass(frozen=True, eq=False)
class _Removal:
    """A reader in the course of removal, with the inputs that are left. Units are numbered from 0.

    Attributes:
        weight, inverse: W f64[n, k] and P f64[k, k]; the inputs of unit 0 come first, then those of unit 1
            and so on, and those of units that may not be removed, or of none, last.
        units: how many units are left that may be removed.
        size: the number of inputs of each.
        squares: the sum of squares of the reader's results.
    """

    weight: np.ndarray
    inverse: np.ndarray
    units: int
    size: int
    squares: float

    @staticmethod
    def of(
        owner: np.ndarray,
        units: np.ndarray,
        weight: np.ndarray,
        inverse: np.ndarray,
        squares: float,
    ) -> _Removal:
        """``owner``: i64[k], the unit of each input; ``units``: those that may be removed, ascending."""
        removable = np.isin(owner, units)
        rank = np.where(removable, owner, owner.max(initial=0) + 1)
        at = np.argsort(rank, kind="stable")
        size = int(removable.sum()) // len(units)
        return _Removal(
            weight[:, at], inverse[np.ix_(at, at)], len(units), size, max(squares, 1e-30)
        )

    def inputs(self, units: np.ndarray) -> np.ndarray:
        """i64[units, size], the places of the units' inputs."""
        return units[:, None] * self.size + np.arange(self.size)

    def costs(self) -> np.ndarray:
        """f64[units]: the cost of removing each by itself."""
        places = self.inputs(np.arange(self.units))
        return removal_costs(self.weight, self.inverse, places) / self.squares

    def restricted_to(self, units: np.ndarray) -> _Removal:
        """The inputs of ``units`` alone: removals among them update W and P there independently of the rest.
        Costs depend on W^T W only, so R of W = Q R serves as W where W is large."""
        at = self.inputs(units).reshape(-1)
        weight, inverse = self.weight[:, at], self.inverse[np.ix_(at, at)]
        if weight.size > CACHED:
            weight = np.asarray(np.linalg.qr(weight, mode="r"))
        return replace(self, weight=weight, inverse=inverse, units=len(units))

    def without(self, units: np.ndarray) -> _Removal:
        gone = self.inputs(units).reshape(-1)
        weight, inverse = remove_inputs(self.weight, self.inverse, gone)
        return replace(self, weight=weight, inverse=inverse, units=self.units - len(units))


def _total(states: Sequence[_Removal]) -> np.ndarray:
    return np.asarray(np.sum([state.costs() for state in states], axis=0))


def _one_by_one(states: Sequence[_Removal], count: int) -> tuple[np.ndarray, list[float]]:
    """``count`` units, each the cheapest once those before it are removed; and their costs."""
    left = np.arange(states[0].units)
    order: list[int] = []
    lost: list[float] = []
    while len(order) < count:
        costs = _total(states)
        best = np.array([np.argmin(costs)])
        order += left[best].tolist()
        lost += costs[best].tolist()
        if len(order) < count:
            states = [state.without(best) for state in states]
            left = np.delete(left, best)
    return np.asarray(order, np.int64), lost


def by_energy(group: AxisGroup, seen: Mapping[Rows, Gram]) -> np.ndarray | None:
    """f64[units], the energy of lanes that are only multiplied with each other; None for other groups."""
    ends = multiplied_activations(group)
    if len(ends) < 2 or any(Rows(value) not in seen for value, _ in ends):
        return None
    worth = np.ones(group.units)
    for value, owner in ends:
        energy = np.zeros(group.units)
        owned = owner >= 0
        np.add.at(energy, owner[owned], np.diagonal(seen[Rows(value)].xtx)[owned])
        worth *= energy
    # Squared, so that shares of the sum are shares of the squared scores.
    return worth


def layer_of(reader: Reader, gram: Gram) -> tuple[Reader, np.ndarray, np.ndarray, float]:
    """The arguments of :func:`by_least_squares` for a reader whose targets are its own results."""
    matrix, _ = matrices(reader.node, reader.weight)
    centred = gram.xtx - gram.rows * np.outer(gram.mean, gram.mean)
    return reader, centred, matrix, float(np.einsum("ij,ij->", matrix, centred @ matrix))


def equal_shares(group: AxisGroup, reader: Reader) -> bool:
    """Whether all units own the same number of inputs of the reader, at least one."""
    counts = np.bincount(reader.owner[reader.owner >= 0], minlength=group.units)
    return bool(counts.size == group.units and (counts == counts[0]).all() and counts[0] > 0)
