"""Transcendental functions in vector arithmetic.

Each function takes a TIR expression of float32, scalar or vector, and returns one of arithmetic,
comparisons, selects and reinterpretations alone, for which LLVM emits vector instructions instead of
a call of libm per lane.  The operand is repeated in the result: bind it to a variable first.  Selects
stand for min and max, as TVM's lose NaN.

Coefficients are minimax fits in double precision (Lawson's algorithm: least squares, reweighted until
the error is level), rounded to float32; errors are stated for evaluation in float32.

* exp: x = n ln 2 + r with an integer n and r in [0, ln 2), e^x = 2^n e^r.  ln 2 is subtracted in
  two parts, the first of few bits, so that its product with n is exact.  e^r is a polynomial of
  degree 5 whose constant is fixed at 1, so that e^0 = 1.  n is rounded by adding a number so large
  that the fraction is lost, whose lowest bits are the exponent's bias: shifted into place, the
  sum's low bits are 2^n.  Relative error 3e-7; 0 where the result would be subnormal.
* log: x = 2^e m with m in [sqrt 1/2, sqrt 2), log x = e ln 2 + log1p(r), r = m - 1,
  log1p(r) = r - r^2 / 2 + r^3 P(r).  Error 1e-7 of the result or 1e-7, the larger.
* tanh and erf are odd: x P(x^2) / Q(x^2), fitted for relative error up to the point where they
  round to 1.  Relative error 5e-7.
* gelu_coarse: Phi(x) = 1/2 + x P(x^2) for |x| up to 4.25, fitted with weight x, which multiplies
  the error.
* gelu: x Phi(x) = max(x, 0) - |x| Phi(-|x|), and log2 Phi(-a) is close enough to a parabola for a
  polynomial of degree 5 to give a Phi(-a) to 7e-7 everywhere, with one power of two and no division.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

EXPONENT_SHIFT = 23  # The position of a float32's exponent.
WHOLE = 1.5 * 2**23  # Adding it rounds to an integer, in the 16 lowest bits.
ROUNDING = 1.5 * 2**23 + 127  # Adding it rounds to an integer n, with n + 127 in the lowest bits.
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
LARGEST_EXP = 88.7228317  # e^x is finite up to here.
SMALLEST_EXP = -87.33  # e^x is normal from here.
SQRT_HALF_BITS = 0x3F3504F3
SMALLEST_NORMAL = 2.0**-126

E_TO_R = (1.0, 1.00000596, 0.499870814, 0.167555025, 0.0390624018, 0.0116695343)
TWO_TO_F = (1.0, 0.693146978, 0.240222421, 0.0555073374, 0.00967151264, 0.00132647271)
LOG1P = (
    0.333339107, -0.25001337, 0.199630638, -0.165775847, 0.149147679, -0.14267487, 0.0870043592,
)  # fmt: skip
LOG2_PHI = (-1.00003763, -1.15078777, -0.459992643, -0.0518271705, 0.00708446181, -0.000473294086)
TANH = (
    (1.0, 0.133810266, 0.00349558925, 2.06090978e-05, 1.33546774e-08),
    (1.0, 0.467143422, 0.0258769867, 0.000328563653, 7.776566e-07),
)
ERF = (
    (1.12837915, 0.190406721, 0.0527487526, 0.0037656262, 0.000284882592, 2.05008077e-06),
    (1.0, 0.502076304, 0.114109213, 0.0149692362, 0.00116253708, 3.80916413e-05),
)
PHI = (
    0.398823529, -0.066193521, 0.00971907284, -0.00107884442, 8.84155452e-05, -5.13813939e-06,
    1.98003704e-07, -4.49504967e-09, 4.52013045e-11,
)  # fmt: skip
TANH_IS_ONE, ERF_IS_ONE, GELU_IS_X = 9.0, 3.92, 4.25


def like(x: Any, value: float) -> Any:
    """A constant of the type of ``x``, in every lane."""
    return tirx.const(value, str(x.ty.dtype))


def polynomial(x: Any, coefficients: Sequence[float]) -> Any:
    """A polynomial by Horner's rule, the constant coefficient first."""
    result = like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = result * x + like(x, coefficient)
    return result


def at_most(x: Any, bound: float) -> Any:
    """min(x, bound); NaN where x is NaN."""
    return tirx.Select(x > like(x, bound), like(x, bound), x)


def at_least(x: Any, bound: float) -> Any:
    """max(x, bound); NaN where x is NaN."""
    return tirx.Select(x < like(x, bound), like(x, bound), x)


