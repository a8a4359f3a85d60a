"""Views and data movement: reshaping, axes, concatenation, slicing."""

from __future__ import annotations

from typing import Any

from tersor.errors import Unsupported
from tersor.frontends.torch.lowering import Lowering
from tersor.frontends.torch.registry import converter
from tersor.ir import Dim, Sym, Value

END = 2**63 - 1


def rank_of(value: Value) -> int:
    """The rank, which is always known after tracing."""
    rank = value.tensor.rank
    assert rank is not None
    return rank


def dims_of(value: Value) -> tuple[Dim, ...]:
    dims = value.tensor.dims
    assert dims is not None
    return dims


@converter(
    "aten.view", "aten.reshape", "aten._unsafe_view", "aten.view_as", "aten.reshape_as", "aten.flatten",
    "aten.unflatten",
)  # fmt: skip
def reshape(ctx: Lowering, x: Value, *_: Any, **__: Any) -> Value:
    """To the traced shape, however it was specified."""
    if ctx.result.dtype is not x.tensor.dtype:
        raise Unsupported("views as another dtype are not supported")
    return reshape_to(ctx, x, ctx.result.dims or ())


def reshape_to(ctx: Lowering, x: Value, dims: tuple[Dim, ...]) -> Value:
    """Reshape. A symbolic size is computed only if it can be expressed neither by 0 (the operand's size along
    that axis) nor by the one -1 (the remaining size)."""
    have = dims_of(x)
    if have == dims:
        return x
    if 0 in dims:
        return ctx.emit("Reshape", x, ctx.shape(dims), allowzero=1)
    target: list[Dim] = []
    for i, dim in enumerate(dims):
        same = i < len(have) and have[i] == dim and not isinstance(dim, int)
        target.append(0 if same and dim is not None else dim)
    open_places = [i for i, dim in enumerate(target) if not isinstance(dim, int)]
    if open_places:
        # The most expensive to compute becomes -1.
        hardest = max(open_places, key=lambda i: (target[i] is None, len(str(target[i]))))
        target[hardest] = -1
    return ctx.emit("Reshape", x, ctx.shape(target))


@converter("aten.transpose", "aten.swapaxes", "aten.swapdims")
def transpose(ctx: Lowering, x: Value, first: int, second: int) -> Value:
    rank = rank_of(x)
    if rank == 0:
        return x
    order = list(range(rank))
    order[first], order[second] = order[second], order[first]
    return permuted(ctx, x, order)


@converter("aten.permute")
def permute(ctx: Lowering, x: Value, order: list[int]) -> Value:
    return permuted(ctx, x, order)


def permuted(ctx: Lowering, x: Value, order: list[int]) -> Value:
    """Transpose; the operand itself if no axis moves."""
    perm = tuple(axis % len(order) for axis in order)
    return x if perm == tuple(range(len(perm))) else ctx.emit("Transpose", x, perm=perm)


@converter("aten.t", "aten.numpy_T", "aten.mT", "aten.mH", "aten.matrix_H", "aten.adjoint")
def matrix_transpose(ctx: Lowering, x: Value) -> Value:
    rank = rank_of(x)
    if "numpy_T" in str(ctx.node.target):
        return permuted(ctx, x, list(reversed(range(rank))))
    return x if rank < 2 else transpose(ctx, x, -2, -1)


@converter("aten.movedim", "aten.moveaxis")
def movedim(ctx: Lowering, x: Value, source: Any, destination: Any) -> Value:
    rank = rank_of(x)
    sources = [a % rank for a in ([source] if isinstance(source, int) else source)]
    targets = [a % rank for a in ([destination] if isinstance(destination, int) else destination)]
    order = [a for a in range(rank) if a not in sources]
    for target, axis in sorted(zip(targets, sources, strict=True)):
        order.insert(target, axis)
    return permuted(ctx, x, order)


@converter("aten.unsqueeze")
def unsqueeze(ctx: Lowering, x: Value, dim: int) -> Value:
    return ctx.emit("Unsqueeze", x, ctx.ints([dim % (rank_of(x) + 1)]))


@converter("aten.squeeze")
def squeeze(ctx: Lowering, x: Value, dim: Any = None) -> Value:
    """As in torch, axes of another size than 1 are kept."""
    have = dims_of(x)
    given = range(len(have)) if dim is None else [dim] if isinstance(dim, int) else dim
    axes = sorted({a % len(have) for a in given if have[a % len(have)] == 1}) if have else []
    return ctx.emit("Squeeze", x, ctx.ints(axes)) if axes else x


