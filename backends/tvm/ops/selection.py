"""Choosing by value: OneHot, and Compress by flags that are known. Of the others only the numbers tell
how much they choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import te, tirx

from tersor.backends.tvm.lowering import Lowering, Refused, Rule
from tersor.backends.tvm.ops.broadcast import dims_of
from tersor.backends.tvm.ops.matmul import operands_of
from tersor.backends.tvm.ops.movement import axis_of
from tersor.ir import Node
from tersor.ops import contents_of


def _one_hot(lowering: Lowering, node: Node) -> Sequence[Any]:
    where, _, values = operands_of(node, 3)
    rank = len(dims_of(node.output))
    at = axis_of(node, rank)

    def compute(where: te.Tensor, values: te.Tensor, shape: Sequence[Any]) -> te.Tensor:
        off, on = (values(tirx.IntImm("int64", i)) for i in (0, 1))

        def one(*index: Any) -> Any:
            place = where(*index[:at], *index[at + 1 :]).astype("int64")
            place = tirx.Select(place < 0, place + shape[at], place)
            return tirx.Select(tirx.EQ(place, index[at]), on, off)

        return te.compute(tuple(shape), one, name="one_hot")

    sources = [lowering[where], lowering[values], lowering.shape_of(node.output)]
    return [lowering.te(compute, *sources, primfunc_name_hint="one_hot")]


def _compress(lowering: Lowering, node: Node) -> Sequence[Any]:
    x, flags = operands_of(node)
    held = contents_of(flags)
    if held is None or not all(isinstance(f, int) for f in held):
        raise Refused("which elements it takes is known at run time only")
    places = np.array([i for i, flag in enumerate(held) if flag], np.int64)
    axis = node.attrs.get("axis")
    if axis is not None:
        axis = axis_of(node, len(dims_of(x)))

    def compute(x: te.Tensor, places: te.Tensor, shape: Sequence[Any]) -> te.Tensor:
        def one(*index: Any) -> Any:
            if axis is None:
                return x(*_unraveled(places(index[0]), x.shape))
            return x(*index[:axis], places(index[axis]), *index[axis + 1 :])

        return te.compute(tuple(shape), one, name="compress")

    made = lowering.te(
        compute,
        lowering[x],
        lowering.constant(places, "places"),
        lowering.shape_of(node.output),
        primfunc_name_hint="compress",
    )
    return [made]


def _unraveled(place: Any, shape: Sequence[Any]) -> list[Any]:
    """The index of the element at a place in row-major order."""
    index: list[Any] = []
    for size in reversed(shape):
        index.append(tirx.floormod(place, size))
        place = tirx.floordiv(place, size)
    return index[::-1]


def _unknown(lowering: Lowering, node: Node) -> Sequence[Any]:
    raise Refused("only the numbers tell how many elements it gives")


RULES: dict[str, Rule] = {
    "OneHot": _one_hot,
    "Compress": _compress,
    "NonZero": _unknown,
    "Unique": _unknown,
}
