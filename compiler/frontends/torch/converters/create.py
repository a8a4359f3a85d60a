"""Creation, copies and casts of tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.errors import Unsupported
from tersor.frontends.torch.converters.shape import expand_to
from tersor.frontends.torch.lowering import Lowering, Operand
from tersor.frontends.torch.registry import converter
from tersor.ir import Dense, Sym, Value

MAX_FOLDED = 4096  # Elements up to which static tensors become constants.


@converter(
    "aten.alias", "aten.clone", "aten.contiguous", "aten.detach", "aten.detach_", "aten.lift_fresh_copy",
    "aten.lift_fresh", "aten.lift", "aten.view.dtype", "aten.positive", "aten.resolve_conj",
    "aten.resolve_neg", "aten.feature_dropout", "aten.alpha_dropout", "aten.dropout",
    "aten.native_dropout", "aten.requires_grad_",
)  # fmt: skip
def identity(ctx: Lowering, x: Value, *args: Any, **kwargs: Any) -> Any:
    name = str(ctx.node.target)
    if "dropout" in name and args[1] and args[0]:
        raise Unsupported("dropout is not supported: export the module in evaluation mode")
    if "view.dtype" in name and ctx.result.dtype is not x.tensor.dtype:
        raise Unsupported("views as another dtype are not supported")
    return (x, None) if "native_dropout" in name else x


@converter(
    "aten.to", "aten._to_copy", "aten.type_as", "aten.float", "aten._autocast_to_reduced_precision"
)
def to(ctx: Lowering, x: Value, *_: Any, **__: Any) -> Value:
    return ctx.cast(x, ctx.result.dtype)


@converter("aten.copy")
def copy(ctx: Lowering, x: Value, source: Value, non_blocking: bool = False) -> Value:
    """``source`` with the shape and dtype of ``x``."""
    return expand_to(ctx, ctx.cast(source, ctx.result.dtype), ctx.result.dims or ())


@converter("aten.item", "aten._local_scalar_dense")
def item(ctx: Lowering, x: Value) -> Any:
    """The element of a tensor; if it is used as a size, a symbol with that value."""
    val = ctx.node.meta.get("val")
    dim = ctx.sizes.dim(val) if hasattr(val, "node") else None
    if not isinstance(dim, Sym):
        return x
    ctx.sizes.add_scalar_source(str(dim), x)
    return dim


def _filled(ctx: Lowering, fill: Operand) -> Value:
    """A tensor of the result's shape, filled with ``fill``."""
    dtype, dims = ctx.result.dtype, ctx.result.dims or ()
    if isinstance(fill, (Value, Sym)):
        value = ctx.value(fill, dtype)
        return ctx.emit("Expand", value, ctx.shape(dims)) if dims else value
    if ctx.result.is_static and np.prod(ctx.result.shape) <= MAX_FOLDED:
        return ctx.constant(np.full(ctx.result.shape, fill, dtype.numpy))
    return ctx.emit("ConstantOfShape", ctx.shape(dims), value=Dense(np.array([fill], dtype.numpy)))


@converter("aten.zeros", "aten.zeros_like", "aten.new_zeros", "aten.empty", "aten.empty_like",
           "aten.new_empty", "aten.zero", "aten.empty_permuted", "aten.new_empty_strided",
           "aten.empty_strided")  # fmt: skip
def zeros(ctx: Lowering, *_: Any, **__: Any) -> Value:
    return _filled(ctx, 0)


@converter("aten.ones", "aten.ones_like", "aten.new_ones")
def ones(ctx: Lowering, *_: Any, **__: Any) -> Value:
    return _filled(ctx, 1)


@converter("aten.full", "aten.full_like", "aten.new_full", "aten.fill")
def full(ctx: Lowering, like: Any, *rest: Any, **named: Any) -> Value:
    """For all of these, ``fill_value`` is the last positional argument."""
    return _filled(ctx, named["fill_value"] if "fill_value" in named else rest[-1])


@converter("aten.scalar_tensor")
def scalar_tensor(ctx: Lowering, number: Operand, **_: Any) -> Value:
    return ctx.value(number, ctx.result.dtype)


@converter("aten.arange")
def arange(ctx: Lowering, *bounds: Operand, **_: Any) -> Value:
    start, end, step = {1: (0, *bounds, 1), 2: (*bounds, 1), 3: bounds}[len(bounds)]
    dtype = ctx.result.dtype
    numbers = (start, end, step)
    if all(isinstance(n, (int, float)) for n in numbers) and ctx.result.is_static:
        count = int(np.prod(ctx.result.shape))
        if count <= MAX_FOLDED:
            return ctx.constant((np.arange(count) * step + start).astype(dtype.numpy))
    return ctx.emit("Range", *(ctx.value(n, dtype) for n in numbers))


@converter("aten.eye")
def eye(ctx: Lowering, *_: Any, **__: Any) -> Value:
    if not ctx.result.is_static:
        raise Unsupported("its size is not static")
    return ctx.constant(np.eye(*ctx.result.shape, dtype=ctx.result.dtype.numpy))


@converter("aten.linspace")
def linspace(ctx: Lowering, start: float, end: float, steps: int, **_: Any) -> Value:
    if not ctx.result.is_static or not all(isinstance(n, (int, float)) for n in (start, end)):
        raise Unsupported("its bounds or number of steps are not static")
    return ctx.constant(np.linspace(start, end, steps).astype(ctx.result.dtype.numpy))
