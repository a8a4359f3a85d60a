"""Operands of TE computes: small integer tensors (shapes, starts, pads), whose elements are known at compile
time or read at run time, and tensors whose sizes must match."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import te, tirx

from tersor.backends.tvm.lowering import Lowering
from tersor.backends.tvm.ops._agreement import check_equal
from tersor.backends.tvm.ops.broadcast import HALF
from tersor.backends.tvm.schedule import STAYS
from tersor.ir import Dim, Value


def fitting(lowering: Lowering, value: Value | None, dims: Mapping[int, Dim]) -> Any:
    """The expression of a value that must have ``dims`` on some axes: a run fails where they differ, rather
    than read out of bounds. Unknown dims are not checked."""
    expr = lowering[value]
    assert value is not None
    have = list(value.tensor.dims or ())
    for axis, dim in dims.items():
        have[axis] = have[axis] if dim is None else dim
    if tuple(have) == value.tensor.dims:
        return expr
    check_equal(lowering, zip(value.tensor.dims or (), have, strict=True))
    return lowering.builder.match_cast(
        expr, lowering.relax_type(value.tensor.with_dims(tuple(have)))
    )


def operand(lowering: Lowering, value: Value) -> Any:
    """The operand for :func:`element` in a TE function: the list of its elements where they are known, else
    the tensor."""
    contents = lowering.contents(value)
    return lowering[value] if contents is None else contents


def element(operand: Any, index: int = 0) -> Any:
    """Element ``index`` of a vector, or a scalar's element, as int64."""
    rank = 1 if isinstance(operand, list) else len(operand.shape)
    return (operand[index] if rank else operand[()]).astype("int64")


def numbers(items: list[Any], name: str) -> list[Any]:
    """The numbers, computed once before the loops that read them."""
    count = tirx.IntImm("int64", len(items))
    tensor = te.compute((count,), lambda i: listed(items, i), name=name, attrs={STAYS: True})
    return [tensor(tirx.IntImm("int64", n)) for n in range(len(items))]


def listed(items: list[Any], index: Any) -> Any:
    """The item at an index that is known at run time."""
    chosen = items[-1]
    for n, item in reversed(list(enumerate(items[:-1]))):
        chosen = tirx.Select(index == n, item, chosen)
    return chosen


def from_end(position: Any, size: Any) -> Any:
    """A position; negative ones count from the end."""
    return tirx.Select(position < 0, position + size, position)


def within(position: Any, low: Any, high: Any) -> Any:
    """The position clipped to ``low`` … ``high``."""
    return tirx.max(tirx.min(position, high), low)


def looked_up(index: Any, size: Any) -> Any:
    """A position that is read from a tensor. One out of range is an error in ONNX; it is clipped here, so
    that nothing is read out of bounds."""
    return within(from_end(index.astype("int64"), size), 0, size - 1)


def summed_in(x: Any) -> str:
    """The accumulator's dtype for a TE tensor: float32 for the halves."""
    dtype = str(x.dtype)
    return "float32" if dtype in HALF else dtype
