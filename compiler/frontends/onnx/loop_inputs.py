"""Types of the inputs of loop bodies, which a file may leave out."""

from __future__ import annotations

from collections.abc import Sequence

from tersor.ir import DType, TensorType, UnknownType, Value, ValueType

Operands = Sequence[Value | None]


def body_input_types(op: str, inputs: Operands, scans: int, axes: Sequence[int]) -> list[ValueType]:
    """Types of the inputs of a Loop's or Scan's body; empty for other ops.

    Args:
        op: ONNX's name.
        inputs: the node's operands.
        scans: Scan's ``num_scan_inputs``.
        axes: Scan's ``scan_input_axes``, by default 0 for each.
    """
    if op == "Loop":
        counters: list[ValueType] = [TensorType(DType.I64, ()), TensorType(DType.BOOL, ())]
        return counters + [_carried(v) for v in inputs[2:]]
    if op == "Scan":
        first = len(inputs) - scans
        sliced = [
            _without_axis(v, axes[i] if i < len(axes) else 0) for i, v in enumerate(inputs[first:])
        ]
        return [_carried(v) for v in inputs[:first]] + sliced
    return []


def _carried(value: Value | None) -> ValueType:
    """A carried value keeps its element type, but its shape may change between iterations."""
    if value is None:
        return UnknownType()
    return value.type.with_dims(None) if isinstance(value.type, TensorType) else value.type


def _without_axis(value: Value | None, axis: int) -> ValueType:
    if value is None or not isinstance(value.type, TensorType):
        return UnknownType()
    dims = value.type.dims
    if dims is None or not -len(dims) <= axis < len(dims):
        return value.type.with_dims(None)
    return value.type.with_dims(tuple(d for i, d in enumerate(dims) if i != axis % len(dims)))
