"""Bitwise ops."""

from __future__ import annotations

from typing import Any

from tvm import DataType, tirx

from tersor.backends.tvm.lowering import Rule
from tersor.backends.tvm.ops.broadcast import kind
from tersor.backends.tvm.ops.elementwise import elementwise


def _shift(x: Any, by: Any, *, direction: str) -> Any:
    """Logical to the left, arithmetic to the right for signed numbers. A shift by a negative number, or by
    the type's width or more, shifts out all bits; the machine's result would be undefined."""
    zero, most = (tirx.const(n, kind(x)) for n in (0, DataType(kind(x)).bits - 1))
    inside = tirx.all(by >= zero, by <= most)
    place = tirx.Select(inside, by, most)
    if direction == "RIGHT" and kind(x).startswith("int"):
        return tirx.shift_right(x, place)
    function = tirx.shift_left if direction == "LEFT" else tirx.shift_right
    return tirx.Select(inside, function(x, place), zero)


RULES: dict[str, Rule] = {
    "BitwiseAnd": elementwise(tirx.bitwise_and),
    "BitwiseOr": elementwise(tirx.bitwise_or),
    "BitwiseXor": elementwise(tirx.bitwise_xor),
    "BitwiseNot": elementwise(tirx.bitwise_not),
    "BitShift": elementwise(_shift),
}
