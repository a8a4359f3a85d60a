"""Cast and CastLike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from tersor.backends.tvm.lowering import Lowering, Rule, dtype_of
from tersor.backends.tvm.ops.broadcast import each, kind, operand
from tersor.ir import Node


def convert(x: Any, dtype: str) -> Any:
    """A number in another type. Floats outside of the range of a small integer wrap around, as they
    do where they are converted by way of a wider one."""
    if dtype == "bool":
        # Not NE: it is false for NaN.
        return tirx.Not(tirx.EQ(x, tirx.const(0, kind(x))))
    if kind(x).startswith("float"):
        if dtype in ("int8", "uint8", "int16", "uint16"):
            x = x.astype("int32")
        elif dtype == "uint32":
            x = x.astype("int64")
    return x.astype(dtype)


def _cast(lowering: Lowering, node: Node) -> Sequence[Any]:
    value = node.inputs[0]
    assert value is not None
    to = dtype_of(node.output.type)
    if dtype_of(value.type) == to:
        return [lowering[value]]
    made = each(
        lowering, "cast", [operand(lowering, value)], node.output.tensor, lambda x: convert(x, to)
    )
    return [made]


RULES: dict[str, Rule] = {"Cast": _cast, "CastLike": _cast}