@converter("aten.expand", "aten.expand_as", "aten.broadcast_to")
def expand(ctx: Lowering, x: Value, *_: Any, **__: Any) -> Value:
    return expand_to(ctx, x, ctx.result.dims or ())


def expand_to(ctx: Lowering, x: Value, dims: tuple[Dim, ...]) -> Value:
    """Expand; sizes that do not change are given as 1, which keeps them."""
    have = dims_of(x)
    if have == dims:
        return x
    new = len(dims) - len(have)
    target = [1 if i >= new and have[i - new] == dim else dim for i, dim in enumerate(dims)]
    if all(size == 1 for size in target):
        return ctx.emit("Unsqueeze", x, ctx.ints(range(new)))
    return ctx.emit("Expand", x, ctx.shape(target))


@converter("aten.repeat", "aten.tile")
def repeat(ctx: Lowering, x: Value, repeats: list[Any]) -> Value:
    rank = rank_of(x)
    if len(repeats) < rank:
        repeats = [1] * (rank - len(repeats)) + list(repeats)
    if len(repeats) > rank:
        x = ctx.emit("Unsqueeze", x, ctx.ints(range(len(repeats) - rank)))
    return x if all(r == 1 for r in repeats) else ctx.emit("Tile", x, ctx.shape(repeats))


@converter("aten.repeat_interleave.self_int")
def repeat_interleave(
    ctx: Lowering, x: Value, repeats: Any, dim: int | None = None, *, output_size: Any = None
) -> Value:
    if dim is None:
        x, dim = ctx.emit("Reshape", x, ctx.ints([-1])), 0
    axis = dim % rank_of(x)
    wide = ctx.emit("Unsqueeze", x, ctx.ints([axis + 1]))
    ones: list[Dim] = [1] * (rank_of(x) + 1)
    ones[axis + 1] = repeats
    return reshape_to(ctx, ctx.emit("Expand", wide, ctx.shape(ones)), ctx.result.dims or ())


# -- concatenation and slicing ---------------------------------------------------------------------


@converter("aten.cat", "aten.concat", "aten.concatenate")
def cat(ctx: Lowering, tensors: list[Value], dim: int = 0) -> Value:
    # torch ignores empty vectors among tensors of any rank.
    kept = [t for t in tensors if t.tensor.dims != (0,)] or tensors[:1]
    return _concatenated(ctx, ctx.promote(*kept, dtype=ctx.result.dtype), dim % rank_of(kept[0]))


def _concatenated(ctx: Lowering, tensors: list[Value], axis: int) -> Value:
    return tensors[0] if len(tensors) == 1 else ctx.emit("Concat", *tensors, axis=axis)


@converter("aten.stack")
def stack(ctx: Lowering, tensors: list[Value], dim: int = 0) -> Value:
    axis = dim % (rank_of(tensors[0]) + 1)
    operands = ctx.promote(*tensors, dtype=ctx.result.dtype)
    return _concatenated(ctx, [ctx.emit("Unsqueeze", t, ctx.ints([axis])) for t in operands], axis)


@converter(
    "aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split", "aten.split_copy",
    "aten.split_with_sizes_copy",
)  # fmt: skip
def split(ctx: Lowering, x: Value, sections: Any, dim: int = 0) -> tuple[Value, ...]:
    """Into the traced pieces."""
    axis = dim % rank_of(x)
    if len(ctx.results) == 1:
        return (x,)
    sizes = [(piece.dims or ())[axis] for piece in ctx.results]
    return ctx.emit_many("Split", len(sizes), x, ctx.shape(sizes), axis=axis)


@converter("aten.unbind")
def unbind(ctx: Lowering, x: Value, dim: int = 0) -> tuple[Value, ...]:
    axis, count = dim % rank_of(x), len(ctx.results)
    axes = ctx.ints([axis])
    pieces = (
        (x,) if count == 1 else ctx.emit_many("Split", count, x, ctx.ints([1] * count), axis=axis)
    )
    return tuple(ctx.emit("Squeeze", piece, axes) for piece in pieces)


