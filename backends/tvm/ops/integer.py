"""Integer division that never traps: operands on which the processor would give some number."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from tersor.backends.tvm.ops.broadcast import differ, kind


def divide(a: Any, b: Any) -> Any:
    """Rounds towards zero."""
    if kind(a).startswith("uint"):
        return tirx.truncdiv(a, _divisor(b))
    # The lowest number has no negation: processors trap when it is divided by -1.
    minus = tirx.const(-1, kind(a))
    quotient = tirx.truncdiv(a, tirx.Select(tirx.EQ(b, minus), -minus, _divisor(b)))
    return tirx.Select(tirx.EQ(b, minus), tirx.const(0, kind(a)) - quotient, quotient)


def remainder(a: Any, b: Any, *, truncated: bool) -> Any:
    """The remainder, with the sign of ``a`` where division is ``truncated``, else that of ``b``."""
    zero = tirx.const(0, kind(a))
    rest = a - divide(a, b) * b
    if truncated or kind(a).startswith("uint"):
        return rest
    turned = tirx.And(tirx.NE(rest, zero), differ(rest < zero, b < zero))
    return tirx.Select(turned, rest + b, rest)


def _divisor(b: Any) -> Any:
    return tirx.Select(tirx.EQ(b, tirx.const(0, kind(b))), tirx.const(1, kind(b)), b)
