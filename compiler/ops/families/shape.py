"""Shapes: reading them, and views that change nothing but them. Dims are inferred exactly, symbols
included, from the operands' contents."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tersor.ir import Dim, DType, Node, TensorType, Value, ValueType
from tersor.ir.dims import divide, floordiv, product
from tersor.ops import onnx_schema
from tersor.ops.families._ties import dims, plain
from tersor.ops.opdef import Cost, Member, OpDef, Sample, Tie
from tersor.ops.table import contents_of


def known(value: Value | None) -> list[Any] | None:
    """Elements of a vector whose contents are known (each int, Sym or None), else None."""
    contents = contents_of(value)
    return None if contents is None else list(contents.reshape(-1))


def ints(value: Value | None) -> list[int] | None:
    """Elements of a vector that are all plain integers, else None."""
    items = known(value)
    return items if items is not None and all(isinstance(i, int) for i in items) else None


def vector(items: Any) -> np.ndarray:
    """An object array of dims."""
    held = np.empty(len(items), object)
    held[:] = items
    return held


def view_cost(node: Node) -> Cost:
    """A view moves nothing."""
    return Cost(0, 0)


def _fallback(node: Node) -> list[ValueType]:
    return onnx_schema.infer(node)


# -- Shape, Size -----------------------------------------------------------------------------------


def _shape_contents(node: Node) -> list[np.ndarray | None]:
    x = node.inputs[0]
    assert x is not None
    if not isinstance(x.type, TensorType) or x.type.dims is None:
        return [None]
    start, end = node.attrs.get("start", 0), node.attrs.get("end", None)
    return [vector(x.type.dims[start:end])]


def _shape(x: Any, *, start: int = 0, end: int | None = None) -> Any:
    import torch

    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def _size_contents(node: Node) -> list[np.ndarray | None]:
    x = node.inputs[0]
    assert x is not None
    held = np.empty((), object)
    held[()] = x.tensor.numel
    return [held]


def _size(x: Any) -> Any:
    import torch

    return torch.tensor(x.numel())


# -- Reshape ---------------------------------------------------------------------------------------


def _reshape_infer(node: Node) -> list[ValueType]:
    x, target = node.inputs[0], known(node.inputs[1])
    assert x is not None
    if target is None:
        shape = node.inputs[1]
        rank = shape.tensor.dims[0] if shape is not None and shape.tensor.dims else None
        return [x.tensor.with_dims((None,) * rank if isinstance(rank, int) else None)]
    return [x.tensor.with_dims(reshaped(x.tensor.dims, target, bool(node.attrs["allowzero"])))]


def reshaped(have: tuple[Dim, ...] | None, target: list[Any], allow_zero: bool) -> tuple[Dim, ...]:
    """Dims that Reshape gives: 0 copies the dim at its place, -1 takes what is left."""
    out: list[Dim] = []
    for i, size in enumerate(target):
        copied = have[i] if have is not None and i < len(have) else None
        out.append(copied if size == 0 and not allow_zero else size)
    if -1 in out:
        place = out.index(-1)
        rest = product(d for i, d in enumerate(out) if i != place)
        total = product(have) if have is not None else None
        out[place] = _left_over(total, rest, have, out, place)
    return tuple(None if isinstance(d, int) and d < 0 else d for d in out)


def _left_over(
    total: Dim, rest: Dim, have: tuple[Dim, ...] | None, out: list[Dim], place: int
) -> Dim:
    if total is not None and rest is not None and rest != 0:
        exact = divide(total, rest)
        return exact if exact is not None else floordiv(total, rest)
    if have is None:
        return None
    # Unknown dims cancel where they are copied at the same place on both sides.
    same = [i for i, d in enumerate(out) if i < len(have) and i != place and d is have[i] is None]
    total = product(d for i, d in enumerate(have) if i not in same)
    rest = product(d for i, d in enumerate(out) if i not in same and i != place)
    return divide(total, rest) if total is not None and rest not in (None, 0) else None


def _reshape_contents(node: Node) -> list[np.ndarray | None]:
    contents = contents_of(node.inputs[0])
    target = ints(node.inputs[1])
    if contents is None or target is None:
        return [None]
    shape = reshaped(contents.shape, target, bool(node.attrs["allowzero"]))
    return [contents.reshape(tuple(int(d) for d in shape if isinstance(d, int)))]


def _reshape(x: Any, shape: Any, *, allowzero: int) -> Any:
    sizes = [
        x.shape[i] if s == 0 and not allowzero else s for i, s in enumerate(int(v) for v in shape)
    ]
    if -1 in sizes:
        i = sizes.index(-1)
        rest = math.prod(s for j, s in enumerate(sizes) if j != i)
        sizes[i] = x.numel() // rest if rest else 0
    return x.reshape(sizes)


def reshape_ties(node: Node) -> list[Tie]:
    """Walks both shapes in step: where runs of dims with equal products meet, a run of one dim that
    becomes several (or the other way) ties each of the several to its share of the one.

        [b, s, h*d] -> [b, s, h, d]    h: blocks of d;  d: lanes, one in each of h blocks
    """
    have, out = dims(node.inputs[0]), dims(node.output)
    ties: list[Tie] = []
    i = j = 0
    while i < len(have) and j < len(out):
        run_i, run_j = [i], [j]
        a: Dim = have[i]
        b: Dim = out[j]
        while a != b:
            if a is None or b is None:
                return ties
            shorter_in = isinstance(a, int) and isinstance(b, int) and a < b
            if shorter_in or (not isinstance(a, int) and divide(b, a) is not None):
                if run_i[-1] + 1 >= len(have):
                    return ties
                run_i.append(run_i[-1] + 1)
                a = product([a, have[run_i[-1]]])
            else:
                if run_j[-1] + 1 >= len(out):
                    return ties
                run_j.append(run_j[-1] + 1)
                b = product([b, out[run_j[-1]]])
        ties += _run_ties(have, out, run_i, run_j)
        i, j = run_i[-1] + 1, run_j[-1] + 1
    return ties


def _run_ties(
    have: tuple[Dim, ...], out: tuple[Dim, ...], run_i: list[int], run_j: list[int]
) -> list[Tie]:
    if len(run_i) == len(run_j) == 1:
        return [Tie(have[run_i[0]], (plain("in", 0, run_i[0]), plain("out", 0, run_j[0])))]
    if len(run_i) == 1:
        return _split_ties(out, run_j, "in", run_i[0], "out")
    if len(run_j) == 1:
        return _split_ties(have, run_i, "out", run_j[0], "in")
    return []


def _split_ties(
    parts: tuple[Dim, ...], run: list[int], whole_side: str, whole_axis: int, part_side: str
) -> list[Tie]:
    sizes = [parts[axis] for axis in run]
    if not all(isinstance(s, int) for s in sizes):
        return []
    numbers = [s for s in sizes if isinstance(s, int)]
    ties = []
    for position, axis in enumerate(run):
        outer, inner = math.prod(numbers[:position]), math.prod(numbers[position + 1 :])
        whole = Member(
            "in" if whole_side == "in" else "out", 0, whole_axis, outer=outer, inner=inner
        )
        if numbers[position] > 1:
            ties.append(Tie(numbers[position], (whole, plain(part_side, 0, axis))))
    return ties


# -- Squeeze, Unsqueeze, Flatten, Expand -----------------------------------------------------------


def _unsqueezed(rank: int, axes: list[int]) -> list[int]:
    """Result axes that are new, ascending."""
    total = rank + len(axes)
    return sorted(a % total for a in axes)


def _unsqueeze_infer(node: Node) -> list[ValueType]:
    x, axes = node.inputs[0], ints(node.inputs[1])
    assert x is not None
    if axes is None or x.tensor.dims is None:
        return _fallback(node)
    out: list[Dim] = list(x.tensor.dims)
    for axis in _unsqueezed(len(out), axes):
        out.insert(axis, 1)
    return [x.tensor.with_dims(tuple(out))]


def _unsqueeze_contents(node: Node) -> list[np.ndarray | None]:
    contents, axes = contents_of(node.inputs[0]), ints(node.inputs[1])
    if contents is None or axes is None:
        return [None]
    return [np.expand_dims(contents, tuple(_unsqueezed(contents.ndim, axes)))]


def _unsqueeze(x: Any, axes: Any) -> Any:
    for axis in _unsqueezed(x.dim(), [int(a) for a in axes]):
        x = x.unsqueeze(axis)
    return x


def _unsqueeze_ties(node: Node) -> list[Tie]:
    have, axes = dims(node.inputs[0]), ints(node.inputs[1])
    if axes is None:
        return []
    new = set(_unsqueezed(len(have), axes))
    kept = [a for a in range(len(have) + len(axes)) if a not in new]
    return [Tie(have[i], (plain("in", 0, i), plain("out", 0, a))) for i, a in enumerate(kept)]


def _squeezed(node: Node, shape: tuple[Any, ...]) -> list[int] | None:
    """Operand axes that go; None where that is not known."""
    axes = node.input(1)
    if axes is None:
        return None if None in shape else [i for i, d in enumerate(shape) if d == 1]
    given = ints(axes)
    return None if given is None else sorted(a % len(shape) for a in given)


def _squeeze_infer(node: Node) -> list[ValueType]:
    x = node.inputs[0]
    assert x is not None
    gone = _squeezed(node, x.tensor.dims) if x.tensor.dims is not None else None
    if gone is None or x.tensor.dims is None:
        return _fallback(node)
    return [x.tensor.with_dims(tuple(d for i, d in enumerate(x.tensor.dims) if i not in gone))]


def _squeeze_contents(node: Node) -> list[np.ndarray | None]:
    contents = contents_of(node.inputs[0])
    gone = _squeezed(node, contents.shape) if contents is not None else None
    return [None if contents is None or gone is None else np.squeeze(contents, tuple(gone))]


def _squeeze(x: Any, axes: Any = None) -> Any:
    gone = [i for i, d in enumerate(x.shape) if d == 1] if axes is None else [int(a) for a in axes]
    return x.squeeze(tuple(a % x.dim() for a in gone)) if gone else x


def _squeeze_ties(node: Node) -> list[Tie]:
    have = dims(node.inputs[0])
    gone = _squeezed(node, have)
    if gone is None:
        return []
    kept = [i for i in range(len(have)) if i not in gone]
    return [Tie(have[i], (plain("in", 0, i), plain("out", 0, a))) for a, i in enumerate(kept)]


def _flatten_infer(node: Node) -> list[ValueType]:
    x, axis = node.inputs[0], node.attrs["axis"]
    assert x is not None and isinstance(axis, int)
    if x.tensor.dims is None:
        return [x.tensor.with_dims((None, None))]
    at = axis + len(x.tensor.dims) if axis < 0 else axis
    return [x.tensor.with_dims((product(x.tensor.dims[:at]), product(x.tensor.dims[at:])))]


def _flatten(x: Any, *, axis: int) -> Any:
    at = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))


def broadcast_dim(a: Dim, b: Dim) -> Dim:
    """The dim that broadcasting gives: 1 gives way; a number above 1 decides."""
    if a == 1 or a == b:
        return b
    if b == 1:
        return a
    if isinstance(a, int) or b is None:
        return a
    return b if isinstance(b, int) else None


def broadcast_dims(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Dims that numpy's broadcasting gives."""
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    return tuple(broadcast_dim(x, y) for x, y in zip(a, b, strict=True))


