"""Building blocks for the ties of rows."""

from __future__ import annotations

from tersor.ir import Dim, Node, TensorType, Value
from tersor.ops.opdef import Member, Tie


def dims(value: Value | None) -> tuple[Dim, ...]:
    """Dims of a tensor operand; empty where it is left out or its rank is unknown."""
    if value is None or not isinstance(value.type, TensorType):
        return ()
    return value.type.dims or ()


def plain(side: str, index: int, axis: int) -> Member:
    return Member("in" if side == "in" else "out", index, axis)


def broadcast(
    node: Node, operands: list[int] | None = None, skip: tuple[int, ...] = ()
) -> list[Tie]:
    """Ties of an op that works an element at a time over broadcast operands: every result axis with
    the operands' axes that are not stretched. ``skip``: result axes to leave out."""
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
