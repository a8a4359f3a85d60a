"""Folds the addition of a constant per channel into the bias of the convolution before it.

Add(Conv(x, W, b), @c[1, C, 1, 1])  =  Conv(x, W, b + c)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import dims, has_one_use, operand, operand_and_constant
from tersor.ir import Graph, Node, Value
from tersor.pipeline import ROUNDING, Pass, Rewrite, Skip

_LAYERS = ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class FoldConvBias(Pass):
    """No options."""

    keeps = ROUNDING

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        pair = operand_and_constant(node) if node.op == "Add" else None
        if pair is None:
            return None
        y, added = pair
        layer = y.producer
        if layer is None or layer.op not in _LAYERS:
            return None
        channels, old = _channels(layer), layer.input(2)
        row = None if channels is None else _row(added, channels, operand(layer, 1))
        if row is None:
            return None
        if not has_one_use(y):
            raise Skip(f"the {layer.op} has another user than the bias")
        if old is not None and not old.is_constant:
            raise Skip(f"the bias of the {layer.op} is not a constant")
        if old is not None:
            row = row + old.numpy()
        name = added.name if old is None else old.name
        operands = [operand(layer, 0), operand(layer, 1), graph.constant(row, name)]
        return graph.emit(layer.op, operands, layer.attrs, name=node.output.name, scope=layer.scope)


def _channels(layer: Node) -> int | None:
    """The number of output channels."""
    weight, group = operand(layer, 1), layer.attrs["group"]
    shape = dims(weight)
    assert isinstance(group, int)
    channels = None if not shape else shape[0] if layer.op == "Conv" else shape[1]
    if not isinstance(channels, int):
        return None
    return channels if layer.op == "Conv" else channels * group


def _row(added: Value, channels: int, weight: Value) -> np.ndarray | None:
    """The number added to each channel; None where it varies within a channel."""
    # A weight has the rank of the result.
    shape, rank = added.tensor.shape, weight.tensor.rank or 0
    if len(shape) > rank:
        return None
    shape = (1,) * (rank - len(shape)) + shape
    if shape[1] not in (1, channels) or any(d != 1 for i, d in enumerate(shape) if i != 1):
        return None
    return np.ascontiguousarray(np.broadcast_to(added.numpy().reshape(-1), (channels,)))
