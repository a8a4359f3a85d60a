"""Ops that read shapes or create tensors from them: Shape, Size, Expand, Tile, ConstantOfShape, Range,
EyeLike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx

from tersor.backends.tvm.lowering import Lowering, Refused, Rule, dtype_of
from tersor.backends.tvm.ops._agreement import broadcast_sizes
from tersor.backends.tvm.ops._elements import element, listed, operand
from tersor.backends.tvm.ops._sizes import compute_sizes, steps_between
from tersor.backends.tvm.ops.broadcast import dims_of
from tersor.ir import Encoding, Node
from tersor.ops import contents_of
from tersor.ops.families._symbolic import is_negative


def _read(lowering: Lowering, node: Node) -> Sequence[Any]:
    """Numbers that depend on the operand's dims only."""
    contents = lowering.contents(node.output)
    if contents is None:
        raise Refused("a dim is known at run time only")
    if all(isinstance(item, tirx.IntImm) for item in contents):
        numbers = np.array([item.value for item in contents], np.int64)
        return [lowering.constant(numbers.reshape(node.output.tensor.shape))]
    return [lowering.te(_listed, contents, lowering.shape_of(node.output))]


def _listed(items: list[Any], dims: list[Any]) -> Any:
    return te.compute(dims, lambda *i: listed(items, i[0] if i else 0), name="listed")


def _expand(lowering: Lowering, node: Node) -> Sequence[Any]:
    x, target = node.inputs
    assert x is not None and target is not None
    have, want, contents = dims_of(x), dims_of(node.output), contents_of(target)
    if contents is not None and all(map(lowering.is_known, contents)):
        asked = tuple(1 if is_negative(d) else d for d in contents)
        dims = broadcast_sizes(lowering, [have, asked], want)
    else:
        dims = _asked_sizes(lowering, node)
    return [lowering.te(_expanded, lowering[x], dims, _equal(node))]


def _asked_sizes(lowering: Lowering, node: Node) -> list[Any]:
    """The sizes of an Expand whose target is computed in the run."""
    x, target = node.inputs
    assert x is not None
    for dim in dims_of(node.output):
        lowering.define(dim)
    sizes = lowering.shape_of(node.output)
    made = relax.op.call_pure_packed(
        "tersor.expanded_sizes",
        relax.ShapeExpr(lowering.shape_of(x)),
        lowering[target],
        tvm.ir.StringImm(lowering.label),
        ty_args=[relax.ShapeType(ndim=len(sizes))],
    )
    lowering.builder.match_cast(lowering.emit(made), relax.ShapeType(sizes))
    return sizes


def _equal(node: Node) -> list[bool]:
    """For each axis of the operand, whether the result is known to have the same size."""
    x = node.inputs[0]
    assert x is not None
    have, out = x.tensor.dims or (), node.output.tensor.dims or ()
    return [a == b for a, b in zip(have, out[len(out) - len(have) :], strict=True)]


def _expanded(x: Any, dims: list[Any], equal: list[bool]) -> Any:
    lead = len(dims) - len(equal)

    def pick(*index: Any) -> Any:
        axes = zip(index[lead:], x.shape, equal, strict=True)
        return x(
            *(
                i if same else tirx.Select(size == 1, tirx.IntImm("int64", 0), i)
                for i, size, same in axes
            )
        )

    return te.compute(dims, pick, name="expand")


def _tile(lowering: Lowering, node: Node) -> Sequence[Any]:
    x, repeats = node.inputs
    assert x is not None and repeats is not None

    def sizes(have: list[Any], repeats: Any) -> list[Any]:
        return [size * element(repeats, n) for n, size in enumerate(have)]

    compute_sizes(lowering, node, sizes, lowering.shape_of(x), operand(lowering, repeats))
    return [lowering.te(_tiled, lowering[x], lowering.shape_of(node.output), _equal(node))]


def _tiled(x: Any, dims: list[Any], equal: list[bool]) -> Any:
    def pick(*index: Any) -> Any:
        axes = zip(index, x.shape, equal, strict=True)
        return x(*(i if same else tirx.floormod(i, size) for i, size, same in axes))

    return te.compute(dims, pick, name="tile")


def _constant_of_shape(lowering: Lowering, node: Node) -> Sequence[Any]:
    value, dtype = node.attrs.get("value"), dtype_of(node.output.type)
    fill = value.decode().reshape(-1)[0] if isinstance(value, Encoding) else np.float32(0)
    filled = tirx.const(float(fill) if "float" in dtype else int(fill), dtype)

    def full(dims: list[Any]) -> Any:
        return te.compute(dims, lambda *_: filled, name="full")

    (target,) = node.inputs
    assert target is not None
    rank = len(dims_of(node.output))
    compute_sizes(
        lowering, node, lambda t: [element(t, n) for n in range(rank)], operand(lowering, target)
    )
    return [lowering.te(full, lowering.shape_of(node.output))]


def _range(lowering: Lowering, node: Node) -> Sequence[Any]:
    start, limit, delta = (lowering[v] for v in node.inputs)
    compute_sizes(lowering, node, _range_sizes, start, limit, delta)
    return [lowering.te(_ranged, start, delta, lowering.shape_of(node.output))]


def _range_sizes(*operands: Any) -> list[Any]:
    start, limit, delta = (t[()] if len(t.shape) == 0 else t[0] for t in operands)
    if "float" in str(operands[0].dtype):
        count = tirx.ceil((limit - start).astype("float64") / delta.astype("float64"))
        return [tirx.max(count, tirx.const(0, "float64")).astype("int64")]
    return [steps_between(*(number.astype("int64") for number in (start, limit, delta)))]


def _ranged(start: Any, delta: Any, dims: list[Any]) -> Any:
    first, step = (t[()] if len(t.shape) == 0 else t[0] for t in (start, delta))
    return te.compute(dims, lambda i: first + i.astype(start.dtype) * step, name="range")


def _eye_like(lowering: Lowering, node: Node) -> Sequence[Any]:
    diagonal, dtype = node.attrs["k"], dtype_of(node.output.type)

    def eye(dims: list[Any]) -> Any:
        return te.compute(dims, lambda i, j: (j - i == diagonal).astype(dtype), name="eye")

    return [lowering.te(eye, lowering.shape_of(node.output))]


RULES: dict[str, Rule] = {
    "Shape": _read,
    "Size": _read,
    "Expand": _expand,
    "Tile": _tile,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "EyeLike": _eye_like,
}
