"""Ops that read shapes or create tensors from shapes: Shape, Size, Expand, Tile, ConstantOfShape, Range,
EyeLike. Dims are derived from the operands' contents, symbols included."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tersor.ir import Dim, DType, Encoding, Node, TensorType, Value, ValueType
from tersor.ir.dims import KnownDim, ceil_div, dim_array, product
from tersor.ops.contents import contents_of
from tersor.ops.families._samples import floats
from tersor.ops.families._symbolic import (
    broadcast_dims,
    element_cost,
    ints,
    is_negative,
    no_work,
    refuse,
    scalar,
    small,
    tensor,
    vector_or_unknown,
)
from tersor.ops.families._ties import dims, plain, stated_shape
from tersor.ops.families._torch import torch_dtype
from tersor.ops.onnx_schema import FROM_ONNX
from tersor.ops.opdef import Member, OpDef, Sample, Tie


def _shape_ties(node: Node) -> list[Tie]:
    """Axes whose sizes are not read can be cut."""
    have = dims(node.inputs[0])
    start, end = node.attrs["start"], node.attrs.get("end")
    assert isinstance(start, int) and isinstance(end, int | None)
    read = range(len(have))[start:end]
    return [Tie(d, (plain("in", 0, i),)) for i, d in enumerate(have) if i not in read]


def no_ties(node: Node) -> list[Tie]:
    """All axes stay as they are."""
    return []


# -- Shape, Size -----------------------------------------------------------------------------------


def _read(node: Node) -> tuple[Dim, ...] | None:
    """The dims that are read; None if the rank is unknown."""
    have, start, end = tensor(node).dims, node.attrs["start"], node.attrs.get("end")
    assert isinstance(start, int) and isinstance(end, int | None)
    return None if have is None else have[start:end]


def _shape_infer(node: Node) -> list[ValueType]:
    read = _read(node)
    return [TensorType(DType.I64, (None if read is None else len(read),))]


def _shape_contents(node: Node) -> list[np.ndarray | None]:
    read = _read(node)
    return [None if read is None else dim_array(read)]


def _shape(x: Any, *, start: int, end: int | None = None) -> Any:
    import torch

    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def _size_contents(node: Node) -> list[np.ndarray | None]:
    return [dim_array([tensor(node).numel], ())]


def _size(x: Any) -> Any:
    import torch

    return torch.tensor(x.numel())


# -- Expand ----------------------------------------------------------------------------------------


def _expand_infer(node: Node) -> list[ValueType]:
    x, target = tensor(node), vector_or_unknown(node.inputs[1])
    if target is None or x.dims is None:
        return [x.with_dims(None)]
    out = broadcast_dims(x.dims, tuple(None if is_negative(d) else d for d in target))
    for place in range(1, 1 + min(len(target), len(x.dims))):
        have, want = x.dims[-place], target[-place]
        if (
            isinstance(have, int)
            and isinstance(want, int)
            and 1 not in (have, want)
            and have != want
        ):
            refuse(node, f"{x} cannot be expanded to {target}")
    return [x.with_dims(out)]


def _expand_contents(node: Node) -> list[np.ndarray | None]:
    contents, out = contents_of(node.inputs[0]), ints(node.inputs[1])
    if contents is None or out is None or min(out, default=0) < 0:
        return [None]
    shape = np.broadcast_shapes(contents.shape, tuple(out))
    return [np.broadcast_to(contents, shape).copy() if small(shape) else None]


def _expand(x: Any, shape: Any) -> Any:
    import torch

    return x.expand(
        torch.broadcast_shapes(tuple(x.shape), tuple(int(s) for s in shape.reshape(-1)))
    )


def _expand_ties(node: Node) -> list[Tie]:
    """Axes that are not stretched."""
    have, out = dims(node.inputs[0]), dims(node.output)
    lead = len(out) - len(have)
    return [
        Tie(d, (plain("in", 0, i), plain("out", 0, i + lead)))
        for i, d in enumerate(have)
        if d is not None and d == out[i + lead] and d != 1
    ]


# -- Tile ------------------------------------------------------------------------------------------


def _tile_infer(node: Node) -> list[ValueType]:
    x, repeats = tensor(node), vector_or_unknown(node.inputs[1])
    if x.dims is None:
        return [x.with_dims(None if repeats is None else (None,) * len(repeats))]
    if repeats is None:
        return [x.with_dims((None,) * len(x.dims))]
    if len(repeats) != len(x.dims) or any(map(is_negative, repeats)):
        refuse(node, f"{x} cannot be repeated {repeats} times")
    return [x.with_dims(tuple(product(pair) for pair in zip(x.dims, repeats, strict=True)))]


def _tile_contents(node: Node) -> list[np.ndarray | None]:
    contents, repeats = contents_of(node.inputs[0]), ints(node.inputs[1])
    if contents is None or repeats is None or not small([contents.size, *repeats]):
        return [None]
    return [np.tile(contents, repeats)]


def _tile_ties(node: Node) -> list[Tie]:
    """A repeated axis has each unit once per repetition."""
    have, repeats = dims(node.inputs[0]), vector_or_unknown(node.inputs[1])
    if not have or repeats is None:
        return []
    return [
        Tie(d, (plain("in", 0, i), Member("out", 0, i, outer=repeats[i])))
        for i, d in enumerate(have)
        if isinstance(repeats[i], int) and repeats[i] > 0
    ]


# -- ConstantOfShape -------------------------------------------------------------------------------


def _fill(value: Any) -> np.ndarray:
    """The one element, as an array of one."""
    if not isinstance(value, Encoding):
        return np.zeros(1, np.float32)
    return value.decode().reshape(-1)[:1]


def _constant_of_shape_infer(node: Node) -> list[ValueType]:
    target = vector_or_unknown(node.inputs[0])
    if target is not None and any(map(is_negative, target)):
        refuse(node, f"{target} is not a valid shape")
    dtype = DType.of(_fill(node.attrs.get("value")))
    return [TensorType(dtype, None if target is None else tuple(target))]


def _constant_of_shape_contents(node: Node) -> list[np.ndarray | None]:
    target, fill = ints(node.inputs[0]), _fill(node.attrs.get("value"))
    if target is None or not small(target) or fill.dtype.kind not in "iub":
        return [None]
    return [np.full(tuple(target), int(fill[0]), object)]


def _constant_of_shape(shape: Any, *, value: Any = None) -> Any:
    import torch

    fill = _fill(value)
    number = fill.astype(np.float64)[0] if fill.dtype.kind == "V" else fill[0]
    sizes = [int(s) for s in shape.reshape(-1)]
    return torch.full(sizes, number.item(), dtype=torch_dtype(DType.of(fill)))


# -- Range -----------------------------------------------------------------------------------------


def _range_infer(node: Node) -> list[ValueType]:
    return [tensor(node).with_dims((_range_length(*node.inputs),))]


def _range_length(start: Value | None, limit: Value | None, delta: Value | None) -> Dim:
    """max(ceil((limit - start) / delta), 0); a symbolic span is assumed not to be negative."""
    bounds = [_number(v) for v in (start, limit, delta)]
    if None not in bounds and bounds[2] != 0:
        first, last, step = (b for b in bounds if b is not None)
        return max(math.ceil((last - first) / step), 0)
    low, high, by = scalar(start), scalar(limit), scalar(delta)
    if low is None or high is None or not isinstance(by, int) or by == 0:
        return None
    span: KnownDim = high - low if by > 0 else low - high
    length = ceil_div(span, abs(by))
    return max(length, 0) if isinstance(length, int) else length


def _number(value: Value | None) -> float | None:
    """A constant float scalar; None for others."""
    if value is None or not value.is_constant or not value.tensor.dtype.is_float:
        return None
    return float(value.numpy().reshape(-1)[0])


def _range_contents(node: Node) -> list[np.ndarray | None]:
    start, delta, length = (
        scalar(node.inputs[0]),
        scalar(node.inputs[2]),
        _range_length(*node.inputs),
    )
    if start is None or delta is None or not isinstance(length, int) or not small([length]):
        return [None]
    return [dim_array([start + delta * i for i in range(length)])]


def _range(start: Any, limit: Any, delta: Any, *, stash_type: int = 1) -> Any:
    import torch

    length = math.ceil((limit.item() - start.item()) / delta.item())
    return start + torch.arange(max(length, 0)).to(start.dtype) * delta


# -- EyeLike ---------------------------------------------------------------------------------------


def _eye_infer(node: Node) -> list[ValueType]:
    x, dtype = tensor(node), node.attrs.get("dtype")
    return [TensorType(FROM_ONNX[dtype] if isinstance(dtype, int) else x.dtype, x.dims)]


def _eye(x: Any, *, k: int, dtype: int | None = None) -> Any:
    import torch

    dtype_ = x.dtype if dtype is None else torch_dtype(FROM_ONNX[dtype])
    rows, columns = x.shape
    return (torch.arange(columns) - torch.arange(rows)[:, None] == k).to(dtype_)


# -- samples and rows ------------------------------------------------------------------------------


def _i(*items: int) -> np.ndarray:
    return np.array(items, np.int64)


_ZERO, _ONE, _ALL = frozenset({0}), frozenset({1}), frozenset({0, 1, 2})


def _shape_samples(rng: np.random.Generator) -> list[Sample]:
    bounds: list[dict[str, Any]] = [
        {}, {"start": 1, "end": -1}, {"start": -2}, {"end": 9}, {"start": 2, "end": 1}, {"start": -9}
    ]  # fmt: skip
    return [*(Sample([floats(rng, 2, 0, 4)], attrs) for attrs in bounds), Sample([floats(rng)])]


def _expand_samples(rng: np.random.Generator) -> list[Sample]:
    cases: list[tuple[np.ndarray, tuple[int, ...]]] = [
        (floats(rng, 3, 1), (2, 1, 4)),
        (floats(rng, 3, 4), (1, 1)),
        (floats(rng, 3, 4), (4,)),
        (floats(rng), (2, 3)),
        (floats(rng, 1, 3), (0, 3)),
        (np.array([[True], [False]]), (2, 3)),
        (np.arange(3), (2, 1)),
    ]
    return [Sample([x, _i(*shape)], constant=_ONE) for x, shape in cases]


def _tile_samples(rng: np.random.Generator) -> list[Sample]:
    cases: list[tuple[np.ndarray, tuple[int, ...]]] = [
        (floats(rng, 2, 3), (2, 1)), (floats(rng, 2, 3), (3, 2)), (floats(rng, 4), (0,)),
        (np.arange(3), (2,)), (np.array([[True, False]]), (2, 2)),
    ]  # fmt: skip
    return [Sample([x, _i(*repeats)], constant=_ONE) for x, repeats in cases]


def _constant_of_shape_samples(rng: np.random.Generator) -> list[Sample]:
    from tersor.ir import Dense

    fills = [np.array([2.5], np.float32), np.array([7]), np.array([True]), np.array([-3], np.int32)]
    shapes: list[tuple[int, ...]] = [(2, 3), (0, 2), (), (4,)]
    filled = [
        Sample([_i(*s)], {"value": Dense(v)}, _ZERO) for v, s in zip(fills, shapes, strict=True)
    ]
    return [Sample([_i(2, 3)], constant=_ZERO), *filled]


def _range_samples(rng: np.random.Generator) -> list[Sample]:
    whole = [(1, 10, 2), (0, 5, 1), (5, -5, -3), (3, 3, 1), (4, 0, 1), (0, 70, 1)]
    real = [(0.0, 1.0, 0.25), (1.0, 0.0, -0.3), (0.0, 1.0, 0.1)]
    return [
        *(Sample([np.array(n) for n in bounds], constant=_ALL) for bounds in whole),
        *(Sample([np.array(n, np.float32) for n in bounds], constant=_ALL) for bounds in real),
        Sample([np.array(n, np.int32) for n in (2, 9, 3)], constant=_ALL),
    ]


def _eye_samples(rng: np.random.Generator) -> list[Sample]:
    x = floats(rng, 3, 4)
    return [Sample([x]), Sample([x], {"k": 1, "dtype": 7}), Sample([floats(rng, 4, 2)], {"k": -2})]


ROWS = [
    OpDef("Shape", traits=frozenset({"shape"}),
          since=15, infer=_shape_infer, contents=_shape_contents, torch=_shape,
          cost=no_work, ties=_shape_ties, samples=_shape_samples),
    OpDef("Size", traits=frozenset({"shape"}),
          since=1, infer=lambda node: [TensorType(DType.I64, ())],
          contents=_size_contents, torch=_size, cost=no_work, ties=no_ties,
          samples=lambda rng: [Sample([floats(rng, *shape)]) for shape in ((2, 3), (), (2, 0))]),
    OpDef("Expand", traits=frozenset({"movement"}),
          since=8, infer=_expand_infer, contents=_expand_contents, torch=_expand,
          cost=no_work, ties=_expand_ties, follow=stated_shape, samples=_expand_samples),
    OpDef("Tile", traits=frozenset({"movement"}),
          since=6, infer=_tile_infer, contents=_tile_contents,
          torch=lambda x, repeats: x.repeat(tuple(int(r) for r in repeats)), cost=no_work,
          ties=_tile_ties, samples=_tile_samples),
    OpDef("ConstantOfShape", since=9, infer=_constant_of_shape_infer,
          contents=_constant_of_shape_contents, torch=_constant_of_shape, cost=no_work,
          ties=no_ties, samples=_constant_of_shape_samples),
    OpDef("Range", since=11, infer=_range_infer, contents=_range_contents, torch=_range,
          cost=element_cost, ties=no_ties, samples=_range_samples),
    OpDef("EyeLike", traits=frozenset({"shape"}),
          since=9, infer=_eye_infer, torch=_eye, cost=element_cost, ties=no_ties,
          samples=_eye_samples),
]  # fmt: skip
