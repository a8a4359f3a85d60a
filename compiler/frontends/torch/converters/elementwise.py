"""Elementwise ops: arithmetic, comparisons, logic, activations; and softmax."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tersor.errors import Unsupported
from tersor.frontends.torch.lowering import Lowering, Operand
from tersor.frontends.torch.registry import Converter, converter
from tersor.ir import DType, Value

# Functions of one operand with an equivalent in ONNX.
UNARY = {
    "abs": "Abs", "acos": "Acos", "acosh": "Acosh", "asin": "Asin", "asinh": "Asinh", "atan": "Atan",
    "atanh": "Atanh", "ceil": "Ceil", "cos": "Cos", "cosh": "Cosh", "erf": "Erf", "exp": "Exp",
    "floor": "Floor", "hardswish": "HardSwish", "log": "Log", "mish": "Mish",
    "neg": "Neg", "reciprocal": "Reciprocal", "relu": "Relu", "sigmoid": "Sigmoid", "sign": "Sign",
    "sin": "Sin", "sinh": "Sinh", "softsign": "Softsign", "sqrt": "Sqrt", "tan": "Tan", "tanh": "Tanh",
}  # fmt: skip

COMPARISONS = {
    "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual",
}  # fmt: skip
# By name: the ops for booleans and for integers.
LOGIC = {
    "and": ("And", "BitwiseAnd"), "or": ("Or", "BitwiseOr"), "xor": ("Xor", "BitwiseXor"),
}  # fmt: skip


def _unary(name: str, op: str) -> Converter:
    def convert(ctx: Lowering, x: Value) -> Value:
        if x.tensor.dtype.is_integer and name in ("ceil", "floor"):
            return x
        return ctx.emit(op, ctx.cast(x, ctx.result.dtype))

    return convert


def _comparison(op: str) -> Converter:
    def convert(ctx: Lowering, a: Operand, b: Operand) -> Value:
        a, b = ctx.promote(a, b)
        if op != "Equal" and a.tensor.dtype is DType.BOOL:
            a, b = ctx.cast(a, DType.I32), ctx.cast(b, DType.I32)
        return ctx.emit(op, a, b)

    return convert


def _bitwise(boolean: str, integer: str) -> Converter:
    def convert(ctx: Lowering, a: Operand, b: Operand) -> Value:
        op = boolean if ctx.result.dtype is DType.BOOL else integer
        return ctx.emit(op, *ctx.promote(a, b, dtype=ctx.result.dtype))

    return convert


def _logical(boolean: str) -> Converter:
    def convert(ctx: Lowering, a: Operand, b: Operand) -> Value:
        return ctx.emit(boolean, ctx.value(a, DType.BOOL), ctx.value(b, DType.BOOL))

    return convert


for _name, _op in UNARY.items():
    converter(f"aten.{_name}")(_unary(_name, _op))
for _name, _op in COMPARISONS.items():
    converter(f"aten.{_name}")(_comparison(_op))
for _name, (_boolean, _integer) in LOGIC.items():
    converter(f"aten.__{_name}__", f"aten.bitwise_{_name}")(_bitwise(_boolean, _integer))
    converter(f"aten.logical_{_name}")(_logical(_boolean))


@converter("aten.ne")
def not_equal(ctx: Lowering, a: Operand, b: Operand) -> Value:
    return ctx.emit("Not", ctx.emit("Equal", *ctx.promote(a, b)))


@converter("aten.logical_not")
def logical_not(ctx: Lowering, x: Value) -> Value:
    return ctx.emit("Not", ctx.value(x, DType.BOOL))


@converter("aten.bitwise_not")
def bitwise_not(ctx: Lowering, x: Value) -> Value:
    return ctx.emit("Not" if x.tensor.dtype is DType.BOOL else "BitwiseNot", x)


@converter("aten.isnan")
def isnan(ctx: Lowering, x: Value) -> Value:
    return ctx.emit("IsNaN", x if x.tensor.dtype.is_float else ctx.cast(x, DType.F32))


@converter("aten.isinf")
def isinf(ctx: Lowering, x: Value) -> Value:
    return ctx.emit("IsInf", x if x.tensor.dtype.is_float else ctx.cast(x, DType.F32))


@converter("aten.isfinite")
def isfinite(ctx: Lowering, x: Value) -> Value:
    # x * 0 is 0 for finite x, and NaN for infinity and NaN.
    x = x if x.tensor.dtype.is_float else ctx.cast(x, DType.F32)
    zero = ctx.value(0, x.tensor.dtype)
    return ctx.emit("Equal", ctx.emit("Mul", x, zero), zero)


# -- arithmetic ------------------------------------------------------------------------------------


def _scaled(ctx: Lowering, x: Value, factor: Any) -> Value:
    return x if factor == 1 else ctx.emit("Mul", x, ctx.value(factor, x.tensor.dtype))


@converter("aten.add")
def add(ctx: Lowering, a: Operand, b: Operand, alpha: Any = 1) -> Value:
    if ctx.result.dtype is DType.BOOL:
        return ctx.emit("Or", *ctx.promote(a, b, dtype=DType.BOOL))
    a, b = ctx.promote(a, b, dtype=ctx.result.dtype)
    return ctx.emit("Add", a, _scaled(ctx, b, alpha))


@converter("aten.sub", "aten.subtract")
def sub(ctx: Lowering, a: Operand, b: Operand, alpha: Any = 1) -> Value:
    a, b = ctx.promote(a, b, dtype=ctx.result.dtype)
    return ctx.emit("Sub", a, _scaled(ctx, b, alpha))


@converter("aten.rsub")
def rsub(ctx: Lowering, a: Operand, b: Operand, alpha: Any = 1) -> Value:
    return sub(ctx, b, a, alpha)


@converter("aten.mul", "aten.multiply")
def mul(ctx: Lowering, a: Operand, b: Operand) -> Value:
    op = "And" if ctx.result.dtype is DType.BOOL else "Mul"
    return ctx.emit(op, *ctx.promote(a, b, dtype=ctx.result.dtype))


@converter("aten.div", "aten.divide", "aten.true_divide")
def div(ctx: Lowering, a: Operand, b: Operand, *, rounding_mode: str | None = None) -> Value:
    a, b = ctx.promote(a, b, dtype=ctx.result.dtype)
    if rounding_mode == "floor":
        return _floor_divide(ctx, a, b)
    quotient = ctx.emit("Div", a, b)  # Truncates for integers.
    if rounding_mode == "trunc" and ctx.result.dtype.is_float:
        return _truncate(ctx, quotient)
    return quotient


def _truncate(ctx: Lowering, x: Value) -> Value:
    return ctx.emit("Mul", ctx.emit("Sign", x), ctx.emit("Floor", ctx.emit("Abs", x)))


def _floor_divide(ctx: Lowering, a: Value, b: Value) -> Value:
    if a.tensor.dtype.is_float:
        return ctx.emit("Floor", ctx.emit("Div", a, b))
    # Subtracting the remainder, which has the divisor's sign, makes the division exact.
    return ctx.emit("Div", ctx.emit("Sub", a, ctx.emit("Mod", a, b)), b)


@converter("aten.trunc", "aten.fix")
def trunc(ctx: Lowering, x: Value) -> Value:
    return x if x.tensor.dtype.is_integer else _truncate(ctx, x)


@converter("aten.floor_divide")
def floor_divide(ctx: Lowering, a: Operand, b: Operand) -> Value:
    a, b = ctx.promote(a, b, dtype=ctx.result.dtype)
    return _floor_divide(ctx, a, b)


@converter("aten.remainder")
def remainder(ctx: Lowering, a: Operand, b: Operand) -> Value:
    """The remainder with the divisor's sign."""
    a, b = ctx.promote(a, b, dtype=ctx.result.dtype)
    if a.tensor.dtype.is_integer:
        return ctx.emit("Mod", a, b)
    return ctx.emit("Sub", a, ctx.emit("Mul", _floor_divide(ctx, a, b), b))


