"""Ops along an axis: reductions, softmax, arg-extremes, cumulative sums, top k."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tersor.ir import Dim, DType, Node, TensorType, ValueType
from tersor.ir.dims import dim_array
from tersor.ops import onnx_schema
from tersor.ops.contents import contents_of
from tersor.ops.families import _straight as straight
from tersor.ops.families._symbolic import ints
from tersor.ops.families._ties import broadcast, dims, plain
from tersor.ops.opdef import Cost, OpDef, Sample, Tie


def _read_cost(node: Node) -> Cost:
    """One operation per element of the operand."""
    x = node.inputs[0]
    assert x is not None
    return Cost(0, x.tensor.numel if isinstance(x.type, TensorType) else None)


def reduced_axes(node: Node, rank: int) -> list[int] | None:
    """Reduced axes, non-negative; None if unknown."""
    operand = node.input(1)
    if operand is None:
        return [] if node.attrs.get("noop_with_empty_axes") else list(range(rank))
    given = ints(operand)
    if given == []:
        return [] if node.attrs.get("noop_with_empty_axes") else list(range(rank))
    return None if given is None else sorted(a % rank for a in given)


def _reduce_infer(node: Node) -> list[ValueType]:
    x = node.inputs[0]
    assert x is not None
    axes = reduced_axes(node, len(x.tensor.dims)) if x.tensor.dims is not None else None
    if x.tensor.dims is None or axes is None:
        return onnx_schema.infer(node)
    if node.attrs["keepdims"]:
        out: list[Dim] = [1 if i in axes else d for i, d in enumerate(x.tensor.dims)]
    else:
        out = [d for i, d in enumerate(x.tensor.dims) if i not in axes]
    return [x.tensor.with_dims(tuple(out))]


def _reduce_ties(node: Node) -> list[Tie]:
    have = dims(node.inputs[0])
    axes = reduced_axes(node, len(have))
    if axes is None:
        return []
    kept = [i for i in range(len(have)) if i not in axes]
    place = {i: i if node.attrs["keepdims"] else n for n, i in enumerate(kept)}
    ties = [Tie(have[i], (plain("in", 0, i), plain("out", 0, place[i]))) for i in kept]
    if node.op == "ReduceSum":
        ties += [Tie(have[i], (plain("in", 0, i),), "sum") for i in axes]
    return ties


def _reducer(function: Callable[[Any, tuple[int, ...], bool], Any]) -> Callable[..., Any]:
    """torch evaluation of a reduction from ``function(x, axes, keepdims)``."""

    def call(x: Any, axes: Any = None, *, keepdims: int, noop_with_empty_axes: int) -> Any:
        chosen = [] if axes is None else [int(a) % x.dim() for a in axes]
        if not chosen and noop_with_empty_axes:
            # No axes to reduce, but the square or logarithm still applies.
            return function(x.unsqueeze(0), (0,), False).to(x.dtype)
        return function(x, tuple(chosen) or tuple(range(x.dim())), bool(keepdims)).to(x.dtype)

    return call


def _prod(x: Any, axes: tuple[int, ...], keep: bool) -> Any:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _reduce_contents(function: Callable[..., Any]) -> Callable[[Node], list[np.ndarray | None]]:
    """Contents of a reduction of a vector to a scalar or one element."""

    def contents(node: Node) -> list[np.ndarray | None]:
        items = contents_of(node.inputs[0])
        if items is None or items.ndim != 1 or None in items or reduced_axes(node, 1) != [0]:
            return [None]
        total: Any = None
        for item in items:
            total = item if total is None else function(total, item)
        if total is None:
            return [None]
        return [dim_array([total], (1,) if node.attrs["keepdims"] else ())]

    return contents


def _reduce_samples(rng: np.random.Generator) -> list[Sample]:
    x = (np.abs(rng.standard_normal((2, 3, 4))) + 0.5).astype(np.float32)
    axes, both = np.array([-1]), np.array([0, 2])
    constant = frozenset({1})
    return [
        Sample([x, axes], {"keepdims": 1}, constant),
        Sample([x, both], {"keepdims": 0}, constant),
        Sample([x], {"keepdims": 0}),
        Sample([x], {"noop_with_empty_axes": 1}),
    ]


def _reduction(op: str, since: int, function: Callable[..., Any], **more: Any) -> OpDef:
    return OpDef(op, traits=frozenset({"reduction"}),
       since=since, infer=_reduce_infer, torch=_reducer(function), cost=_read_cost,
                 ties=_reduce_ties, samples=_reduce_samples, **more)  # fmt: skip


# -- softmax ---------------------------------------------------------------------------------------


def _along_axis_ties(node: Node) -> list[Tie]:
    """All axes but the op's own."""
    rank = len(dims(node.output))
    axis = node.attrs["axis"]
    assert isinstance(axis, int)
    return broadcast(node, [0], skip=(axis % rank,)) if rank else []


