"""Elementwise ops, each a function of one element of every operand.

Formulas are written so that they vectorize: no branches, and of the transcendental functions only
``exp``, ``erf`` and ``tanh`` wherever that is exact enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import numpy as np
from tvm import tirx

from tersor.backends.tvm.lowering import Lowering, Refused, Rule
from tersor.backends.tvm.ops.broadcast import (
    Scalar,
    constant_scalar,
    differ,
    each,
    kind,
    name_of,
    nan_max,
    nan_min,
    operand,
)
from tersor.backends.tvm.ops.integer import divide, remainder
from tersor.ir import Node
from tersor.ops.families._symbolic import ints


def elementwise(scalar: Scalar) -> Rule:
    """A rule from a function of elements, which gets the node's attributes as keywords."""

    def rule(lowering: Lowering, node: Node) -> Sequence[Any]:
        operands = [None if v is None else operand(lowering, v) for v in node.inputs]
        function = partial(scalar, **node.attrs)
        return [each(lowering, name_of(node.op), operands, node.output.tensor, function)]

    return rule


def _is_float(x: Any) -> bool:
    return kind(x).startswith("float")


def _number(value: float, like: Any) -> Any:
    return tirx.const(value, kind(like))


def _libm(name: str, *operands: Any) -> Any:
    """A call of the C library, where TVM has no vector lowering."""
    dtype = kind(operands[0])
    return tirx.call_pure_extern(dtype, name + ("f" if dtype == "float32" else ""), *operands)


# -- activations -----------------------------------------------------------------------------------


def relu(x: Any) -> Any:
    """Keeps NaN."""
    zero = _number(0, x)
    return tirx.Select(x < zero, zero, x)


def sigmoid(x: Any) -> Any:
    return _number(1, x) / (_number(1, x) + tirx.exp(-x))


def gelu(x: Any, *, approximate: str = "none") -> Any:
    if approximate == "tanh":
        inner = _number(np.sqrt(2 / np.pi), x) * (x + _number(0.044715, x) * x * x * x)
        return _number(0.5, x) * x * (_number(1, x) + tirx.tanh(inner))
    return _number(0.5, x) * x * (_number(1, x) + tirx.erf(x * _number(np.sqrt(0.5), x)))


def swish(x: Any, *, alpha: float = 1.0) -> Any:
    return x / (_number(1, x) + tirx.exp(_number(-alpha, x) * x))


def _elu(x: Any, *, alpha: float) -> Any:
    return tirx.Select(x > _number(0, x), x, _number(alpha, x) * (tirx.exp(x) - _number(1, x)))


def _celu(x: Any, *, alpha: float) -> Any:
    below = _number(alpha, x) * (tirx.exp(x / _number(alpha, x)) - _number(1, x))
    return tirx.Select(x > _number(0, x), x, below)


def _selu(x: Any, *, alpha: float, gamma: float) -> Any:
    return _number(gamma, x) * _elu(x, alpha=alpha)


def _hard_sigmoid(x: Any, *, alpha: float, beta: float) -> Any:
    return clip(_number(alpha, x) * x + _number(beta, x), _number(0, x), _number(1, x))


def _hard_swish(x: Any) -> Any:
    return x * _hard_sigmoid(x, alpha=1 / 6, beta=0.5)


def _softplus(x: Any) -> Any:
    """log(1 + e^x) = max(x, 0) + log(1 + e^-|x|): no power overflows."""
    one, e = _number(1, x), tirx.exp(-tirx.abs(x))
    u = one + e
    # log(u) / (u - 1) is insensitive to the rounding of u.
    rest = tirx.Select(u > one, tirx.log(u) * (e / (u - one)), e)
    return nan_max(x, _number(0, x)) + rest


def _mish(x: Any) -> Any:
    """x tanh(softplus(x)) = x (e^2x + 2 e^x) / (e^2x + 2 e^x + 2); from x = 20 on that is x."""
    e = tirx.exp(nan_min(x, _number(20, x)))
    above = e * (e + _number(2, x))
    return x * (above / (above + _number(2, x)))


def _leaky(x: Any, *, alpha: float) -> Any:
    return tirx.Select(x < _number(0, x), _number(alpha, x) * x, x)


def _prelu(x: Any, slope: Any) -> Any:
    return tirx.Select(x < _number(0, x), slope * x, x)


def _thresholded(x: Any, *, alpha: float) -> Any:
    return tirx.Select(x > _number(alpha, x), x, _number(0, x))


# -- arithmetic ------------------------------------------------------------------------------------


def clip(x: Any, low: Any = None, high: Any = None) -> Any:
    if low is not None:
        x = nan_max(x, low)
    return x if high is None else nan_min(x, high)


def _sign(x: Any) -> Any:
    zero, one = _number(0, x), _number(1, x)
    # Zero and NaN map to themselves.
    below = x if kind(x).startswith("uint") else tirx.Select(x < zero, zero - one, x)
    return tirx.Select(x > zero, one, below)