def exp(x: Any) -> Any:
    """e^x."""
    # Slightly more than the floor, so that e^0 has n = 0 and is no tie.
    rounded = (x * like(x, 1.44269504) - like(x, 0.4999)) + like(x, ROUNDING)
    n = _integer(rounded)
    r = (x - n * like(x, LN2_HIGH)) - n * like(x, LN2_LOW)
    y = polynomial(r, E_TO_R) * _power_of_two(rounded)
    y = tirx.Select(x > like(x, LARGEST_EXP), like(x, float("inf")), y)
    return tirx.Select(x < like(x, SMALLEST_EXP), like(x, 0.0), y)


def exp2(x: Any, terms: Sequence[float] = TWO_TO_F) -> Any:
    """2^x for x from -127 (gives 0) to 127, or NaN; ``terms``: of 2^f, |f| <= 1/2. Bind x first."""
    rounded = T.Bind(x + like(x, ROUNDING))
    f = T.Bind(x - _integer(rounded))
    return polynomial(f, terms) * _power_of_two(rounded)


def log(x: Any) -> Any:
    """The natural logarithm."""
    subnormal = x < like(x, SMALLEST_NORMAL)
    bits = _bits(tirx.Select(subnormal, x * like(x, 2.0**EXPONENT_SHIFT), x))
    e = (bits - like(bits, SQRT_HALF_BITS)) >> like(bits, EXPONENT_SHIFT)
    r = _float(bits - (e << like(bits, EXPONENT_SHIFT))) - like(x, 1.0)
    n = tirx.Cast(str(x.ty.dtype), e) - tirx.Select(
        subnormal, like(x, float(EXPONENT_SHIFT)), like(x, 0.0)
    )
    tail = r * r * (r * polynomial(r, LOG1P) - like(x, 0.5)) + n * like(x, LN2_LOW)
    y = (tail + r) + n * like(x, LN2_HIGH)
    y = tirx.Select(x < like(x, float("inf")), y, x)
    pole = tirx.Select(x < like(x, 0.0), like(x, float("nan")), like(x, float("-inf")))
    return tirx.Select(x <= like(x, 0.0), pole, y)


def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    return _odd(x, TANH_IS_ONE, *TANH)


def erf(x: Any) -> Any:
    """The error function."""
    return _odd(x, ERF_IS_ONE, *ERF)


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    return like(x, 1.0) / (like(x, 1.0) + exp(like(x, 0.0) - x))


def gelu(x: Any) -> Any:
    """x Phi(x), where Phi is the normal distribution function."""
    positive = x > like(x, 0.0)
    # Beyond 20 Phi is zero in float32, and the polynomial is still falling.
    a = at_most(tirx.Select(positive, x, like(x, 0.0) - x), 20.0)
    log2_phi = at_least(polynomial(a, LOG2_PHI), -126.0)
    rounded = log2_phi + like(x, ROUNDING)
    fraction = log2_phi - _integer(rounded)
    phi = polynomial(fraction, TWO_TO_F) * _power_of_two(rounded)
    return at_least(x, 0.0) - a * phi


def gelu_coarse(x: Any) -> Any:
    """x Phi(x) to 3e-5 (beyond 4.25, to 7e-6 of x), for results that are quantized: no power of two."""
    y = at_least(at_most(x, GELU_IS_X), -GELU_IS_X)
    return x * (y * polynomial(y * y, PHI) + like(x, 0.5))


def gelu_tanh(x: Any) -> Any:
    """Gelu's tanh approximation, x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, as x times a sigmoid."""
    inner = x * (like(x, -1.59576912) - like(x, 0.0713548163) * x * x)
    return x / (like(x, 1.0) + exp(inner))


def _odd(x: Any, one: float, numerator: Sequence[float], denominator: Sequence[float]) -> Any:
    """The rational approximation of an odd function that is 1 from ``one`` on."""
    x = at_least(at_most(x, one), -one)
    y = x * polynomial(x * x, numerator) / polynomial(x * x, denominator)
    return at_least(at_most(y, 1.0), -1.0)


def _integer(rounded: Any) -> Any:
    """n of n + ROUNDING; reinterpreted to bits and back, as TVM simplifies (x + c) - c to x."""
    return _float(_bits(rounded)) - like(rounded, ROUNDING)


def _power_of_two(rounded: Any) -> Any:
    """2^n of n + ROUNDING."""
    bits = _bits(rounded)
    return _float(bits << like(bits, EXPONENT_SHIFT))


def _bits(x: Any) -> Any:
    return tirx.reinterpret(str(x.ty.dtype).replace("float", "int"), x)


def _float(bits: Any) -> Any:
    return tirx.reinterpret(str(bits.ty.dtype).replace("int", "float"), bits)
