"""Building blocks for the ties of rows."""

from __future__ import annotations

import numpy as np

from tersor.errors import Unsupported
from tersor.ir import Dim, Node, TensorType, Value
from tersor.ops.opdef import Cut, Follow, Member, Tie


def dims(value: Value | None) -> tuple[Dim, ...]:
    """Dims of a tensor operand; empty if it is left out or its rank is unknown."""
    if value is None or not isinstance(value.type, TensorType):
        return ()
    return value.type.dims or ()


def plain(side: str, index: int, axis: int) -> Member:
    return Member("in" if side == "in" else "out", index, axis)


def broadcast(
    node: Node, operands: list[int] | None = None, skip: tuple[int, ...] = ()
) -> list[Tie]:
    """Ties of an elementwise op over broadcast operands: every result axis, except those in ``skip``, with
    the operands' axes that are not stretched."""
    out = dims(node.output)
    ties = []
    for axis, size in enumerate(out):
        if axis in skip or size == 1:
            continue
        members = [plain("out", 0, axis)]
        for i in operands if operands is not None else range(len(node.inputs)):
            shape = dims(node.input(i))
            own = axis - (len(out) - len(shape))
            if own >= 0 and shape[own] == size:
                members.append(plain("in", i, own))
        if len(members) > 1:
            ties.append(Tie(size, tuple(members)))
    return ties


# -- following a cut -------------------------------------------------------------------------------


def constant(node: Node, index: int) -> np.ndarray:
    """The numbers of operand ``index``, which states sizes.

    Raises:
        Unsupported: it is left out or not constant.
    """
    value = node.input(index)
    if value is None or not value.is_constant:
        raise Unsupported(f"{node.label}: operand {index} states sizes and is not constant")
    return value.numpy()


def stated_shape(node: Node, cut: Cut) -> Follow:
    """For ops whose operand 1 is the result's shape, right-aligned; 0, 1 and -1 in it need no change."""
    shape = constant(node, 1).copy()
    first = len(dims(node.output)) - len(shape)
    for i, entry in enumerate(shape):
        if entry > 1:
            shape[i] = entry - len(cut.get(("out", 0, first + i), ()))
    return Follow(operands={1: shape})
