"""Activations of recurrent cells, on vectors of float32, or of float64 by calls of libm.

A value that is read more than once is stored in a register: TVM's simplifier substitutes bound variables at
each use, so that nested activations would grow exponentially.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from tersor.backends.tvm.kernels import emit, vector
from tersor.backends.tvm.kernels.vector import at_least, at_most, like

Function = Callable[[Any, float, float], Any]


def _is_double(x: Any) -> bool:
    return str(x.ty.dtype).startswith("float64")


def _exp(x: Any) -> Any:
    return tirx.exp(x) if _is_double(x) else vector.exp(x)


def _log(x: Any) -> Any:
    return tirx.log(x) if _is_double(x) else vector.log(x)


def in_register(x: Any) -> Any:
    """The value of ``x``, computed once."""
    register = emit.register(x.ty.dtype.lanes, "float64" if _is_double(x) else "float32")
    emit.put(register, x)
    return emit.get(register)


def _plain(function: Callable[[Any], Any]) -> Function:
    return lambda x, alpha, beta: function(x)


def _absolute(x: Any) -> Any:
    return tirx.Select(x < like(x, 0.0), like(x, 0.0) - x, x)


def _sigmoid(x: Any) -> Any:
    return like(x, 1.0) / (like(x, 1.0) + _exp(in_register(like(x, 0.0) - x)))


def tanh(x: Any) -> Any:
    """As :func:`vector.tanh`, with intermediate results in registers."""
    if _is_double(x):
        return tirx.tanh(x)
    x = in_register(at_most(x, vector.TANH_IS_ONE))
    x = in_register(at_least(x, -vector.TANH_IS_ONE))
    square = in_register(x * x)
    numerator, denominator = (vector.polynomial(square, c) for c in vector.TANH)
    y = in_register(x * numerator / denominator)
    return at_least(in_register(at_most(y, 1.0)), -1.0)


def _softplus(x: Any) -> Any:
    """log(1 + e^x) = max(0, x) + log(1 + e^-|x|), which does not overflow."""
    small = _exp(in_register(like(x, 0.0) - _absolute(x)))
    return at_least(x, 0.0) + _log(in_register(like(x, 1.0) + small))


def _affine(x: Any, alpha: float, beta: float) -> Any:
    return x * like(x, alpha) + like(x, beta)


def _above(x: Any, threshold: float, otherwise: Any) -> Any:
    """x where it exceeds the threshold."""
    return tirx.Select(x > like(x, threshold), x, otherwise)


# By ONNX's names in lower case: the function of x, alpha and beta, and the defaults of alpha and beta (None:
# no such parameter).
FUNCTIONS: dict[str, tuple[Function, float | None, float | None]] = {
    "sigmoid": (_plain(_sigmoid), None, None),
    "tanh": (_plain(tanh), None, None),
    "relu": (lambda x, a, b: at_least(x, 0.0), None, None),
    "softsign": (lambda x, a, b: x / (like(x, 1.0) + _absolute(x)), None, None),
    "softplus": (_plain(_softplus), None, None),
    "leakyrelu": (lambda x, a, b: _above(x, 0.0, x * like(x, a)), 0.01, None),
    "thresholdedrelu": (lambda x, a, b: _above(x, a, like(x, 0.0)), 1.0, None),
    "elu": (lambda x, a, b: _above(x, 0.0, like(x, a) * (_exp(x) - like(x, 1.0))), 1.0, None),
    "hardsigmoid": (lambda x, a, b: at_least(at_most(_affine(x, a, b), 1.0), 0.0), 0.2, 0.5),
    "affine": (_affine, 1.0, 0.0),
    "scaledtanh": (
        lambda x, a, b: like(x, a) * tanh(in_register(x * like(x, b))), 1.0, 1.0
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Activation:
    """An activation with its parameters, and the bound to which its operand is clipped, if any."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0
    bound: float | None = None

    def __call__(self, x: Any) -> Any:
        """The activation of a vector, in a register."""
        x = in_register(x)
        if self.bound is not None:
            x = in_register(at_least(at_most(x, self.bound), -self.bound))
        function, _, _ = FUNCTIONS[self.name]
        return in_register(function(x, self.alpha, self.beta))
