"""Selection by value: OneHot, and ops whose result's size depends on the data: Compress, NonZero, Unique.
numpy computes the indices (see ``host``), which define the size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from tersor.backends.tvm.lowering import Lowering, Refused, Rule, dtype_of
from tersor.backends.tvm.ops.broadcast import dims_of
from tersor.backends.tvm.ops.matmul import operands_of
from tersor.backends.tvm.ops.movement import axis_of
from tersor.ir import Node, Value
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
    axis = node.attrs.get("axis")
    if axis is not None:
        axis = axis_of(node, len(dims_of(x)))
    known = contents_of(flags)
    if known is not None and all(isinstance(f, int) for f in known):
        places = lowering.constant(np.array([i for i, flag in enumerate(known) if flag], np.int64))
    else:
        places = _taken(lowering, flags, node.output, axis or 0)

    def compute(x: te.Tensor, places: te.Tensor, shape: Sequence[Any]) -> te.Tensor:
        def one(*index: Any) -> Any:
            if axis is None:
                return x(*_unraveled(places(index[0]), x.shape))
            return x(*index[:axis], places(index[axis]), *index[axis + 1 :])

        return te.compute(tuple(shape), one, name="compress")

    sources = [lowering[x], places, lowering.shape_of(node.output)]
    return [lowering.te(compute, *sources, primfunc_name_hint="compress")]


def _unraveled(place: Any, shape: Sequence[Any]) -> list[Any]:
    """The index of the element at a row-major offset."""
    index: list[Any] = []
    for size in reversed(shape):
        index.append(tirx.floormod(place, size))
        place = tirx.floordiv(place, size)
    return index[::-1]


def _places(lowering: Lowering, flags: Value) -> Any:
    """Indices of the nonzero elements, i64[rank, count]."""
    type = relax.TensorType(dtype="int64", ndim=2)
    return lowering.emit(
        relax.op.call_pure_packed("tersor.places", lowering[flags], ty_args=[type])
    )


def _taken(lowering: Lowering, flags: Value, result: Value, axis: int) -> Any:
    """Indices of the set flags, whose count defines the size of a result's axis."""
    size = dims_of(result)[axis]
    lowering.define(size)
    dims = [tirx.IntImm("int64", 1), lowering.dim(size)]
    indices = lowering.builder.match_cast(_places(lowering, flags), relax.TensorType(dims, "int64"))
    return lowering.emit(relax.op.reshape(indices, dims[1:]))


def _non_zero(lowering: Lowering, node: Node) -> Sequence[Any]:
    (x,) = operands_of(node, 1)
    if not dims_of(x):
        raise Refused("a scalar has no axes")
    return [_places(lowering, x)]


def _unique(lowering: Lowering, node: Node) -> Sequence[Any]:
    (x,) = operands_of(node, 1)
    axis = node.attrs.get("axis")
    if axis is not None:
        axis = axis_of(node, len(dims_of(x)))
    rank = 1 if axis is None else len(dims_of(x))
    vector = relax.TensorType(dtype="int64", ndim=1)
    types = [relax.TensorType(dtype=dtype_of(x.type), ndim=rank), vector, vector, vector]
    arguments = [
        lowering[x],
        relax.const(-1 if axis is None else axis),
        relax.const(node.attrs["sorted"]),
    ]
    made = lowering.emit(
        relax.op.call_pure_packed("tersor.unique", *arguments, ty_args=[relax.TupleType(types)])
    )
    return [lowering.emit(relax.TupleGetItem(made, i)) for i in range(len(node.outputs))]


RULES: dict[str, Rule] = {
    "OneHot": _one_hot,
    "Compress": _compress,
    "NonZero": _non_zero,
    "Unique": _unique,
}