def _same(node: Node) -> list[ValueType]:
    x = node.inputs[0]
    assert x is not None
    return [x.type]


def _softmax_samples(rng: np.random.Generator) -> list[Sample]:
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    return [Sample([x]), Sample([x], {"axis": 1})]


def _hardmax(x: Any, *, axis: int) -> Any:
    import torch

    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


# -- arg-extremes, top k, cumulative sum -----------------------------------------------------------


def _arg_infer(node: Node) -> list[ValueType]:
    x, axis = node.inputs[0], node.attrs["axis"]
    assert x is not None and isinstance(axis, int)
    if x.tensor.dims is None:
        return [TensorType(DType.I64, None)]
    out: list[Dim] = list(x.tensor.dims)
    if node.attrs["keepdims"]:
        out[axis] = 1
    else:
        out.pop(axis)
    return [TensorType(DType.I64, tuple(out))]


def _arg_ties(node: Node) -> list[Tie]:
    have, axis = dims(node.inputs[0]), node.attrs["axis"]
    assert isinstance(axis, int)
    if not have:
        return []
    at, gone = axis % len(have), not node.attrs["keepdims"]
    return [
        Tie(d, (plain("in", 0, i), plain("out", 0, i - (gone and i > at))))
        for i, d in enumerate(have)
        if i != at
    ]


def _other_axes_ties(node: Node, axis: int | None) -> list[Tie]:
    """All axes but ``axis``, of the operand and all results."""
    have = dims(node.inputs[0])
    if axis is None or not have:
        return []
    results = range(len(node.outputs))
    return [
        Tie(d, (plain("in", 0, i), *(plain("out", n, i) for n in results)))
        for i, d in enumerate(have)
        if i != axis % len(have)
    ]


def _top_k_ties(node: Node) -> list[Tie]:
    axis = node.attrs["axis"]
    return _other_axes_ties(node, axis if isinstance(axis, int) else None)


def _cumsum_ties(node: Node) -> list[Tie]:
    axis = ints(node.inputs[1])
    return _other_axes_ties(node, axis[0] if axis else None)


def _arg(name: str) -> Callable[..., Any]:
    def call(x: Any, *, axis: int, keepdims: int, select_last_index: int) -> Any:
        if not select_last_index:
            return getattr(x, name)(axis, keepdim=bool(keepdims))
        return x.shape[axis] - 1 - getattr(x.flip(axis), name)(axis, keepdim=bool(keepdims))

    return call


def _arg_samples(rng: np.random.Generator) -> list[Sample]:
    x = rng.integers(0, 3, (3, 4)).astype(np.float32)
    return [
        Sample([x], {"axis": 1}),
        Sample([x], {"axis": -1, "keepdims": 0, "select_last_index": 1}),
    ]


def _top_k(x: Any, k: Any, *, axis: int, largest: int, sorted: int) -> Any:
    values, indices = x.topk(int(k.reshape(-1)[0]), dim=axis, largest=bool(largest), sorted=True)
    return values, indices


