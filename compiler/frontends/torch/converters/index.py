"""Indexing, scattering, sorting."""

from __future__ import annotations

from typing import Any

from tersor.errors import Unsupported
from tersor.frontends.torch.converters.shape import dims_of, expand_to, permuted, rank_of, sliced
from tersor.frontends.torch.lowering import Lowering, Operand
from tersor.frontends.torch.registry import converter
from tersor.ir import Dim, DType, Value


@converter("aten.index_select")
def index_select(ctx: Lowering, x: Value, dim: int, index: Value) -> Value:
    if index.tensor.rank == 0:
        index = ctx.emit("Reshape", index, ctx.ints([1]))
    return ctx.emit("Gather", x, index, axis=dim % rank_of(x))


@converter("aten.gather")
def gather(ctx: Lowering, x: Value, dim: int, index: Value, *, sparse_grad: bool = False) -> Value:
    return ctx.emit("GatherElements", x, index, axis=dim % rank_of(x))


@converter("aten.take_along_dim")
def take_along(ctx: Lowering, x: Value, index: Value, dim: int | None = None) -> Value:
    if dim is None:
        x, index, dim = (
            ctx.emit("Reshape", x, ctx.ints([-1])),
            ctx.emit("Reshape", index, ctx.ints([-1])),
            0,
        )
    return ctx.emit("GatherElements", x, index, axis=dim % rank_of(x))


@converter("aten.index.Tensor")
def index(ctx: Lowering, x: Value, indices: list[Value | None]) -> Value:
    """Advanced indexing (https://numpy.org/doc/stable/user/basics.indexing.html): index tensors are broadcast
    together; their axes replace the indexed axes if those are adjacent, else come first."""
    axes = [axis for axis, i in enumerate(indices) if i is not None]
    given = [i for i in indices if i is not None]
    if any(i.tensor.dtype in (DType.BOOL, DType.U8) for i in given):
        return _mask_index(ctx, x, axes, given)
    if len(axes) == 1:
        return ctx.emit("Gather", x, given[0], axis=axes[0])
    rank = rank_of(x)
    front = permuted(ctx, x, [*axes, *(a for a in range(rank) if a not in axes)])
    where = _coordinates(ctx, given)
    y = ctx.emit("GatherND", front, where)
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    if not adjacent or axes[0] == 0:
        return y
    count, before = rank_of(where) - 1, axes[0]
    order = [*range(count, count + before), *range(count), *range(count + before, rank_of(y))]
    return permuted(ctx, y, order)


def _mask_index(ctx: Lowering, x: Value, axes: list[int], given: list[Value]) -> Value:
    if len(given) > 1 or axes[0] != 0:
        raise Unsupported("a boolean index together with others is not supported")
    positions = ctx.emit(
        "Transpose", ctx.emit("NonZero", ctx.cast(given[0], DType.BOOL)), perm=(1, 0)
    )
    return ctx.emit("GatherND", x, positions)


def _coordinates(ctx: Lowering, indices: list[Value]) -> Value:
    """Index tensors [b...] as one tensor [b..., number of index tensors]."""
    dims = _broadcast([dims_of(i) for i in indices])
    columns = []
    for i in indices:
        expanded = expand_to(ctx, ctx.cast(i, DType.I64), dims)
        columns.append(ctx.emit("Unsqueeze", expanded, ctx.ints([len(dims)])))
    return columns[0] if len(columns) == 1 else ctx.emit("Concat", *columns, axis=len(dims))


def _broadcast(shapes: list[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    """The broadcast shape: along each axis, the size that is not 1."""
    rank = max(len(s) for s in shapes)
    full = [(1,) * (rank - len(s)) + s for s in shapes]
    return tuple(next((d for d in column if d != 1), 1) for column in zip(*full, strict=True))


@converter("aten.index_put", "aten._unsafe_index_put")
def index_put(
    ctx: Lowering, x: Value, indices: list[Value | None], values: Value, accumulate: bool = False
) -> Value:
    if any(i is None for i in indices):
        raise Unsupported("assignment to indices that skip an axis is not supported")
    given = [i for i in indices if i is not None]
    values = ctx.cast(values, x.tensor.dtype)
    if given[0].tensor.dtype is DType.BOOL:
        return _mask_put(ctx, x, given, values, accumulate)
    where = _coordinates(ctx, given)
    shape = (*dims_of(where)[:-1], *dims_of(x)[len(given) :])
    values = expand_to(ctx, values, shape)
    return ctx.emit("ScatterND", x, where, values, reduction="add" if accumulate else "none")


def _mask_put(
    ctx: Lowering, x: Value, given: list[Value], values: Value, accumulate: bool
) -> Value:
    if len(given) > 1 or accumulate or values.tensor.numel != 1:
        raise Unsupported("assignment to a boolean mask is supported only for one value")
    mask = given[0]
    missing = rank_of(x) - rank_of(mask)
    if missing:
        mask = ctx.emit("Unsqueeze", mask, ctx.ints(range(rank_of(mask), rank_of(x))))
    return ctx.emit("Where", mask, values, x)


@converter("aten.scatter", "aten.scatter_add")
def scatter(
    ctx: Lowering, x: Value, dim: int, index: Value, source: Operand, *, reduce: str | None = None
) -> Value:
    """The source may be larger than the index; only as many values as indices are used."""
    dims = dims_of(index)
    if isinstance(source, Value) and source.tensor.rank:
        for axis, (have, size) in enumerate(zip(dims_of(source), dims, strict=True)):
            if have != size:
                source = sliced(ctx, source, axis, 0, size)
        source = ctx.cast(source, x.tensor.dtype)
    else:
        source = ctx.emit("Expand", ctx.value(source, x.tensor.dtype), ctx.shape(dims))
    added = "scatter_add" in str(ctx.node.target)
    reduction = {None: "add" if added else "none", "add": "add", "multiply": "mul"}[reduce]
    return ctx.emit("ScatterElements", x, index, source, axis=dim % rank_of(x), reduction=reduction)


@converter("aten.topk")
def topk(
    ctx: Lowering, x: Value, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Value, ...]:
    return ctx.emit_many(
        "TopK",
        2,
        x,
        ctx.shape([k]),
        axis=dim % rank_of(x),
        largest=int(largest),
        sorted=int(sorted),
    )


@converter("aten.sort")
def sort(
    ctx: Lowering, x: Value, dim: int = -1, descending: bool = False, *, stable: Any = None
) -> tuple[Value, ...]:
    axis = dim % rank_of(x)
    return ctx.emit_many(
        "TopK", 2, x, ctx.shape([dims_of(x)[axis]]), axis=axis, largest=int(descending), sorted=1
    )


@converter("aten.argsort")
def argsort(
    ctx: Lowering, x: Value, dim: int = -1, descending: bool = False, *, stable: Any = None
) -> Value:
    return sort(ctx, x, dim, descending)[1]


@converter("aten.nonzero")
def nonzero(ctx: Lowering, x: Value) -> Value:
    return ctx.emit("Transpose", ctx.emit("NonZero", x), perm=(1, 0))
