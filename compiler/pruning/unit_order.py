"""In which order a group's units go, and what is lost by then.

**By least squares** (optimal brain surgeon, Hassibi and Stork 1993, a unit's inputs at a time).  A group
whose units are inputs of layers, rows times a matrix (``tersor.statistics.products``): the unit whose removal
costs least goes first, when the others make up for it, and the costs of the rest are those of the layers
that are left:

    cost_u = sum over readers of trace(W_u (P_uu)^-1 W_u^T) / |T|^2,    P = (X^T X)^-1

**By energy**: lanes of a head's queries and keys, which only meet each other, in a sum over lanes: what lane
u adds to a score is q_u k_u, so its worth is  sqrt(sum q_u^2 sum k_u^2).
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

STEPS = 48  # How often the costs of all units are taken anew while a group's units go.
CHOICE = 2  # Units that are looked at in between, for each that goes.


@dataclass(frozen=True, eq=False)
class Order:
    """Attributes:
    units: those that may go, first to last.
    losses: f64, what is lost in all once each of them has gone, relative to the whole; not less than
        the one before.
    """

    units: np.ndarray
    losses: np.ndarray

    @staticmethod
    def by_scores(scores: np.ndarray, free: Sequence[int]) -> Order:
        """Lowest first; the share of the scores' sum that has gone."""
        units = np.asarray(free)[np.argsort(scores[list(free)], kind="stable")]
        total = float(scores.sum())
        return Order(units, np.cumsum(scores[units]) / (total if total > 0 else 1.0))


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that sums over a group's units.

    Attributes:
        node, weight: the layer, and where its weight is.
        axis: of the weight, which the units are on.
        owner: i64[k], the unit of each input; -1: of no unit.
    """

    node: Node
    weight: Weight
    axis: Axis
    owner: np.ndarray

    @property
    def rows(self) -> Rows:
        """What it multiplies."""
        return rows_of(self.node, self.weight)

    @property
    def outputs(self) -> Axis:
        """The axis of the weight that its outputs are on."""
        return output_axis(self.node, self.weight)

    @property
    def alone(self) -> bool:
        """Whether no other node reads its weight."""
        return self.axis[0].only_user() is self.node

    def inputs(self, units: Sequence[int] | np.ndarray) -> np.ndarray:
        """Indices of the inputs that the units own, i64, ascending."""
        return np.flatnonzero(np.isin(self.owner, units))

    def inputs_at(self, cut: Positions) -> np.ndarray:
        """Indices of the inputs that a cut takes, i64, ascending."""
        value, axis = self.axis
        at = along_inputs(self.node, self.weight, axis, np.arange(value.tensor.shape[axis]))
        return np.flatnonzero(np.isin(at, cut[self.axis]))

    def biases_at(self, cut: Positions) -> np.ndarray:
        """Positions on the last axis of its bias that a cut of its outputs takes, i64, ascending."""
        value, axis = self.outputs
        width = value.tensor.shape[axis]
        bias = self.weight.bias
        count = 1 if bias is None else bias.vectors
        return np.concatenate([cut[self.outputs] + i * width for i in range(count)])


def readers(group: AxisGroup) -> list[Reader]:
    """Layers whose inputs are units of the group, and which can be fitted anew."""
    return [
        Reader(node, weight, axis, along_inputs(node, weight, axis[1], group.axes[axis]))
        for node, axis, weight in _summing(group)
        if weight is not None and not unfit(node, weight)
    ]


def not_fitted(group: AxisGroup) -> list[tuple[Node, str]]:
    """Nodes that sum over units with a weight, and are no readers, with the reason."""
    found = []
    for node, axis, weight in _summing(group):
        if weight is None:
            found.append((node, f"@{axis[0].name} is no weight of {node.op}"))
        elif reason := unfit(node, weight):
            found.append((node, reason))
    return found


def _summing(group: AxisGroup) -> Iterator[tuple[Node, Axis, Weight | None]]:
    """(node, axis of a constant, as what it is a weight) where nodes sum over units."""
    for node, value, axis in group.weights(summed=True):
        held = [w for w in products(node) if node.inputs[w.operand] is value and axis in w.inputs]
        yield from ((node, (value, axis), weight) for weight in held)
        if not held:
            yield node, (value, axis), None


def met(group: AxisGroup) -> list[tuple[Value, np.ndarray]]:
    """(value, owner of its last axis) of the activations that meet in sums over units without a
    weight."""
    found: dict[Value, np.ndarray] = {}
    for link in group.links:
        ends = [end for end in link.ends if end.summed]
        if ends and not any(end.axis[0].is_constant for end in ends):
            for end in ends:
                value, axis = end.axis
                if axis == len(value.tensor.dims or ()) - 1 and value.graph.parent is None:
                    found[value] = group.axes[end.axis]
    return list(found.items())


def only_met(group: AxisGroup) -> bool:
    """Whether units are summed over only where activations meet, and no norm is over them."""
    ends = [[end for end in link.ends if end.summed] for link in group.links]
    normed = any(link.kind == "shape" and not e for link, e in zip(group.links, ends, strict=True))
    return any(ends) and not normed and not any(e.axis[0].is_constant for es in ends for e in es)


def by_least_squares(
    group: AxisGroup,
    layers: Sequence[tuple[Reader, np.ndarray, np.ndarray, float]],
    damping: float,
    most: int | None = None,
) -> Order:
    """Among the cheapest few units each is chosen in view of those that went before it; which these are
    is told anew ``STEPS`` times.

    Args:
        layers: for each reader (reader, X^T X f64[k, k], W f64[k, n], sum of squares of its results).
        most: how many units to order; the rest is left out. None: all that may go.
    """
    held = [
        _Held(reader, weight.T.copy(), np.linalg.inv(damped(xtx, damping)), max(squares, 1e-30))
        for reader, xtx, weight, squares in layers
    ]
    left = list(group.free)
    limit = min(len(left), group.units - 1 if most is None else most)
    step = max(1, limit // STEPS)
    order: list[int] = []
    costs: list[float] = []
    while len(order) < limit:
        count = min(step, limit - len(order))
        cheapest = np.argsort(sum(one.costs(left) for one in held), kind="stable")
        near = sorted(left[i] for i in cheapest[: CHOICE * count])
        going, lost = _one_by_one([one.of(near) for one in held], near, count)
        held = [one.without(going) for one in held]
        order += going
        costs += lost
        left = [u for u in left if u not in going]
    return Order(np.asarray(order, np.int64), np.cumsum(np.maximum(costs, 0.0)))


@dataclass(frozen=True, eq=False)
class _Held:
    """A reader while its inputs go: W f64[n, k], P f64[k, k] of those that are left."""

    reader: Reader
    weight: np.ndarray
    inverse: np.ndarray
    squares: float

    def costs(self, units: Sequence[int]) -> np.ndarray:
        """f64[units], of removing each of ``units`` (ascending) by itself."""
        at = self.reader.inputs(units)
        places = at[np.argsort(self.reader.owner[at], kind="stable")].reshape(len(units), -1)
        return removal_costs(self.weight, self.inverse, places) / self.squares

    def of(self, units: Sequence[int]) -> _Held:
        """For inputs of ``units`` alone: what goes among them changes W and P there by nothing from
        elsewhere. Costs depend on W^T W only, so that R of W = Q R does."""
        at = self.reader.inputs(units)
        reader = replace(self.reader, owner=self.reader.owner[at])
        weight = np.linalg.qr(self.weight[:, at], mode="r")
        return _Held(reader, np.asarray(weight), self.inverse[np.ix_(at, at)], self.squares)

    def without(self, units: Sequence[int]) -> _Held:
        weight, inverse = remove_inputs(self.weight, self.inverse, self.reader.inputs(units))
        return replace(self, weight=weight, inverse=inverse)


def _one_by_one(
    held: Sequence[_Held], units: Sequence[int], count: int
) -> tuple[list[int], list[float]]:
    """So many of ``units``, the cheapest first, each when those before it have gone; and their costs."""
    left = list(units)
    order: list[int] = []
    lost: list[float] = []
    while len(order) < count:
        costs = np.asarray(sum(one.costs(left) for one in held))
        best = int(np.argmin(costs))
        order.append(left.pop(best))
        lost.append(float(costs[best]))
        if len(order) < count:
            held = [one.without(order[-1:]) for one in held]
    return order, lost


def by_energy(group: AxisGroup, seen: Mapping[Rows, Gram]) -> np.ndarray | None:
    """f64[units], worth of lanes that only meet each other; None where the group is no such."""
    ends = met(group)
    if len(ends) < 2 or any(Rows(value) not in seen for value, _ in ends):
        return None
    worth = np.ones(group.units)
    for value, owner in ends:
        energy = np.zeros(group.units)
        held = owner >= 0
        np.add.at(energy, owner[held], np.diagonal(seen[Rows(value)].xtx)[held])
        worth *= energy
    # A lane's share of the squared scores, whose sum is what Order wants.
    return worth


def layer_of(reader: Reader, gram: Gram) -> tuple[Reader, np.ndarray, np.ndarray, float]:
    """What :func:`by_least_squares` asks of a reader whose targets are its own results."""
    matrix, _ = matrices(reader.node, reader.weight)
    centred = gram.xtx - gram.rows * np.outer(gram.mean, gram.mean)
    return reader, centred, matrix, float(np.einsum("ij,ij->", matrix, centred @ matrix))


def equal_shares(group: AxisGroup, reader: Reader) -> bool:
    """Whether every unit owns as many inputs of the reader, and none owns none."""
    counts = np.bincount(reader.owner[reader.owner >= 0], minlength=group.units)
    return bool(counts.size == group.units and (counts == counts[0]).all() and counts[0] > 0)