def _top_k_infer(node: Node) -> list[ValueType]:
    x, k, axis = node.inputs[0], contents_of(node.inputs[1]), node.attrs["axis"]
    assert x is not None and isinstance(axis, int)
    if x.tensor.dims is None or k is None:
        return onnx_schema.infer(node)
    out = list(x.tensor.dims)
    out[axis] = k.reshape(-1)[0]
    return [x.tensor.with_dims(tuple(out)), TensorType(DType.I64, tuple(out))]


def _cumsum(x: Any, axis: Any, *, exclusive: int, reverse: int) -> Any:
    at = int(axis)
    if reverse:
        x = x.flip(at)
    total = x.cumsum(at).to(x.dtype)
    if exclusive:
        total = total - x
    return total.flip(at) if reverse else total


def _cumsum_samples(rng: np.random.Generator) -> list[Sample]:
    x, axis, constant = rng.standard_normal((3, 4)).astype(np.float32), np.array(1), frozenset({1})
    return [
        Sample([x, axis], constant=constant),
        Sample([x, axis], {"reverse": 1, "exclusive": 1}, constant),
    ]


ROWS = [
    _reduction("ReduceSum", 13, lambda x, a, k: x.sum(a, keepdim=k),
               contents=_reduce_contents(lambda a, b: a + b)),
    _reduction("ReduceMean", 18, lambda x, a, k: x.mean(a, keepdim=k)),
    _reduction("ReduceMax", 18, lambda x, a, k: x.amax(a, keepdim=k)),
    _reduction("ReduceMin", 18, lambda x, a, k: x.amin(a, keepdim=k)),
    _reduction("ReduceProd", 18, _prod, contents=_reduce_contents(lambda a, b: a * b)),
    _reduction("ReduceL1", 18, lambda x, a, k: x.abs().sum(a, keepdim=k)),
    _reduction("ReduceL2", 18, lambda x, a, k: x.square().sum(a, keepdim=k).sqrt()),
    _reduction("ReduceSumSquare", 18, lambda x, a, k: x.square().sum(a, keepdim=k)),
    _reduction("ReduceLogSum", 18, lambda x, a, k: x.sum(a, keepdim=k).log()),
    _reduction("ReduceLogSumExp", 18, lambda x, a, k: x.logsumexp(a, keepdim=k)),
    OpDef("Softmax", traits=frozenset({"decision", "rank"}), since=13, infer=_same,
          torch=lambda x, *, axis: x.softmax(axis), cost=_read_cost, ties=_along_axis_ties,
          samples=_softmax_samples),
    OpDef("LogSoftmax", traits=frozenset({"decision", "rank"}), since=13, infer=_same,
          torch=lambda x, *, axis: x.log_softmax(axis), cost=_read_cost, ties=_along_axis_ties,
          samples=_softmax_samples),
    OpDef("Hardmax", traits=frozenset({"decision", "rank"}), since=13, infer=_same, torch=_hardmax,
          cost=_read_cost, ties=_along_axis_ties, straight_through=straight.softmax,
          samples=_softmax_samples),
    OpDef("ArgMax", traits=frozenset({"discrete", "decision"}), since=13, infer=_arg_infer,
          torch=_arg("argmax"), cost=_read_cost, ties=_arg_ties, samples=_arg_samples),
    OpDef("ArgMin", traits=frozenset({"discrete", "decision"}), since=13, infer=_arg_infer,
          torch=_arg("argmin"), cost=_read_cost, ties=_arg_ties, samples=_arg_samples),
    OpDef("TopK", traits=frozenset({"decision", "rank"}), since=11, infer=_top_k_infer, torch=_top_k,
          cost=_read_cost, ties=_top_k_ties,
          samples=lambda rng: [Sample([rng.permutation(12).reshape(3, 4).astype(np.float32),
                                       np.array([2])], constant=frozenset({1}), outputs=2)]),
    OpDef("CumSum", traits=frozenset({"rank"}), since=14, infer=_same, torch=_cumsum,
          cost=_read_cost, ties=_cumsum_ties,
          samples=_cumsum_samples),
]  # fmt: skip
