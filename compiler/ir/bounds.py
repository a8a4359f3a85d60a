"""Comparing symbolic sizes. A symbol is never negative, and always smaller than what exporters write for
"to the end"."""

from __future__ import annotations

import math

from tersor.ir.dims import Call, KnownDim, maximum, minimum

# No axis is this long: a bound of this size means "to the end" (tf2onnx writes 10^9, others 2^31 - 1 or
# 2^63 - 1).
UNBOUNDED = 10**9


def lower_bound(dim: KnownDim) -> int | None:
    """A number that ``dim`` is never below; None if none can be derived."""
    if isinstance(dim, int):
        return dim
    total = 0
    for monomial, coefficient in dim.terms:
        bounds = [0 if isinstance(atom, str) else _call_bound(atom) for atom in monomial]
        if (coefficient < 0 and monomial) or any(b is None or b < 0 for b in bounds):
            return None
        total += coefficient * math.prod(b for b in bounds if b is not None)
    return total


def _call_bound(call: Call) -> int | None:
    bounds = [lower_bound(a) for a in call.arguments]
    numbers = [b for b in bounds if b is not None]
    if call.function == "max":
        return max(numbers, default=None)
    if len(numbers) < len(bounds):
        return None
    if call.function == "min":
        return min(numbers)
    return 0 if numbers[0] >= 0 and numbers[1] >= 0 else None


def larger(a: KnownDim, b: KnownDim) -> KnownDim:
    """The maximum, simplified to ``a`` or ``b`` if one is provably the larger."""
    for low, high in ((a, b), (b, a)):
        if is_at_least(high, low):
            return high
    return maximum(a, b)


def smaller(a: KnownDim, b: KnownDim) -> KnownDim:
    """The minimum, simplified to ``a`` or ``b`` if one is provably the smaller."""
    for low, high in ((a, b), (b, a)):
        if is_at_least(high, low):
            return low
    return minimum(a, b)


def is_at_least(high: KnownDim, low: KnownDim) -> bool:
    """Whether ``high >= low`` provably holds for all sizes."""
    if isinstance(high, int) and isinstance(low, int):
        return high >= low
    if isinstance(high, int) and high >= UNBOUNDED:
        return True
    bound = lower_bound(high - low)
    return bound is not None and bound >= 0
