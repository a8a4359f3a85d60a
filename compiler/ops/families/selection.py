"""Selection by value: OneHot, NonZero, Compress, Unique. The number of results of the last three depends on
the data, so that dim is unknown."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.ir import Dim, DType, Node, TensorType, ValueType
from tersor.ir.dims import product
from tersor.ops.contents import contents_of
from tersor.ops.families._samples import floats
from tersor.ops.families._symbolic import (
    axis_of,
    checked_axis,
    element_cost,
    is_negative,
    no_work,
    scalar,
    tensor,
)
from tersor.ops.families._ties import dims, plain
from tersor.ops.opdef import Cost, OpDef, Sample, Tie


def _one_hot_infer(node: Node) -> list[ValueType]:
    where, depth = tensor(node).dims, scalar(node.inputs[1])
    values = tensor(node, 2)
    if where is None:
        return [values.with_dims(None)]
    axis = axis_of(node, len(where) + 1)
    size = None if is_negative(depth) else depth
    return [values.with_dims((*where[:axis], size, *where[axis:]))]


def _one_hot(indices: Any, depth: Any, values: Any, *, axis: int) -> Any:
    import torch

    n = int(depth.reshape(-1)[0])
    index = indices.long()
    hot = torch.arange(n) == index.where(index >= 0, index + n).unsqueeze(-1)
    return torch.where(hot, values[1], values[0]).movedim(-1, axis)


def _one_hot_ties(node: Node) -> list[Tie]:
    where = dims(node.inputs[0])
    if not where:
        return []
    axis = axis_of(node, len(where) + 1)
    return [
        Tie(d, (plain("in", 0, i), plain("out", 0, i + (i >= axis)))) for i, d in enumerate(where)
    ]


def _nonzero_infer(node: Node) -> list[ValueType]:
    return [TensorType(DType.I64, (tensor(node).rank or None, None))]


def _compress_infer(node: Node) -> list[ValueType]:
    x, axis = tensor(node), node.attrs.get("axis")
    taken: Dim = None
    flags = contents_of(node.inputs[1])
    if flags is not None and all(isinstance(f, int) for f in flags):
        taken = sum(1 for f in flags if f)
    if axis is None:
        return [x.with_dims((taken,))]
    if x.dims is None:
        return [x]
    assert isinstance(axis, int)
    at = checked_axis(node, axis, len(x.dims))
    return [x.with_dims((*x.dims[:at], taken, *x.dims[at + 1 :]))]


def _compress(x: Any, condition: Any, *, axis: int | None = None) -> Any:
    chosen = condition.nonzero().reshape(-1)
    return x.reshape(-1)[chosen] if axis is None else x.index_select(axis, chosen)


def _compress_ties(node: Node) -> list[Tie]:
    have, axis = dims(node.inputs[0]), node.attrs.get("axis")
    if not isinstance(axis, int) or not have:
        return []
    at = checked_axis(node, axis, len(have))
    return [Tie(d, (plain("in", 0, i), plain("out", 0, i))) for i, d in enumerate(have) if i != at]


def _unique_infer(node: Node) -> list[ValueType]:
    """Y, first indices, inverse indices, counts; the number of unique elements is unknown."""
    x, axis = tensor(node), node.attrs.get("axis")
    if isinstance(axis, int) and x.dims is not None:
        at = checked_axis(node, axis, len(x.dims))
        unique, size = x.with_dims((*x.dims[:at], None, *x.dims[at + 1 :])), x.dims[at]
    else:
        unique, size = (
            x.with_dims((None,) if axis is None else None),
            x.numel if axis is None else None,
        )
    types: list[ValueType] = [unique, *(TensorType(DType.I64, (n,)) for n in (None, size, None))]
    return types[: len(node.outputs)]


def _unique(x: Any, *, axis: int | None = None, sorted: int = 1) -> Any:
    """By numpy, because torch has no first occurrences. Unsorted means in order of occurrence."""
    import torch

    array = x.numpy()
    unique, first, inverse, counts = np.unique(array, True, True, True, axis=axis)
    inverse = inverse.reshape(-1)
    if not sorted:
        order = np.argsort(first)
        unique, first, counts = np.take(unique, order, axis=axis or 0), first[order], counts[order]
        inverse = np.argsort(order)[inverse]
    return tuple(
        torch.from_numpy(np.ascontiguousarray(a)) for a in (unique, first, inverse, counts)
    )


# -- samples and rows ------------------------------------------------------------------------------


def _i(*items: Any) -> np.ndarray:
    return np.array(items, np.int64)


def _one_hot_samples(rng: np.random.Generator) -> list[Sample]:
    values, one = np.array([0.5, 5.0], np.float32), frozenset({1})
    return [
        Sample([_i(0, 2, -1, 7), np.array(3), values], constant=one),
        Sample([_i([0, 1], [2, -3]), _i(3), _i(0, 1)], {"axis": 0}, one),
        Sample([_i([0, 1], [2, -4]), np.array(3), values], {"axis": 1}, one),
    ]


def _compress_samples(rng: np.random.Generator) -> list[Sample]:
    x, constant = floats(rng, 3, 2), frozenset({1})
    flags = np.array([False, True, True])
    return [
        Sample([x, flags], {"axis": 0}, constant),
        Sample([x, flags[:2]], {"axis": -1}, constant),
        Sample([x, np.array([False, True, False, True, True])], {}, constant),
        Sample([x, flags], {"axis": 0}),
    ]


def _unique_samples(rng: np.random.Generator) -> list[Sample]:
    x = _i(2, 1, 1, 3, 4, 3).astype(np.float32)
    rows = _i([1, 0, 0], [1, 0, 0], [2, 3, 4])
    return [
        Sample([x], outputs=4),
        Sample([x], {"sorted": 0}, outputs=4),
        Sample([rows], {"axis": 0}, outputs=4),
        Sample([rows], {"axis": -1}, outputs=4),
        Sample([rows], outputs=4),
    ]


def _nonzero_samples(rng: np.random.Generator) -> list[Sample]:
    return [Sample([np.array([[1, 0], [3, 4]], np.float32)]), Sample([np.array([True, False, True])]),
            Sample([np.zeros((2, 3), np.int64)])]  # fmt: skip


ROWS = [
    OpDef("OneHot", since=11, infer=_one_hot_infer, torch=_one_hot, cost=element_cost,
          ties=_one_hot_ties, samples=_one_hot_samples),
    OpDef("NonZero", traits=frozenset({"discrete"}), since=9, infer=_nonzero_infer,
          torch=lambda x: x.nonzero().T.contiguous(),
          cost=lambda node: Cost(0, product(dims(node.inputs[0])) if dims(node.inputs[0]) else None),
          ties=lambda node: [], samples=_nonzero_samples),
    OpDef("Compress", traits=frozenset({"movement"}),
          since=11, infer=_compress_infer, torch=_compress, cost=no_work,
          ties=_compress_ties, samples=_compress_samples),
    OpDef("Unique", traits=frozenset({"discrete"}), since=11, infer=_unique_infer, torch=_unique,
          ties=lambda node: [], samples=_unique_samples),
]  # fmt: skip