def _expand_infer(node: Node) -> list[ValueType]:
    x, target = node.inputs[0], known(node.inputs[1])
    assert x is not None
    if target is None or x.tensor.dims is None:
        return _fallback(node)
    return [x.tensor.with_dims(broadcast_dims(x.tensor.dims, tuple(target)))]


def _expand_contents(node: Node) -> list[np.ndarray | None]:
    contents, target = contents_of(node.inputs[0]), ints(node.inputs[1])
    if contents is None or target is None or math.prod(target) > 64:
        return [None]
    return [np.broadcast_to(contents, np.broadcast_shapes(contents.shape, tuple(target))).copy()]


def _expand(x: Any, shape: Any) -> Any:
    import torch

    return x.expand(torch.broadcast_shapes(tuple(x.shape), tuple(int(s) for s in shape)))


def _expand_ties(node: Node) -> list[Tie]:
    have, out = dims(node.inputs[0]), dims(node.output)
    lead = len(out) - len(have)
    return [
        Tie(d, (plain("in", 0, i), plain("out", 0, i + lead)))
        for i, d in enumerate(have)
        if d == out[i + lead] and d != 1
    ]


# -- ConstantOfShape, Range, Tile ------------------------------------------------------------------


def _constant_of_shape_infer(node: Node) -> list[ValueType]:
    value = node.attrs.get("value")
    dtype = value.type.dtype if hasattr(value, "type") else DType.F32  # type: ignore[union-attr]
    target = known(node.inputs[0])
    if target is None:
        shape = node.inputs[0]
        rank = shape.tensor.dims[0] if shape is not None and shape.tensor.dims else None
        return [TensorType(dtype, (None,) * rank if isinstance(rank, int) else None)]
    return [TensorType(dtype, tuple(target))]


