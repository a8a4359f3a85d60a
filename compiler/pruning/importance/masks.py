"""A graph with a mask for each unit as an input: 1 keeps the unit, 0 zeroes it.

    x W   becomes   (x * m) W         m: one number for each position on the units' axis

Where nodes sum over a unit, m = 0 is the model without it, and d/dm at 1 its sensitivity.  Of q k^T only q is
masked; if only weights are operands (an LSTM's R), these are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from tersor.ir import Graph, Node, TensorType, Value
from tersor.ir.dims import Sym
from tersor.pruning.importance.readers import Reader, readers
from tersor.structure import AxisGroup
from tersor.structure.links import Axis


@dataclass(frozen=True, eq=False)
class Mask:
    """An input of the masked graph that multiplies an activation.

    Attributes:
        value: of size 1 along all axes but these.
        axis: along which the units lie.
        owner: i64[size], the unit of each position; -1: none.
        samples: the axis with one number per sample; None: the same for all.
    """

    value: Value
    axis: int
    owner: np.ndarray
    samples: int | None

    def without(self, units: Collection[int], batch: int = 1) -> np.ndarray:
        """Its feed to zero ``units``."""
        shape = [1] * len(self.value.tensor.dims or ())
        if self.samples is not None:
            shape[self.samples] = batch
        shape[self.axis] = len(self.owner)
        left = ~np.isin(self.owner, list(units))
        along = [1] * len(shape)
        along[self.axis] = len(left)
        numbers = left.astype(self.value.tensor.dtype.numpy).reshape(along)
        return np.ascontiguousarray(np.broadcast_to(numbers, shape))

    def by_unit(self, numbers: np.ndarray, units: int) -> np.ndarray:
        """f64[samples or 1, units], sums of ``numbers`` of its shape."""
        moved = np.moveaxis(numbers, self.axis, -1).reshape(-1, len(self.owner))
        return np.stack([np.bincount(self.owner + 1, row, units + 1)[1:] for row in moved])


@dataclass
class Masked:
    """A copy of a graph with masks as further inputs.

    Attributes:
        masks: of each group, in the order of the groups.
    """

    graph: Graph
    masks: list[list[Mask]] = field(default_factory=list)

    def whole(self, batch: int = 1) -> dict[str, np.ndarray]:
        """Feeds that keep all units."""
        return {m.value.name: m.without((), batch) for masks in self.masks for m in masks}

    def without(self, group: int, units: Collection[int]) -> dict[str, np.ndarray]:
        """Feeds that zero ``units`` of one group."""
        return self.whole() | {m.value.name: m.without(units) for m in self.masks[group]}


def masked(graph: Graph, groups: Sequence[AxisGroup], samples: Sym | None = None) -> Masked:
    """A copy of ``graph`` with masks for all units of ``groups``. ``samples``: an open dim; activations that
    have it exactly once get a mask per position of it."""
    copy = graph.copy()
    nodes = {n.outputs[0].name: n for n in copy.walk() if n.outputs}
    result = Masked(copy)
    for group in groups:
        by_operand: dict[tuple[Axis, Graph, Value], tuple[Mask, Value]] = {}
        for reader in readers(group):
            node = nodes[reader.node.outputs[0].name]
            _mask(copy, node, reader, group.axes[reader.operand.axis], samples, by_operand)
        result.masks.append([mask for mask, _ in by_operand.values()])
    return result


def _mask(
    graph: Graph,
    node: Node,
    reader: Reader,
    owner: np.ndarray,
    samples: Sym | None,
    by_operand: dict[tuple[Axis, Graph, Value], tuple[Mask, Value]],
) -> None:
    """Multiplies the reader's operand by a mask, which all readers of the value share."""
    value, axis = reader.operand.axis
    operand = reader.operand.place[2]
    assert isinstance(operand, int) and node.graph is not None
    current = node.inputs[operand]
    assert current is not None
    key = (reader.operand.axis, node.graph, current)
    if key not in by_operand:
        dims = list(value.tensor.dims or ())
        each = dims.index(samples) if samples is not None and dims.count(samples) == 1 else None
        shape = [d if i in (axis, each) else 1 for i, d in enumerate(dims)]
        mask_input = graph.add_input("units", TensorType(value.tensor.dtype, tuple(shape)))
        with node.graph.at(node):
            kept = node.graph.emit("Mul", [current, mask_input])
        by_operand[key] = (Mask(mask_input, axis, owner, each), kept)
    node.graph.set_input(node, operand, by_operand[key][1])