@converter("aten.fmod")
def fmod(ctx: Lowering, a: Operand, b: Operand) -> Value:
    return ctx.emit("Mod", *ctx.promote(a, b, dtype=ctx.result.dtype), fmod=1)


@converter("aten.pow")
def power(ctx: Lowering, a: Operand, b: Operand) -> Value:
    if b == 0.5:
        return ctx.emit("Sqrt", ctx.value(a, ctx.result.dtype))
    return ctx.emit("Pow", *ctx.promote(a, b, dtype=ctx.result.dtype))


@converter("aten.square")
def square(ctx: Lowering, x: Value) -> Value:
    return ctx.emit("Mul", x, x)


@converter("aten.rsqrt")
def rsqrt(ctx: Lowering, x: Value) -> Value:
    return ctx.emit("Reciprocal", ctx.emit("Sqrt", ctx.cast(x, ctx.result.dtype)))


@converter("aten.round.default")
def round_half_even(ctx: Lowering, x: Value) -> Value:
    return x if x.tensor.dtype.is_integer else ctx.emit("Round", x)


@converter("aten.log1p")
def log1p(ctx: Lowering, x: Value) -> Value:
    x = ctx.cast(x, ctx.result.dtype)
    return ctx.emit("Log", ctx.emit("Add", x, ctx.value(1, x.tensor.dtype)))


