"""Reading and writing by index: Gather, GatherElements, GatherND, ScatterElements, ScatterND."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tersor.errors import Unsupported
from tersor.ir import Node, ValueType
from tersor.ops.contents import contents_of
from tersor.ops.families._samples import floats
from tersor.ops.families._symbolic import (
    axis_of,
    merge,
    no_work,
    refuse,
    small,
    tensor,
)
from tersor.ops.families._ties import dims, plain
from tersor.ops.opdef import Cost, OpDef, Sample, Tie, Weight

_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _wrapped(indices: Any, size: int) -> Any:
    """Indices as int64, negative ones counted from the end."""
    index = indices.long()
    return index.where(index >= 0, index + size)


# -- Gather ----------------------------------------------------------------------------------------


def _gather_infer(node: Node) -> list[ValueType]:
    x, where = tensor(node), tensor(node, 1)
    if x.dims is None or where.dims is None:
        return [x.with_dims(None)]
    axis = axis_of(node, len(x.dims))
    return [x.with_dims((*x.dims[:axis], *where.dims, *x.dims[axis + 1 :]))]


def _gather_contents(node: Node) -> list[np.ndarray | None]:
    contents, where = contents_of(node.inputs[0]), contents_of(node.inputs[1])
    if contents is None or where is None or not all(isinstance(i, int) for i in where.reshape(-1)):
        return [None]
    axis = axis_of(node, contents.ndim)
    size, index = contents.shape[axis], where.astype(np.int64)
    shape = (*contents.shape[:axis], *where.shape, *contents.shape[axis + 1 :])
    if not small(shape) or ((index < -size) | (index >= size)).any():
        return [None]
    out = np.empty(shape, object)
    out[...] = np.take(contents, index, axis=axis)
    return [out]


def _gather(x: Any, indices: Any, *, axis: int) -> Any:
    axis %= x.dim()
    rows = x.index_select(axis, _wrapped(indices.reshape(-1), x.shape[axis]))
    return rows.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _gather_weights(node: Node) -> list[Weight]:
    """A table of rows."""
    whole_rows = len(dims(node.inputs[0])) == 2 and axis_of(node, 2) == 0
    return [Weight(0, (1,), ids=1)] if whole_rows else []


def _gather_ties(node: Node) -> list[Tie]:
    """The table's other axes and the indices' axes pass to the result; the looked-up axis stays."""
    have, where = node.inputs[0], node.inputs[1]
    table, index = dims(have), dims(where)
    if not table or len(dims(node.output)) != len(table) + len(index) - 1:
        return []
    axis = axis_of(node, len(table))
    ties = [
        Tie(d, (plain("in", 0, i), plain("out", 0, i if i < axis else i + len(index) - 1)))
        for i, d in enumerate(table)
        if i != axis
    ]
    return ties + [
        Tie(d, (plain("in", 1, i), plain("out", 0, axis + i))) for i, d in enumerate(index)
    ]


# -- GatherElements, ScatterElements ---------------------------------------------------------------


def _gather_elements_infer(node: Node) -> list[ValueType]:
    x, where = tensor(node), tensor(node, 1)
    rank = next((len(d) for d in (x.dims, where.dims) if d is not None), None)
    if x.dims is not None and where.dims is not None and len(x.dims) != len(where.dims):
        refuse(node, f"{x} and indices {where} differ in rank")
    if where.dims is None:
        return [x.with_dims(None if rank is None else (None,) * rank)]
    axis_of(node, len(where.dims))
    return [x.with_dims(where.dims)]


def _gather_elements_contents(node: Node) -> list[np.ndarray | None]:
    contents, where = contents_of(node.inputs[0]), contents_of(node.inputs[1])
    if contents is None or where is None or not all(isinstance(i, int) for i in where.reshape(-1)):
        return [None]
    axis = axis_of(node, contents.ndim)
    index = where.astype(np.int64)
    if ((index < -contents.shape[axis]) | (index >= contents.shape[axis])).any():
        return [None]
    cut = tuple(slice(n) if i != axis else slice(None) for i, n in enumerate(index.shape))
    return [np.take_along_axis(contents[cut], index, axis)]


def _gather_elements(x: Any, indices: Any, *, axis: int) -> Any:
    return x.gather(axis, _wrapped(indices, x.shape[axis]))


def _elements_ties(node: Node, axis: int, members: list[tuple[str, int]]) -> list[Tie]:
    """Axes other than ``axis`` along which all members have the same size."""
    shapes = [dims(node.output) if side == "out" else dims(node.input(i)) for side, i in members]
    ties = []
    for i, size in enumerate(shapes[0]):
        same = size is not None and all(len(s) > i and s[i] == size for s in shapes)
        if i != axis and same:
            ties.append(Tie(size, tuple(plain(side, n, i) for side, n in members)))
    return ties


def _gather_elements_ties(node: Node) -> list[Tie]:
    """The indices' own axis passes to the result; other axes also tie the operand's of equal size."""
    where = dims(node.inputs[1])
    if not where:
        return []
    axis = axis_of(node, len(where))
    own = Tie(where[axis], (plain("in", 1, axis), plain("out", 0, axis)))
    return [own, *_elements_ties(node, axis, [("in", 0), ("in", 1), ("out", 0)])]


def _scatter_infer(node: Node) -> list[ValueType]:
    return [tensor(node)]


def _scatter_cost(node: Node) -> Cost:
    """One operation per update if updates are combined with the present values."""
    return Cost(0, 0 if node.attrs["reduction"] == "none" else tensor(node, 2).numel)


def _scatter_elements(x: Any, indices: Any, updates: Any, *, axis: int, reduction: str) -> Any:
    index = _wrapped(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _reduction(reduction), include_self=True)


def _reduction(name: str) -> str:
    if name not in _REDUCE:
        raise Unsupported(f"reduction {name!r} has no torch evaluation")
    return _REDUCE[name]


def _scatter_elements_ties(node: Node) -> list[Tie]:
    have = dims(node.inputs[0])
    axis = axis_of(node, len(have)) if have else 0
    return _elements_ties(node, axis, [("in", 0), ("in", 1), ("in", 2), ("out", 0)])


# -- GatherND, ScatterND ---------------------------------------------------------------------------


def _gather_nd_infer(node: Node) -> list[ValueType]:
    x, where, batch = tensor(node), tensor(node, 1), node.attrs["batch_dims"]
    assert isinstance(batch, int)
    if x.dims is None or not where.dims or not isinstance(where.dims[-1], int):
        return [x.with_dims(None)]
    if batch >= min(len(x.dims), len(where.dims)) or batch + where.dims[-1] > len(x.dims):
        refuse(node, f"indices {where} with {batch} batch dims do not fit {x}")
    lead = [merge(node, a, b) for a, b in zip(where.dims[:batch], x.dims, strict=False)]
    return [x.with_dims((*lead, *where.dims[batch:-1], *x.dims[batch + where.dims[-1] :]))]


def _gather_nd(x: Any, indices: Any, *, batch_dims: int) -> Any:
    import torch

    depth = indices.shape[-1]
    lead, looked = x.shape[:batch_dims], x.shape[batch_dims : batch_dims + depth]
    rest = x.shape[batch_dims + depth :]
    count = math.prod(lead)
    rows = _linear(indices, looked).reshape(count, -1)
    rows = rows + torch.arange(count)[:, None] * math.prod(looked)
    flat = x.reshape(count * math.prod(looked), *rest)
    return flat[rows.reshape(-1)].reshape((*indices.shape[:-1], *rest))


def _linear(indices: Any, sizes: Any) -> Any:
    """Row numbers of index tuples (the last axis) into dims ``sizes``."""
    total = indices.new_zeros(indices.shape[:-1]).long()
    for i, size in enumerate(sizes):
        total = total * size + _wrapped(indices[..., i], size)
    return total


def _gather_nd_ties(node: Node) -> list[Tie]:
    """Batch axes are tied; the axes of index tuples and of the slices they select pass to the result."""
    have, where, batch = dims(node.inputs[0]), dims(node.inputs[1]), node.attrs["batch_dims"]
    assert isinstance(batch, int)
    if not have or not where or not isinstance(where[-1], int):
        return []
    ties = []
    for i, size in enumerate(where[:-1]):
        members = [plain("in", 1, i), plain("out", 0, i)]
        if i >= batch:
            ties.append(Tie(size, tuple(members)))
        elif size is not None and size == have[i]:
            ties.append(Tie(size, (plain("in", 0, i), *members)))
    first = batch + where[-1]
    return ties + [
        Tie(d, (plain("in", 0, i), plain("out", 0, len(where) - 1 + i - first)))
        for i, d in enumerate(have)
        if i >= first
    ]


def _scatter_nd(x: Any, indices: Any, updates: Any, *, reduction: str) -> Any:
    depth = indices.shape[-1]
    inner = math.prod(x.shape[depth:])
    rows = _linear(indices, x.shape[:depth]).reshape(-1)
    flat, new = x.reshape(math.prod(x.shape[:depth]), inner), updates.reshape(len(rows), inner)
    index = rows[:, None].expand(len(rows), inner)
    if reduction == "none":
        return flat.scatter(0, index, new).reshape(x.shape)
    done = flat.scatter_reduce(0, index, new, _reduction(reduction), include_self=True)
    return done.reshape(x.shape)


def _scatter_nd_ties(node: Node) -> list[Tie]:
    """Axes after the indexed ones: operand, updates and result."""
    have, where, updates = (dims(node.inputs[i]) for i in range(3))
    if not where or not isinstance(where[-1], int):
        return []
    shift = len(where) - 1 - where[-1]
    return [
        Tie(d, (plain("in", 0, i), plain("in", 2, i + shift), plain("out", 0, i)))
        for i, d in enumerate(have)
        if i >= where[-1] and i + shift < len(updates) and d is not None and updates[i + shift] == d
    ]


# -- samples and rows ------------------------------------------------------------------------------


def _i(*items: Any) -> np.ndarray:
    return np.array(items, np.int64)


def _gather_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample([floats(rng, 5, 3), _i([0, 4], [-1, 2])]),
        Sample([floats(rng, 2, 5, 3), _i(1, 3)], {"axis": -2}),
        Sample([_i(4, 5, 6), np.array(1)]),
        Sample([_i(4, 5, 6), np.array(-3, np.int32)]),
        Sample([floats(rng, 2, 3) > 0, _i([2])], {"axis": 1}),
        Sample([floats(rng, 4, 3), np.zeros((0, 2), np.int64)]),
        Sample([floats(rng, 4, 0), _i(1, 1)]),
    ]


def _gather_elements_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample([floats(rng, 3, 4), _i([0, -1, 2, 1])]),
        Sample([floats(rng, 3, 4), _i([0, -4], [3, 1], [2, 2])], {"axis": -1}),
        Sample([np.arange(6).reshape(2, 3), np.array([[1, 0, 1]], np.int32)], {"axis": 0}),
        Sample([floats(rng, 2, 2) > 0, _i([0, 0], [1, 0])], {"axis": 1}),
    ]


def _scatter_elements_samples(rng: np.random.Generator) -> list[Sample]:
    x, where, new = floats(rng, 3, 4), _i([0, 2, 1, -1]), floats(rng, 1, 4)
    twice = _i([1, 1], [0, -4], [3, 3])
    return [
        Sample([x, where, new]),
        Sample([np.arange(4), _i(3, 0), _i(9, 8)]),
        *(Sample([x, twice, floats(rng, 3, 2)], {"axis": 1, "reduction": r}) for r in _REDUCE),
    ]


def _gather_nd_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample([floats(rng, 3, 4, 2), _i([0, 1], [2, -1])]),
        Sample([floats(rng, 3, 4), _i([[0], [1]], [[-1], [2]])]),
        Sample([floats(rng, 2, 4, 3), _i([1], [-2])], {"batch_dims": 1}),
        Sample([floats(rng, 2, 3, 4), _i([[1], [2]], [[0], [0]])], {"batch_dims": 1}),
        Sample([np.arange(6).reshape(2, 3), _i([1, 2])]),
        Sample([floats(rng, 2, 2) > 0, _i([1])]),
    ]


def _scatter_nd_samples(rng: np.random.Generator) -> list[Sample]:
    twice, new = _i([1], [-3], [3]), floats(rng, 3, 3)
    return [
        Sample([floats(rng, 4, 3), _i([1], [-1]), floats(rng, 2, 3)]),
        Sample([floats(rng, 4, 3), _i([[1, 2], [0, 0]]), floats(rng, 1, 2)]),
        Sample([np.arange(4), _i([2]), _i(7)]),
        Sample([floats(rng, 3) > 0, _i([0], [2]), np.array([True, False])]),
        *(Sample([floats(rng, 4, 3), twice, new], {"reduction": r}) for r in _REDUCE),
    ]


ROWS = [
    OpDef("Gather", traits=frozenset({"movement"}),
          since=11, infer=_gather_infer, contents=_gather_contents, torch=_gather,
          cost=no_work, ties=_gather_ties, samples=_gather_samples,
          weights=_gather_weights),
    OpDef("GatherElements", traits=frozenset({"movement"}),
          since=11, infer=_gather_elements_infer,
          contents=_gather_elements_contents, torch=_gather_elements, cost=no_work,
          ties=_gather_elements_ties, samples=_gather_elements_samples),
    OpDef("GatherND", traits=frozenset({"movement"}),
          since=12, infer=_gather_nd_infer, torch=_gather_nd, cost=no_work,
          ties=_gather_nd_ties, samples=_gather_nd_samples),
    OpDef("ScatterElements", since=18, infer=_scatter_infer, torch=_scatter_elements,
          cost=_scatter_cost, ties=_scatter_elements_ties, samples=_scatter_elements_samples),
    OpDef("ScatterND", since=18, infer=_scatter_infer, torch=_scatter_nd, cost=_scatter_cost,
          ties=_scatter_nd_ties, samples=_scatter_nd_samples),
]  # fmt: skip
