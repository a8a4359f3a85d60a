"""Cast and CastLike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from tersor.backends.tvm.lowering import CODES, Lowering, Refused, Rule, dtype_of
from tersor.backends.tvm.ops.broadcast import each, kind, operand
from tersor.backends.tvm.ops.codes import decoded, encoded
from tersor.ir import DType, Node


def convert(x: Any, dtype: str) -> Any:
    """A number in another type. Floats beyond the range of a small integer wrap around, as in a conversion
    through a wider one."""
    if dtype == "bool":
        truth = tirx.NE(x, tirx.const(0, kind(x)))
        # TVM's NE is false for NaN.
        return tirx.Or(truth, tirx.isnan(x)) if kind(x).startswith("float") else truth
    if kind(x).startswith("float"):
        if dtype in ("int8", "uint8", "int16", "uint16"):
            x = x.astype("int32")
        elif dtype == "uint32":
            x = x.astype("int64")
    return x.astype(dtype)


def _low_bits(x: Any, dtype: DType) -> Any:
    """The lowest bits of a byte, for integers of less than eight; signed ones are sign-extended."""
    if not dtype.is_integer or dtype.bits >= 8:
        return x
    if dtype.value[0] == "u":
        return x & tirx.const(2**dtype.bits - 1, "uint8")
    rest = tirx.const(8 - dtype.bits, "int8")
    return (x << rest) >> rest


def _cast(lowering: Lowering, node: Node) -> Sequence[Any]:
    value, type = node.inputs[0], node.output.tensor
    assert value is not None
    to = dtype_of(type)
    if value.tensor.dtype is type.dtype:
        return [lowering[value]]
    if value.tensor.dtype in CODES:
        if type.dtype in CODES:
            raise Refused("from one type of small floats to another")
        return [decoded(lowering, value, lambda x: _low_bits(convert(x, to), type.dtype))]
    if type.dtype in CODES:
        return [encoded(lowering, value, type.dtype, bool(node.attrs["saturate"]))]

    def cast(x: Any) -> Any:
        return _low_bits(convert(x, to), type.dtype)

    return [each(lowering, "cast", [operand(lowering, value)], type, cast)]


RULES: dict[str, Rule] = {"Cast": _cast, "CastLike": _cast}