@converter("aten.expm1")
def expm1(ctx: Lowering, x: Value) -> Value:
    x = ctx.cast(x, ctx.result.dtype)
    return ctx.emit("Sub", ctx.emit("Exp", x), ctx.value(1, x.tensor.dtype))


@converter("aten.log2", "aten.log10")
def log_to_base(ctx: Lowering, x: Value) -> Value:
    base = 2 if "log2" in str(ctx.node.target) else 10
    x = ctx.emit("Log", ctx.cast(x, ctx.result.dtype))
    return ctx.emit("Mul", x, ctx.value(1 / math.log(base), x.tensor.dtype))


@converter("aten.exp2")
def exp2(ctx: Lowering, x: Value) -> Value:
    return ctx.emit("Pow", *ctx.promote(2, x, dtype=ctx.result.dtype))


@converter("aten.addcmul", "aten.addcdiv")
def add_product(ctx: Lowering, x: Value, a: Value, b: Value, *, value: Any = 1) -> Value:
    op = "Mul" if "addcmul" in str(ctx.node.target) else "Div"
    x, a, b = ctx.promote(x, a, b, dtype=ctx.result.dtype)
    return ctx.emit("Add", x, _scaled(ctx, ctx.emit(op, a, b), value))


@converter("aten.lerp")
def lerp(ctx: Lowering, a: Value, b: Value, weight: Operand) -> Value:
    weight = ctx.value(weight, ctx.result.dtype)
    return ctx.emit("Add", a, ctx.emit("Mul", weight, ctx.emit("Sub", b, a)))


# -- selection -------------------------------------------------------------------------------------


@converter("aten.maximum", "aten.minimum", "aten.max.other", "aten.min.other")
def extreme(ctx: Lowering, a: Value, b: Value) -> Value:
    largest = ".max" in str(ctx.node.target)
    if ctx.result.dtype is DType.BOOL:
        return ctx.emit("Or" if largest else "And", a, b)
    return ctx.emit("Max" if largest else "Min", *ctx.promote(a, b, dtype=ctx.result.dtype))


@converter("aten.clamp", "aten.clip", "aten.hardtanh")
def clamp(
    ctx: Lowering, x: Value, low: Operand | None = None, high: Operand | None = None
) -> Value:
    if ctx.node.target._schema.name.startswith("aten::hardtanh"):
        low, high = -1.0 if low is None else low, 1.0 if high is None else high
    dtype = ctx.result.dtype
    x = ctx.cast(x, dtype)
    scalars: list[Value | None] = []
    for op, bound in (("Max", low), ("Min", high)):
        is_tensor = isinstance(bound, Value) and bool(bound.tensor.rank)
        if is_tensor:
            x = ctx.emit(op, x, ctx.value(bound, dtype))
        scalars.append(None if is_tensor or bound is None else _bound(ctx, bound, dtype))
    return x if scalars == [None, None] else ctx.emit("Clip", x, *scalars)


def _bound(ctx: Lowering, bound: Operand, dtype: DType) -> Value | None:
    if isinstance(bound, float) and math.isinf(bound):
        return None
    if isinstance(bound, float) and dtype.is_integer:
        raise Unsupported("fractional bounds for integers are not supported")
    return ctx.value(bound, dtype)


@converter("aten.clamp_min")
def clamp_min(ctx: Lowering, x: Value, low: Operand) -> Value:
    return clamp(ctx, x, low, None)


@converter("aten.clamp_max")
def clamp_max(ctx: Lowering, x: Value, high: Operand) -> Value:
    return clamp(ctx, x, None, high)


@converter("aten.where")
def where(ctx: Lowering, condition: Value, *operands: Operand) -> Any:
    if not operands:
        raise Unsupported("where with only a condition is not supported: use nonzero")
    a, b = ctx.promote(*operands, dtype=ctx.result.dtype)
    return ctx.emit("Where", ctx.value(condition, DType.BOOL), a, b)


