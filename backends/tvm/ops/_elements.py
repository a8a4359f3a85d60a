"""Operands in TE computes: small integer ones (shapes, starts, pads), whose numbers are known when the
code is made or read in the run, and tensors whose sizes must fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import te, tirx

from tersor.backends.tvm.lowering import Lowering
from tersor.backends.tvm.ops.broadcast import HALF
from tersor.backends.tvm.schedule import STAYS
from tersor.ir import Dim, Value


def fitting(lowering: Lowering, value: Value | None, dims: Mapping[int, Dim]) -> Any:
    """The expression of a value that must have ``dims`` on some axes: the run fails where it has not,
    rather than read outside of it. Unknown dims are not looked at."""
    expr = lowering[value]
    assert value is not None
    have = list(value.tensor.dims or ())
    for axis, dim in dims.items():
        have[axis] = have[axis] if dim is None else dim
    if tuple(have) == value.tensor.dims:
        return expr
    return lowering.builder.match_cast(
        expr, lowering.relax_type(value.tensor.with_dims(tuple(have)))
    )


def operand(lowering: Lowering, value: Value) -> Any:
    """What :func:`element` reads in a TE function: the elements themselves where they are known, else
    the tensor."""
    held = lowering.contents(value)
    return lowering[value] if held is None else held


def element(held: Any, index: int = 0) -> Any:
    """Element ``index`` of a vector, or the one of a scalar, as int64."""
    rank = 1 if isinstance(held, list) else len(held.shape)
    return (held[index] if rank else held[()]).astype("int64")


def numbers(items: list[Any], name: str) -> list[Any]:
    """Numbers that are computed once, before the loops that read them."""
    count = tirx.IntImm("int64", len(items))
    held = te.compute((count,), lambda i: listed(items, i), name=name, attrs={STAYS: True})
    return [held(tirx.IntImm("int64", n)) for n in range(len(items))]


def listed(items: list[Any], index: Any) -> Any:
    """The item at a place that is known in the run."""
    chosen = items[-1]
    for n, item in reversed(list(enumerate(items[:-1]))):
        chosen = tirx.Select(index == n, item, chosen)
    return chosen


def from_end(position: Any, size: Any) -> Any:
    """A position, negative ones counted from the end."""
    return tirx.Select(position < 0, position + size, position)


def within(position: Any, low: Any, high: Any) -> Any:
    """The position, or the nearer bound where it lies outside of ``low`` to ``high``."""
    return tirx.max(tirx.min(position, high), low)


def looked_up(index: Any, size: Any) -> Any:
    """A position that is read from a tensor. ONNX calls one that lies outside an error; nothing outside
    of memory may be read for it, so it is the nearest there is."""
    return within(from_end(index.astype("int64"), size), 0, size - 1)


def summed_in(x: Any) -> str:
    """The dtype that a TE tensor's elements are summed in: halves in single precision."""
    dtype = str(x.dtype)
    return "float32" if dtype in HALF else dtype