def _constant_of_shape_contents(node: Node) -> list[np.ndarray | None]:
    target, value = ints(node.inputs[0]), node.attrs.get("value")
    if target is None or math.prod(target) > 64 or value is None:
        return [None]
    fill = value.decode().reshape(-1)[0]  # type: ignore[union-attr]
    if fill.dtype.kind not in "iub":
        return [None]
    held = np.empty(tuple(target), object)
    held[...] = int(fill)
    return [held]


def _constant_of_shape(shape: Any, *, value: Any = None) -> Any:
    import torch

    sizes = [int(s) for s in shape]
    if value is None:
        return torch.zeros(sizes)
    return torch.from_numpy(np.array(value.decode()).reshape(-1)[:1]).expand(sizes).clone()


def _range_infer(node: Node) -> list[ValueType]:
    start, limit, delta = (known(v) for v in node.inputs)
    operand = node.inputs[0]
    assert operand is not None
    length: Dim = None
    if start and limit and delta and None not in (start[0], limit[0]):
        span = limit[0] - start[0]
        if delta == [1]:
            length = max(span, 0) if isinstance(span, int) else span
        elif isinstance(span, int) and isinstance(delta[0], int) and delta[0]:
            length = max(-(-span // delta[0]), 0)
    return [TensorType(operand.tensor.dtype, (length,))]


def _range_contents(node: Node) -> list[np.ndarray | None]:
    bounds = [ints(v) for v in node.inputs]
    if any(b is None for b in bounds):
        return [None]
    start, limit, delta = (b[0] for b in bounds if b is not None)
    items = list(range(start, limit, delta)) if delta else []
    return [vector(items) if len(items) <= 64 else None]


def _range(start: Any, limit: Any, delta: Any, *, stash_type: int = 1) -> Any:
    import torch

    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _tile_infer(node: Node) -> list[ValueType]:
    x, repeats = node.inputs[0], known(node.inputs[1])
    assert x is not None
    if repeats is None or x.tensor.dims is None:
        return [x.tensor.with_dims(None if x.tensor.dims is None else (None,) * len(x.tensor.dims))]
    return [x.tensor.with_dims(tuple(product(p) for p in zip(x.tensor.dims, repeats, strict=True)))]


def _samples(rng: np.random.Generator) -> dict[str, list[Sample]]:
    def f(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def i(*items: int) -> np.ndarray:
        return np.array(items, np.int64)

    one = frozenset({1})
    return {
        "Shape": [Sample([f(2, 3, 4)]), Sample([f(2, 3, 4)], {"start": 1, "end": -1})],
        "Size": [Sample([f(2, 3)])],
        "Reshape": [
            Sample([f(2, 3, 8), i(2, 3, 2, 4)], constant=one),
            Sample([f(2, 3, 8), i(0, -1)], constant=one),
            Sample([f(2, 3, 4, 2), i(0, 0, 8)], constant=one),
            Sample([f(2, 6), i(-1)], constant=one),
            Sample([f(0, 3), i(3, 0)], {"allowzero": 1}, one),
        ],
        "Flatten": [Sample([f(2, 3, 4)]), Sample([f(2, 3, 4)], {"axis": -1}), Sample([f(2, 3)], {"axis": 0})],
        "Squeeze": [Sample([f(1, 3, 1)]), Sample([f(1, 3, 1), i(-1)], constant=one)],
        "Unsqueeze": [Sample([f(3, 4), i(0, -1)], constant=one), Sample([f(3), i(1)], constant=one)],
        "Expand": [Sample([f(3, 1), i(2, 1, 4)], constant=one), Sample([f(3, 4), i(1, 1)], constant=one)],
        "Range": [Sample([np.array(a) for a in (1, 10, 2)], constant=frozenset({0, 1, 2}))],
        "Tile": [Sample([f(2, 3), i(2, 1)], constant=one)],
        "ConstantOfShape": [Sample([i(2, 3)], constant=frozenset({0}))],
    }  # fmt: skip


def _of(op: str) -> Any:
    return lambda rng: _samples(rng)[op]


ROWS = [
    OpDef("Shape", since=15, contents=_shape_contents, torch=_shape, cost=view_cost,
          ties=lambda node: [], samples=_of("Shape")),
    OpDef("Size", since=1, contents=_size_contents, torch=_size, cost=view_cost,
          ties=lambda node: [], samples=_of("Size")),
    OpDef("Reshape", since=5, infer=_reshape_infer, contents=_reshape_contents, torch=_reshape,
          cost=view_cost, ties=reshape_ties, samples=_of("Reshape")),
    OpDef("Flatten", since=9, infer=_flatten_infer, torch=_flatten, cost=view_cost,
          ties=reshape_ties, samples=_of("Flatten")),
    OpDef("Squeeze", since=13, infer=_squeeze_infer, contents=_squeeze_contents, torch=_squeeze,
          cost=view_cost, ties=_squeeze_ties, samples=_of("Squeeze")),
    OpDef("Unsqueeze", since=13, infer=_unsqueeze_infer, contents=_unsqueeze_contents,
          torch=_unsqueeze, cost=view_cost, ties=_unsqueeze_ties, samples=_of("Unsqueeze")),
    OpDef("Expand", since=8, infer=_expand_infer, contents=_expand_contents, torch=_expand,
          cost=view_cost, ties=_expand_ties, samples=_of("Expand")),
    OpDef("ConstantOfShape", since=9, infer=_constant_of_shape_infer,
          contents=_constant_of_shape_contents, torch=_constant_of_shape, cost=view_cost,
          ties=lambda node: [], samples=_of("ConstantOfShape")),
    OpDef("Range", since=11, infer=_range_infer, contents=_range_contents, torch=_range,
          cost=view_cost, ties=lambda node: [], samples=_of("Range")),
    OpDef("Tile", since=6, infer=_tile_infer,
          torch=lambda x, repeats: x.repeat(*(int(r) for r in repeats)), cost=view_cost,
          samples=_of("Tile")),
]  # fmt: skip
