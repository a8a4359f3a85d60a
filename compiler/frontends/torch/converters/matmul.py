"""Linear layers, matrix multiplication, attention, embeddings."""

from __future__ import annotations

from typing import Any

import torch

from tersor.errors import Unsupported
from tersor.frontends.torch.lowering import Lowering
from tersor.frontends.torch.registry import converter
from tersor.ir import DType, Value


@converter("aten.linear.default")
def linear(ctx: Lowering, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """x[..., k], weight[n, k] or [k]."""
    if weight.encoding is None:
        transposed = ctx.emit("Transpose", weight, perm=_reversed(weight))
        return _product_with_bias(ctx, x, transposed, bias)
    if weight.tensor.rank != 2:  # A vector of weights; the result has no axis for it.
        return _product_with_bias(ctx, x, weight, bias)
    return ctx.emit("tersor.Linear", x, ctx.transposed(weight), bias)


def _reversed(value: Value) -> tuple[int, ...]:
    return tuple(reversed(range(value.tensor.rank or 0)))


def _product_with_bias(ctx: Lowering, x: Value, weight: Value, bias: Value | None) -> Value:
    product = ctx.emit("MatMul", x, weight)
    return product if bias is None else ctx.emit("Add", product, bias)


@converter("aten.matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot")
def matmul(ctx: Lowering, a: Value, b: Value) -> Value:
    return ctx.emit("MatMul", a, b)


@converter("aten.addmm.default")
def addmm(
    ctx: Lowering, bias: Value, a: Value, b: Value, *, beta: Any = 1, alpha: Any = 1
) -> Value:
    """beta * bias + alpha * (a @ b); a linear layer if ``b`` is constant."""
    plain = alpha == 1 and beta == 1
    if plain and b.encoding is not None and bias.tensor.rank == 1:
        columns = b.tensor.dims
        if columns is not None and bias.tensor.dims == columns[-1:]:
            return ctx.emit("tersor.Linear", a, b, bias)
    return ctx.emit("Gemm", a, b, bias, alpha=float(alpha), beta=float(beta))


@converter("aten.baddbmm.default", "aten.addmv.default")
def baddbmm(
    ctx: Lowering, bias: Value, a: Value, b: Value, *, beta: Any = 1, alpha: Any = 1
) -> Value:
    dtype = ctx.result.dtype
    product = ctx.emit("MatMul", a, b)
    if alpha != 1:
        product = ctx.emit("Mul", product, ctx.value(alpha, dtype))
    if beta == 0:
        return product
    if beta != 1:
        bias = ctx.emit("Mul", bias, ctx.value(beta, dtype))
    return ctx.emit("Add", bias, product)


@converter("aten.outer.default", "aten.ger.default")
def outer(ctx: Lowering, a: Value, b: Value) -> Value:
    a, b = ctx.promote(a, b)
    return ctx.emit("Mul", ctx.emit("Unsqueeze", a, ctx.ints([1])), b)


@converter("aten.einsum.default")
def einsum(ctx: Lowering, equation: str, operands: list[Value], *, path: Any = None) -> Value:
    return ctx.emit("Einsum", *ctx.promote(*operands), equation=equation.replace(" ", ""))


@converter("aten.scaled_dot_product_attention.default")
def attention(
    ctx: Lowering,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """q[batch, heads, length, size]; a missing axis of heads is added."""
    if dropout:
        raise Unsupported("dropout is not supported: export the module in evaluation mode")
    rank = q.tensor.rank
    if rank == 3:
        axis = ctx.ints([1])
        q, k, v = (ctx.emit("Unsqueeze", t, axis) for t in (q, k, v))
        if mask is not None and mask.tensor.rank == 3:
            mask = ctx.emit("Unsqueeze", mask, axis)
    elif rank != 4:
        raise Unsupported(f"operands of rank {rank} are not supported, only of rank 3 and 4")
    y = ctx.emit(
        "Attention", q, k, v, _mask(ctx, mask, q, k),
        is_causal=int(is_causal), scale=None if scale is None else float(scale),
    )  # fmt: skip
    return y if rank == 4 else ctx.emit("Squeeze", y, ctx.ints([1]))


def _mask(ctx: Lowering, mask: Value | None, q: Value, k: Value) -> Value | None:
    """If the last axis is shorter than the keys, ONNX masks the remaining positions; torch broadcasts it,
    so it is expanded here."""
    if mask is None:
        return None
    if mask.tensor.dtype is not DType.BOOL:
        mask = ctx.cast(mask, q.tensor.dtype)
    dims, keys = mask.tensor.dims, k.tensor.dims
    if dims is None or keys is None or dims[-1:] != (1,) or keys[-2] == 1:
        return mask
    return ctx.emit("Expand", mask, ctx.shape([*[1] * (len(dims) - 1), keys[-2]]))


@converter("aten.embedding.default")
def embedding(
    ctx: Lowering,
    table: Value,
    ids: Value,
    padding: int = -1,
    scale: bool = False,
    sparse: bool = False,
) -> Value:
    return ctx.emit("Gather", table, ids, axis=0)


@converter("aten.one_hot.default")
def one_hot(ctx: Lowering, ids: Value, classes: int = -1) -> Value:
    if classes < 0:
        raise Unsupported("num_classes is missing, and the largest id is unknown: give num_classes")
    ids = ctx.emit("Unsqueeze", ids, ctx.ints([-1]))
    numbers = ctx.constant(torch.arange(classes).numpy())
    return ctx.cast(ctx.emit("Equal", ids, numbers), ctx.result.dtype)
