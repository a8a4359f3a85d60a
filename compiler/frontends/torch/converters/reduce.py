"""Reductions: over all elements, or over given axes."""

from __future__ import annotations

import math
from typing import Any

from tersor.errors import Unsupported
from tersor.frontends.torch.converters.shape import dims_of, rank_of
from tersor.frontends.torch.lowering import Lowering
from tersor.frontends.torch.registry import Converter, converter
from tersor.ir import DType, Sym, Value
from tersor.ir.dims import product

PLAIN = {
    "sum": "ReduceSum", "mean": "ReduceMean", "amax": "ReduceMax", "amin": "ReduceMin",
    "prod": "ReduceProd", "logsumexp": "ReduceLogSumExp",
}  # fmt: skip


def reduced(ctx: Lowering, op: str, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """``x`` reduced over ``dim``: an axis, several, or all."""
    axes = _axes(x, dim)
    if not rank_of(x):
        return x if op in _IDENTITY_ON_SCALARS else ctx.emit(op, x, keepdims=0)
    return ctx.emit(
        op, x, ctx.ints(axes) if len(axes) < rank_of(x) or keepdim else None, keepdims=int(keepdim)
    )


_IDENTITY_ON_SCALARS = {"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"}


def _axes(x: Value, dim: Any) -> list[int]:
    rank = rank_of(x)
    if dim is None or dim == []:
        return list(range(rank))
    return sorted(a % max(rank, 1) for a in ([dim] if isinstance(dim, int) else dim))


def _plain(op: str) -> Converter:
    def convert(
        ctx: Lowering, x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
    ) -> Value:
        return reduced(ctx, op, ctx.cast(x, ctx.result.dtype), dim, keepdim)

    return convert


for _name, _op in PLAIN.items():
    converter(f"aten.{_name}")(_plain(_op))


@converter("aten.max", "aten.min")
def extreme(ctx: Lowering, x: Value, dim: int | None = None, keepdim: bool = False) -> Any:
    """The value over all elements; (values, indices) along an axis."""
    largest = ".max" in str(ctx.node.target)
    values = reduced(ctx, "ReduceMax" if largest else "ReduceMin", x, dim, keepdim)
    if dim is None:
        return values
    return values, _arg(ctx, "ArgMax" if largest else "ArgMin", x, dim, keepdim)


@converter("aten.argmax", "aten.argmin")
def arg_extreme(ctx: Lowering, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    op = "ArgMax" if "argmax" in str(ctx.node.target) else "ArgMin"
    if dim is None:
        flat = _arg(ctx, op, ctx.emit("Reshape", x, ctx.ints([-1])), 0, False)
        return ctx.emit("Reshape", flat, ctx.ints([1] * rank_of(x))) if keepdim else flat
    return _arg(ctx, op, x, dim, keepdim)


def _arg(ctx: Lowering, op: str, x: Value, dim: int, keepdim: bool) -> Value:
    return ctx.emit(op, x, axis=dim % rank_of(x), keepdims=int(keepdim))


@converter("aten.any", "aten.all")
def any_or_all(ctx: Lowering, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """As maximum (any) or minimum (all) of zeros and ones."""
    op = "ReduceMax" if ".any" in str(ctx.node.target) else "ReduceMin"
    numbers = ctx.cast(ctx.cast(x, DType.BOOL), DType.I32)
    return ctx.cast(reduced(ctx, op, numbers, dim, keepdim), ctx.result.dtype)


@converter("aten.cumsum")
def cumsum(ctx: Lowering, x: Value, dim: int, *, dtype: Any = None) -> Value:
    x = ctx.cast(x, ctx.result.dtype)
    return x if not rank_of(x) else ctx.emit("CumSum", x, ctx.value(dim % rank_of(x)))


@converter("aten.var", "aten.std")
def variance(ctx: Lowering, x: Value, *args: Any, **named: Any) -> Value:
    """The overloads' arguments: (unbiased), (dim, unbiased, keepdim), (dim, correction=, keepdim=)."""
    dim, correction, keepdim = _variance_options(str(ctx.node.target), args, named)
    axes = _axes(x, dim)
    mean = reduced(ctx, "ReduceMean", x, axes, True)
    centred = ctx.emit("Sub", x, mean)
    total = reduced(ctx, "ReduceSum", ctx.emit("Mul", centred, centred), axes, keepdim)
    count = product(dims_of(x)[a] for a in axes)
    if not isinstance(count, (int, Sym)):
        raise Unsupported("the size of a reduced axis depends on data")
    result = ctx.emit("Div", total, ctx.value(count - int(correction), x.tensor.dtype))
    return ctx.emit("Sqrt", result) if ".std" in str(ctx.node.target) else result


def _variance_options(
    name: str, args: tuple[Any, ...], named: dict[str, Any]
) -> tuple[Any, Any, bool]:
    if name.endswith(".default"):
        return None, int((*args, named.get("unbiased", True))[0]), False
    dim = args[0] if args else named.get("dim")
    rest = list(args[1:])
    if name.endswith(".dim"):
        unbiased = rest[0] if rest else named.get("unbiased", True)
        keepdim = rest[1] if len(rest) > 1 else named.get("keepdim", False)
        return dim, int(unbiased), bool(keepdim)
    correction = named.get("correction")
    return dim, 1 if correction is None else correction, bool(named.get("keepdim", False))


@converter("aten.linalg_vector_norm", "aten.norm")
def vector_norm(
    ctx: Lowering,
    x: Value,
    order: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Value:
    x, order = ctx.cast(x, ctx.result.dtype), 2 if order is None else order
    if order in (1, 2):
        return reduced(ctx, f"ReduceL{int(order)}", x, dim, keepdim)
    magnitude = ctx.emit("Abs", x)
    if math.isinf(order):
        return reduced(ctx, "ReduceMax" if order > 0 else "ReduceMin", magnitude, dim, keepdim)
    if order == 0:
        zero = ctx.value(0, x.tensor.dtype)
        nonzero = ctx.cast(ctx.emit("Not", ctx.emit("Equal", x, zero)), x.tensor.dtype)
        return reduced(ctx, "ReduceSum", nonzero, dim, keepdim)
    powers = ctx.emit("Pow", magnitude, ctx.value(order, x.tensor.dtype))
    total = reduced(ctx, "ReduceSum", powers, dim, keepdim)
    return ctx.emit("Pow", total, ctx.value(1 / order, x.tensor.dtype))