@converter("aten.slice.Tensor", "aten.narrow")
def slice_(
    ctx: Lowering, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    if "narrow" in str(ctx.node.target):
        end = start + end
    if ctx.result.dims == dims_of(x) and None not in dims_of(x):
        return x
    return sliced(ctx, x, dim, start or 0, END if end is None else end, step)


def sliced(ctx: Lowering, x: Value, axis: int, start: Any, end: Any, step: int = 1) -> Value:
    """x[..., start:end:step, ...] along ``axis``."""
    bounds = [
        ctx.shape([s]) if not isinstance(s, Value) else ctx.emit("Reshape", s, ctx.ints([1]))
        for s in (start, end)
    ]
    steps = [] if step == 1 else [ctx.ints([step])]
    return ctx.emit("Slice", x, *bounds, ctx.ints([axis % rank_of(x)]), *steps)


@converter("aten.select.int")
def select(ctx: Lowering, x: Value, dim: int, index: Any) -> Value:
    at = ctx.value(index) if isinstance(index, (int, Sym)) else index
    return ctx.emit("Gather", x, at, axis=dim % rank_of(x))


@converter("aten.slice_scatter")
def slice_scatter(
    ctx: Lowering,
    x: Value,
    source: Value,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Value:
    if step != 1:
        raise Unsupported("steps other than 1 are not supported")
    axis = dim % rank_of(x)
    start, end = start or 0, END if end is None else end
    pieces = [] if start == 0 else [sliced(ctx, x, axis, 0, start)]
    pieces.append(expand_to(ctx, source, tuple(dims_of(source))))
    whole = isinstance(end, int) and (end >= END or end == dims_of(x)[axis])
    if not whole:
        pieces.append(sliced(ctx, x, axis, end, END))
    return _concatenated(ctx, pieces, axis)


@converter("aten.select_scatter")
def select_scatter(ctx: Lowering, x: Value, source: Value, dim: int, index: int) -> Value:
    axis = dim % rank_of(x)
    size = dims_of(x)[axis]
    pieces = [ctx.emit("Unsqueeze", source, ctx.ints([axis]))]
    if index != 0 and not (isinstance(size, int) and index == -size):
        pieces.insert(0, sliced(ctx, x, axis, 0, index))
    if index != -1 and not (isinstance(size, int) and index == size - 1):
        pieces.append(sliced(ctx, x, axis, index + 1, END))
    return _concatenated(ctx, pieces, axis)


@converter("aten.flip")
def flip(ctx: Lowering, x: Value, axes: list[int]) -> Value:
    count, rank = len(axes), rank_of(x)
    return ctx.emit(
        "Slice", x, ctx.ints([-1] * count), ctx.ints([-END] * count), ctx.ints([a % rank for a in axes]),
        ctx.ints([-1] * count),
    )  # fmt: skip


@converter("aten.roll")
def roll(ctx: Lowering, x: Value, shifts: list[int], axes: list[int] | None = None) -> Value:
    if not axes:
        raise Unsupported("rolling the flattened tensor is not supported: give dims")
    for shift, axis in zip(shifts, axes, strict=True):
        size = dims_of(x)[axis]
        cut = -(shift % size) if isinstance(size, int) and size else -shift
        if cut:
            pieces = sliced(ctx, x, axis, cut, END), sliced(ctx, x, axis, 0, cut)
            x = ctx.emit("Concat", *pieces, axis=axis % rank_of(x))
    return x


@converter("aten.tril", "aten.triu")
def triangle(ctx: Lowering, x: Value, diagonal: int = 0) -> Value:
    upper = int("triu" in str(ctx.node.target))
    return ctx.emit("Trilu", x, ctx.value(diagonal) if diagonal else None, upper=upper)


PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@converter("aten.pad", "aten.constant_pad_nd")
def pad(ctx: Lowering, x: Value, widths: list[Any], *rest: Any, **named: Any) -> Value:
    """``widths``: (before, after) of the last axis, then of the one before it …."""
    if "constant_pad_nd" in str(ctx.node.target):
        mode, fill = "constant", (*rest, *named.values(), 0)[0]
    else:
        mode, fill = (*rest, named.get("mode", "constant"))[0], (*rest, named.get("value"))[-1]
        fill = fill if isinstance(fill, (int, float)) else None
    rank, count = rank_of(x), len(widths) // 2
    axes = [rank - 1 - i for i in range(count)]
    value = ctx.value(fill or 0, x.tensor.dtype) if mode == "constant" else None
    return ctx.emit(
        "Pad",
        x,
        ctx.shape([*widths[0::2], *widths[1::2]]),
        value,
        ctx.ints(axes),
        mode=PAD_MODES[mode],
    )