@converter("aten.masked_fill")
def masked_fill(ctx: Lowering, x: Value, mask: Value, value: Operand) -> Value:
    return ctx.emit("Where", mask, ctx.value(value, x.tensor.dtype), x)


@converter("aten.nan_to_num")
def nan_to_num(
    ctx: Lowering,
    x: Value,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
) -> Value:
    if not x.tensor.dtype.is_float:
        return x
    dtype = x.tensor.dtype
    limit = float(np.finfo(dtype.numpy).max) if dtype.numpy.kind == "f" else 3.3895313892515355e38
    x = ctx.emit("Where", ctx.emit("IsNaN", x), ctx.value(nan or 0.0, dtype), x)
    for positive, value in (
        (1, limit if posinf is None else posinf),
        (0, -limit if neginf is None else neginf),
    ):
        infinite = ctx.emit("IsInf", x, detect_positive=positive, detect_negative=1 - positive)
        x = ctx.emit("Where", infinite, ctx.value(value, dtype), x)
    return x


# -- activations -----------------------------------------------------------------------------------


@converter("aten.gelu.default")
def gelu(ctx: Lowering, x: Value, *, approximate: str = "none") -> Value:
    return ctx.emit("Gelu", x, approximate=approximate)


@converter("aten.silu")
def silu(ctx: Lowering, x: Value) -> Value:
    return ctx.emit("Mul", x, ctx.emit("Sigmoid", x))


@converter("aten.relu6")
def relu6(ctx: Lowering, x: Value) -> Value:
    return ctx.emit("Clip", x, ctx.value(0, x.tensor.dtype), ctx.value(6, x.tensor.dtype))


@converter("aten.hardsigmoid")
def hardsigmoid(ctx: Lowering, x: Value) -> Value:
    return ctx.emit("HardSigmoid", x, alpha=1 / 6, beta=0.5)


@converter("aten.leaky_relu")
def leaky_relu(ctx: Lowering, x: Value, slope: float = 0.01) -> Value:
    return ctx.emit("LeakyRelu", x, alpha=float(slope))


@converter("aten.elu")
def elu(
    ctx: Lowering, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> Value:
    if input_scale != 1:
        raise Unsupported("input_scale is not supported")
    return _scaled(ctx, ctx.emit("Elu", x, alpha=float(alpha)), scale)


@converter("aten.celu")
def celu(ctx: Lowering, x: Value, alpha: float = 1.0) -> Value:
    return ctx.emit("Celu", x, alpha=float(alpha))


@converter("aten.selu")
def selu(ctx: Lowering, x: Value) -> Value:
    return ctx.emit("Selu", x)


@converter("aten.softplus")
def softplus(ctx: Lowering, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    # Above the threshold torch returns x, which differs by less than exp(-threshold).
    return _scaled(ctx, ctx.emit("Softplus", _scaled(ctx, x, beta)), 1 / beta)


@converter("aten.log_sigmoid")
def log_sigmoid(ctx: Lowering, x: Value) -> Value:
    return ctx.emit("Neg", ctx.emit("Softplus", ctx.emit("Neg", x)))


@converter("aten.prelu")
def prelu(ctx: Lowering, x: Value, slope: Value) -> Value:
    rank = x.tensor.rank or 0
    if slope.tensor.is_static and slope.tensor.shape != (1,) and rank > 1:
        slope = ctx.emit("Reshape", slope, ctx.ints([-1, *[1] * (rank - 2)]))
    return ctx.emit("PRelu", x, slope)


@converter("aten.glu")
def glu(ctx: Lowering, x: Value, dim: int = -1) -> Value:
    axis = dim % (x.tensor.rank or 1)
    half = (ctx.result.dims or (None,) * (axis + 1))[axis]
    a, b = ctx.emit_many("Split", 2, x, ctx.shape([half, half]), axis=axis)
    return ctx.emit("Mul", a, ctx.emit("Sigmoid", b))


@converter("aten.softmax", "aten._softmax")
def softmax(ctx: Lowering, x: Value, dim: int, dtype: Any = None) -> Value:
    return ctx.emit("Softmax", ctx.cast(x, ctx.result.dtype), axis=dim % max(x.tensor.rank or 1, 1))


@converter("aten.log_softmax", "aten._log_softmax")
def log_softmax(ctx: Lowering, x: Value, dim: int, dtype: Any = None) -> Value:
    return ctx.emit(
        "LogSoftmax", ctx.cast(x, ctx.result.dtype), axis=dim % max(x.tensor.rank or 1, 1)
    )