def _div(a: Any, b: Any) -> Any:
    return quotient(a, b) if _is_float(a) else divide(a, b)


def quotient(a: Any, b: Any) -> Any:
    """The quotient of floats; TVM refuses to divide by a constant zero."""
    if isinstance(b, tirx.FloatImm) and b.value == 0:
        return a * _number(math.copysign(math.inf, b.value), a)
    return a / b


def _mod(a: Any, b: Any, *, fmod: int) -> Any:
    if not _is_float(a):
        return remainder(a, b, truncated=bool(fmod))
    rest = _libm("fmod", a, b)
    if fmod:
        return rest
    # As in Python: the sign of the divisor.
    zero = _number(0, a)
    turned = tirx.And(tirx.NE(rest, zero), differ(rest < zero, b < zero))
    return tirx.Select(turned, rest + b, rest)


def _power(lowering: Lowering, node: Node) -> Sequence[Any]:
    """Squares and cubes are products; integers are raised in double precision."""
    exponent = constant_scalar(node.inputs[1])

    def scalar(x: Any, y: Any) -> Any:
        if exponent in (2, 3):
            return x * x * x if exponent == 3 else x * x
        if _is_float(x):
            return tirx.pow(x, y.astype(kind(x)))
        return tirx.pow(x.astype("float64"), y.astype("float64"))

    return elementwise(scalar)(lowering, node)


def _equal(a: Any, b: Any) -> Any:
    return tirx.Not(differ(a, b)) if kind(a) == "bool" else tirx.EQ(a, b)


def _folded(function: Callable[[Any, Any], Any]) -> Scalar:
    return lambda *xs: reduce(function, xs)


def _add(a: Any, b: Any) -> Any:
    return a + b


def _mean(*xs: Any) -> Any:
    return reduce(_add, xs) / _number(len(xs), xs[0])


def _is_inf(x: Any, *, detect_negative: int, detect_positive: int) -> Any:
    inf = _number(np.inf, x)
    infinite = tirx.const(False, "bool")
    if detect_positive:
        infinite = tirx.EQ(x, inf)
    return tirx.Or(infinite, tirx.EQ(x, -inf)) if detect_negative else infinite


# -- rules -----------------------------------------------------------------------------------------


def _identity(lowering: Lowering, node: Node) -> Sequence[Any]:
    assert node.inputs[0] is not None
    return [lowering[node.inputs[0]]]


def _dropout(lowering: Lowering, node: Node) -> Sequence[Any]:
    """The operand: nothing is dropped at inference.

    Raises:
        Refused: in training, or where that is not known.
    """
    training = node.input(2)
    if training is not None and ints(training) != [0]:
        raise Refused("it is not known to be in inference mode")
    results = list(_identity(lowering, node))
    for mask in node.outputs[1:]:
        results.append(each(lowering, "kept", [], mask.tensor, lambda: tirx.const(True, "bool")))
    return results


_SCALARS: dict[str, Scalar] = {
    **{op: getattr(tirx, op.lower()) for op in
       ("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Asinh", "Acosh", "Atanh",
        "Erf", "Exp", "Log", "Sqrt", "Tanh", "Floor", "Ceil", "Abs", "IsNaN")},
    "Sinh": partial(_libm, "sinh"), "Cosh": partial(_libm, "cosh"),
    "Round": tirx.nearbyint,  # half to even
    "Neg": lambda x: -x if _is_float(x) else _number(0, x) - x,
    "Reciprocal": lambda x: _number(1, x) / x,
    "Sign": _sign,
    "Relu": relu, "Sigmoid": sigmoid, "Gelu": gelu, "Swish": swish, "Elu": _elu, "Celu": _celu,
    "Selu": _selu, "HardSigmoid": _hard_sigmoid, "HardSwish": _hard_swish, "Softplus": _softplus,
    "Softsign": lambda x: x / (_number(1, x) + tirx.abs(x)), "Mish": _mish, "LeakyRelu": _leaky,
    "PRelu": _prelu, "ThresholdedRelu": _thresholded,
    "IsInf": _is_inf, "Clip": clip, "Where": tirx.Select,
    "Add": _add, "Sub": lambda a, b: a - b, "Mul": lambda a, b: a * b, "Div": _div, "Mod": _mod,
    "Max": _folded(nan_max), "Min": _folded(nan_min), "Sum": _folded(_add), "Mean": _mean,
    "Not": tirx.Not, "And": tirx.And, "Or": tirx.Or, "Xor": differ,
    "Equal": _equal, "Less": tirx.LT, "LessOrEqual": tirx.LE, "Greater": tirx.GT,
    "GreaterOrEqual": tirx.GE,
}  # fmt: skip

RULES: dict[str, Rule] = {
    **{op: elementwise(scalar) for op, scalar in _SCALARS.items()},
    "Pow": _power,
    "Identity": _identity,
    "Dropout": _dropout,
}
