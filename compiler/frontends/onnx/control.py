"""Types in and out of loop bodies, where the file does not write them (it need not)."""

from __future__ import annotations

from collections.abc import Sequence

from tersor.ir import DType, Graph, TensorType, UnknownType, Value, ValueType

Operands = Sequence[Value | None]


def body_input_types(op: str, inputs: Operands, scans: int, axes: Sequence[int]) -> list[ValueType]:
    """Types of the inputs of the body of a Loop or Scan; nothing for other ops.

    Args:
        op: ONNX's name.
        inputs: the node's operands.
        scans: Scan's ``num_scan_inputs``.
        axes: Scan's ``scan_input_axes``; empty: 0 for each.
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


def result_types(op: str, inputs: Operands, bodies: list[Graph], outputs: int) -> list[ValueType]:
    """What is known of the results of an If, Loop or Scan from what its bodies return."""
    if op == "If" and len(bodies) == 2:
        pairs = zip(bodies[0].outputs, bodies[1].outputs, strict=False)
        return _padded([_common(a.type, b.type) for a, b in pairs], outputs)
    if op == "Loop" and bodies:
        returned = [v.type for v in bodies[0].outputs[1:]]
        carried = len(inputs) - 2
        kept = zip(inputs[2:], returned, strict=False)
        types = [_common(v.type, t) if v is not None else t for v, t in kept]
        return _padded(types + [_stacked(t) for t in returned[carried:]], outputs)
    return _padded([], outputs)


def _padded(types: list[ValueType], count: int) -> list[ValueType]:
    return (types + [UnknownType() for _ in range(count)])[:count]


def _carried(value: Value | None) -> ValueType:
    """A carried value keeps its element type; its shape may change from turn to turn."""
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


def _stacked(type: ValueType) -> ValueType:
    if not isinstance(type, TensorType):
        return UnknownType()
    return type.with_dims(None if type.dims is None else (None, *type.dims))


def _common(a: ValueType, b: ValueType) -> ValueType:
    """What holds of both."""
    if a == b:
        return a
    if not isinstance(a, TensorType) or not isinstance(b, TensorType) or a.dtype is not b.dtype:
        return UnknownType()
    if a.dims is None or b.dims is None or len(a.dims) != len(b.dims):
        return a.with_dims(None)
    return a.with_dims(tuple(x if x == y else None for x, y in zip(a.dims, b.dims, strict=True)))
