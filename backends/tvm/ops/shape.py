"""Ops that read shapes or create tensors from them: Shape, Size, Expand, Tile, ConstantOfShape, Range,
EyeLike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import te, tirx

from tersor.backends.tvm.lowering import Lowering, Refused, Rule, dtype_of
from tersor.backends.tvm.ops._elements import listed
from tersor.ir import Encoding, Node


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
    x, out = node.inputs[0], node.output
    assert x is not None
    return [lowering.te(_expanded, lowering[x], lowering.shape_of(out), _equal(node))]


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
    x = lowering[node.inputs[0]]
    return [lowering.te(_tiled, x, lowering.shape_of(node.output), _equal(node))]


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

    return [lowering.te(full, lowering.shape_of(node.output))]


def _range(lowering: Lowering, node: Node) -> Sequence[Any]:
    start, _, delta = (lowering[v] for v in node.inputs)
    return [lowering.te(_ranged, start, delta, lowering.shape_of(node.output))]


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
