"""In which order a group's units go, and what is lost by then.

**By least squares** (optimal brain surgeon, Hassibi and Stork 1993, a unit's inputs at a time).  A group
whose units are inputs of linear layers: the unit whose removal costs least goes first, when the others make
up for it, and the costs of the rest are those of the layers that are left:

    cost_u = sum over readers of trace(W_u (P_uu)^-1 W_u^T) / |T|^2,    P = (X^T X)^-1

**By energy**: lanes of a head's queries and keys, which only meet each other, in a sum over lanes: what lane
u adds to a score is q_u k_u, so its worth is  sqrt(sum q_u^2 sum k_u^2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tersor.analysis.gram import Gram
from tersor.analysis.reconstruction import linear_weight, matrices
from tersor.analysis.second_order import damped, removal_costs, remove_inputs
from tersor.ir import Node, Value
from tersor.ops import Weight
from tersor.structure import AxisGroup

STEPS = 48  # How often costs are taken anew while a group's units go.


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
    """A linear layer that sums over a group's units.

    Attributes:
        node, weight: the layer, and where its weight is.
        x: what it reads.
        owner: i64[k], the unit of each input; -1: of no unit.
    """

    node: Node
    weight: Weight
    x: Value
    owner: np.ndarray

    @property
    def alone(self) -> bool:
        """Whether no other node reads its weight."""
        value = self.node.inputs[self.weight.operand]
        return value is not None and value.only_user() is self.node

    def inputs(self, units: Sequence[int] | np.ndarray) -> np.ndarray:
        """Indices of the inputs that the units own, i64, ascending."""
        return np.flatnonzero(np.isin(self.owner, units))


def readers(group: AxisGroup) -> list[Reader]:
    """Linear layers, of the outermost graph, whose inputs are units of the group."""
    found = {}
    for node, value, _ in group.weights(summed=True):
        weight = linear_weight(node)
        if weight is None or node.graph is None or node.graph.parent is not None:
            continue
        x = node.inputs[weight.activation] if weight.activation is not None else None
        if node.inputs[weight.operand] is not value or x is None:
            continue
        owner = group.axes.get((x, (x.tensor.rank or 0) - 1))
        if owner is not None:
            found[node] = Reader(node, weight, x, owner)
    return list(found.values())


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


def by_least_squares(
    group: AxisGroup,
    layers: Sequence[tuple[Reader, np.ndarray, np.ndarray, float]],
    damping: float,
    most: int | None = None,
) -> Order:
    """Args:
    layers: for each reader (reader, X^T X f64[k, k], W f64[k, n], sum of squares of its results).
    most: how many units to order; the rest is left out. None: all that may go.
    """
    held = []
    for reader, xtx, weight, squares in layers:
        inverse = np.linalg.inv(damped(xtx, damping))
        held.append([reader, weight.T.copy(), inverse, max(squares, 1e-30)])
    left = list(group.free)
    limit = min(len(left), group.units - 1 if most is None else most)
    step = max(1, limit // STEPS)
    order: list[int] = []
    losses: list[float] = []
    total = 0.0
    while len(order) < limit:
        costs = np.zeros(len(left))
        for reader, weight, inverse, squares in held:
            places = np.stack([np.flatnonzero(reader.owner == u) for u in left])
            costs += removal_costs(weight, inverse, places) / squares
        count = min(step, limit - len(order))
        going = np.argsort(costs, kind="stable")[:count]
        units = [left[i] for i in going]
        for entry in held:
            gone = entry[0].inputs(units)
            before = entry[1]
            entry[1], entry[2] = remove_inputs(entry[1], entry[2], gone)
            del before
        for i in going:
            total += max(float(costs[i]), 0.0)
            losses.append(total)
        order += units
        left = [u for u in left if u not in set(units)]
    return Order(np.asarray(order, np.int64), np.asarray(losses))


def by_energy(group: AxisGroup, seen: Mapping[Value, Gram]) -> np.ndarray | None:
    """f64[units], worth of lanes that only meet each other; None where the group is no such."""
    ends = met(group)
    if len(ends) < 2 or any(value not in seen for value, _ in ends):
        return None
    worth = np.ones(group.units)
    for value, owner in ends:
        energy = np.zeros(group.units)
        held = owner >= 0
        np.add.at(energy, owner[held], np.diagonal(seen[value].xtx)[held])
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
