"""Arithmetic on sizes, tuples, assertions, and higher-order ops that only set a mode."""

from __future__ import annotations

from typing import Any

from tersor.errors import Unsupported
from tersor.frontends.torch.lowering import Lowering
from tersor.frontends.torch.registry import converter
from tersor.ir import DType, Sym, Value
from tersor.ir.dims import floordiv, maximum, minimum

Number = Any
"""An int, float or dim; a Value for fractions computed from sizes."""


@converter("operator.getitem")
def getitem(ctx: Lowering, items: Any, index: Any) -> Any:
    item = items[index]
    if item is None and ctx.node.users:
        raise Unsupported(f"result {index} of its operand is not supported")
    return item


@converter("aten._assert_tensor_metadata", "aten._assert_scalar", "aten._assert_async",
           "aten.sym_constrain_range", "aten.sym_constrain_range_for_size",
           "aten._functional_assert_async", "aten._print")  # fmt: skip
def assertion(ctx: Lowering, *_: Any, **__: Any) -> None:
    """Assertions are dropped."""


@converter("wrap_with_set_grad_enabled")
def set_grad(ctx: Lowering, enabled: bool, body: Any, *operands: Any) -> Any:
    return ctx.inline(body, operands)


@converter("wrap_with_autocast")
def autocast(
    ctx: Lowering, device: str, dtype: Any, enabled: bool, cache: bool, body: Any, *operands: Any
) -> Any:
    if enabled:
        raise Unsupported("autocast is not supported: convert the module's dtype instead")
    return ctx.inline(body, operands)


# -- sizes -----------------------------------------------------------------------------------------


@converter("aten.sym_size.int")
def sym_size(ctx: Lowering, x: Value, axis: int) -> Any:
    dim = ctx.sizes.dim(ctx.node.meta["val"])
    if dim is None:
        raise Unsupported("the size cannot be computed from sizes of inputs")
    ctx.sizes.add_source(x, axis % (x.tensor.rank or 1), dim)
    return dim


@converter("aten.sym_numel")
def sym_numel(ctx: Lowering, x: Value) -> Any:
    numel = x.tensor.numel
    if numel is None:
        raise Unsupported("the size cannot be computed from sizes of inputs")
    return numel


def _arithmetic(ctx: Lowering, op: str, a: Number, b: Number) -> Value:
    """On fractions: in the graph, in double precision as in Python."""
    return ctx.emit(op, ctx.value(a, DType.F64), ctx.value(b, DType.F64))


def _exact(*numbers: Number) -> bool:
    return all(isinstance(n, (int, Sym)) for n in numbers)


def _plain(*numbers: Number) -> bool:
    return all(isinstance(n, (int, float)) for n in numbers)


@converter("operator.add")
def add(ctx: Lowering, a: Number, b: Number) -> Number:
    return a + b if _exact(a, b) or _plain(a, b) else _arithmetic(ctx, "Add", a, b)


@converter("operator.sub")
def sub(ctx: Lowering, a: Number, b: Number) -> Number:
    return a - b if _exact(a, b) or _plain(a, b) else _arithmetic(ctx, "Sub", a, b)


@converter("operator.mul")
def mul(ctx: Lowering, a: Number, b: Number) -> Number:
    return a * b if _exact(a, b) or _plain(a, b) else _arithmetic(ctx, "Mul", a, b)


@converter("operator.floordiv")
def floor_divide(ctx: Lowering, a: Number, b: Number) -> Number:
    if _exact(a, b):
        return floordiv(a, b)
    return a // b if _plain(a, b) else ctx.emit("Floor", _arithmetic(ctx, "Div", a, b))


@converter("operator.mod")
def modulo(ctx: Lowering, a: Number, b: Number) -> Number:
    if not _exact(a, b):
        raise Unsupported("remainders of fractions are not supported")
    return a - floordiv(a, b) * b


@converter("operator.truediv")
def divide(ctx: Lowering, a: Number, b: Number) -> Number:
    return a / b if _plain(a, b) else _arithmetic(ctx, "Div", a, b)


@converter("operator.pow")
def power(ctx: Lowering, a: Number, b: Number) -> Number:
    if _exact(a) and isinstance(b, int) and b >= 0:
        result: Any = 1
        for _ in range(b):
            result = result * a
        return result
    return a**b if _plain(a, b) else _arithmetic(ctx, "Pow", a, b)


@converter("operator.neg")
def negative(ctx: Lowering, a: Number) -> Number:
    return a * -1 if _exact(a) or _plain(a) else ctx.emit("Neg", a)


@converter("sym.sym_max")
def sym_max(ctx: Lowering, a: Number, b: Number) -> Number:
    return maximum(a, b) if _exact(a, b) else _arithmetic(ctx, "Max", a, b)


@converter("sym.sym_min")
def sym_min(ctx: Lowering, a: Number, b: Number) -> Number:
    return minimum(a, b) if _exact(a, b) else _arithmetic(ctx, "Min", a, b)


@converter("sym.sym_float")
def sym_float(ctx: Lowering, a: Number) -> Number:
    return float(a) if isinstance(a, int) else ctx.value(a, DType.F64)


@converter("sym._sym_sqrt", "math.sqrt")
def sym_sqrt(ctx: Lowering, a: Number) -> Number:
    return a**0.5 if _plain(a) else ctx.emit("Sqrt", ctx.value(a, DType.F64))


@converter("operator.eq", "operator.ne", "operator.lt", "operator.le", "operator.gt", "operator.ge",
           "operator.and_", "operator.or_", "operator.not_", "sym.sym_not")  # fmt: skip
def comparison(ctx: Lowering, *_: Any) -> None:
    """Only assertions read comparisons of sizes, because tracing specializes on one branch."""
