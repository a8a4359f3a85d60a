"""Integers as rows of bits."""

from __future__ import annotations

from typing import Any

from tvm import DataType, tirx

from tersor.backends.tvm.lowering import Rule
from tersor.backends.tvm.ops.broadcast import kind
from tersor.backends.tvm.ops.elementwise import elementwise


def _shift(x: Any, by: Any, *, direction: str) -> Any:
    """Bits that are pushed out are lost; a machine's shift by all of them or more may do anything."""
    bits = DataType(kind(x)).bits
    function = tirx.shift_left if direction == "LEFT" else tirx.shift_right
    most = tirx.const(bits - 1, kind(x))
    return tirx.Select(by > most, tirx.const(0, kind(x)), function(x, tirx.min(by, most)))


RULES: dict[str, Rule] = {
    "BitwiseAnd": elementwise(tirx.bitwise_and),
    "BitwiseOr": elementwise(tirx.bitwise_or),
    "BitwiseXor": elementwise(tirx.bitwise_xor),
    "BitwiseNot": elementwise(tirx.bitwise_not),
    "BitShift": elementwise(_shift),
}
