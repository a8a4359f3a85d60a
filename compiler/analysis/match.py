"""Predicates and accessors for rewrite rules that match around a node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tersor.ir import Dim, DType, Encoding, Node, TensorType, Value

if TYPE_CHECKING:
    from tersor.ops.opdef import Trait


def scalar(value: Value | None) -> float | None:
    """The number in a one-element constant, else None."""
    if value is None or value.encoding is None or value.encoding.type.numel != 1:
        return None
    number = value.encoding.decode().reshape(-1)[0]
    return None if isinstance(number, (str, bytes, complex, np.complexfloating)) else float(number)


def is_scalar(value: Value | None, number: float, rtol: float = 1e-5) -> bool:
    """Whether ``value`` is a one-element constant equal to ``number``."""
    actual = scalar(value)
    return actual is not None and bool(np.isclose(actual, number, rtol=rtol, atol=0))


def producer_if(value: Value | None, op: str) -> Node | None:
    """The node that produces ``value``, if it is an ``op``."""
    if value is None or value.producer is None or value.producer.op != op:
        return None
    return value.producer


def has_trait(node: Node, trait: Trait) -> bool:
    """Whether the node's op has ``trait``."""
    from tersor.ops import TABLE  # Loads onnx's schemas, which `import tersor` does without.

    return TABLE.has(node.op, trait)


def operand(node: Node, index: int) -> Value:
    """Operand ``index``, which is not optional."""
    value = node.inputs[index]
    assert value is not None
    return value


def operand_orders(node: Node) -> Iterator[tuple[Value, Value]]:
    """The two operands of a binary op, in both orders."""
    a, b = operand(node, 0), operand(node, 1)
    yield a, b
    yield b, a


def operand_and_constant(node: Node) -> tuple[Value, Value] | None:
    """(operand, constant) of a commutative op with exactly one constant operand."""
    for a, b in operand_orders(node):
        if b.is_constant and not a.is_constant:
            return a, b
    return None


def has_one_use(value: Value) -> bool:
    """Whether exactly one operand of one node reads it, and it is no graph output."""
    return len(value.uses) == 1 and not value.is_output


def rank(value: Value) -> int | None:
    """Number of dims; None where unknown."""
    return value.type.rank if isinstance(value.type, TensorType) else None


def dims(value: Value) -> tuple[Dim, ...] | None:
    """Its dims; None where the rank is unknown or it is not a tensor."""
    return value.type.dims if isinstance(value.type, TensorType) else None


def dtype(value: Value) -> DType | None:
    """Its element type; None where unknown or it is not a tensor."""
    return value.type.dtype if isinstance(value.type, TensorType) else None


def same_type(a: Value, b: Value) -> bool:
    """Whether both are known to have the same type: equal dtype, and equal dims that are all known."""
    return (
        a.type == b.type
        and isinstance(a.type, TensorType)
        and a.type.dims is not None
        and None not in a.type.dims
    )


def is_last_axis_mean(value: Value, x: Value) -> bool:
    """Whether ``value`` is the mean of ``x`` over its last axis, with keepdims."""
    node = producer_if(value, "ReduceMean")
    size = rank(x)
    if node is None or operand(node, 0) is not x or not node.attrs["keepdims"]:
        return False
    axes = node.input(1)
    if axes is None or not axes.is_constant or axes.numpy().size != 1:
        return False
    axis = int(axes.numpy().reshape(-1)[0])
    return axis == -1 or (size is not None and axis == size - 1)


def uniform(value: Value) -> float | None:
    """The number that every element of ``value`` equals, whatever its shape; None if not known to exist.

    Looks through ops that only move or repeat elements. A value of unknown size may be empty.
    """
    work: Value | None = value
    while work is not None:
        if work.encoding is not None:
            data = work.encoding.decode()
            if data.size == 0 or data.dtype.kind not in "biuf":
                return None
            first = data.reshape(-1)[0]
            # Not float(): 64-bit integers would round.
            return first.item() if bool((data == first).all()) else None
        node = work.producer
        if node is not None and node.op == "ConstantOfShape":
            return _fill_value(node)
        if node is None or not has_trait(node, "movement"):
            return None
        work = node.inputs[0]
    return None


def _fill_value(node: Node) -> float | None:
    """The fill value of a ConstantOfShape; 0 by default."""
    value = node.attrs.get("value")
    if not isinstance(value, Encoding):
        return 0.0
    numbers = value.decode().reshape(-1)
    return numbers[0].item() if numbers.size and numbers.dtype.kind in "biuf" else None


def iota_axis(value: Value) -> int | None:
    """The axis along which ``value`` counts 0, 1, 2 …, constant along all others (an iota); else None.

    Range(0, n, 1) -> 0;   Unsqueeze(that, [0, 2]) -> 1
    """
    inserted: list[list[int]] = []
    work: Value | None = value
    while work is not None:
        axis = _iota_axis(work)
        if axis is not None:
            for new in reversed(inserted):
                for at in new:
                    axis += at <= axis
            return axis
        node = work.producer
        if node is None or rank(work) is None:
            return None
        if node.op == "Unsqueeze":
            axes = node.inputs[1]
            if axes is None or not axes.is_constant:
                return None
            inserted.append(sorted(int(a) % rank(work) for a in axes.numpy()))  # type: ignore[operator]
        elif node.op == "Expand":
            before = rank(operand(node, 0))
            if before is None:
                return None
            inserted.append(list(range(rank(work) - before)))  # type: ignore[operator]
        elif (node.op == "Cast" and not work.tensor.dtype.is_integer) or node.op not in (
            "Cast",
            "Identity",
        ):
            return None
        work = node.inputs[0]
    return None


def _iota_axis(value: Value) -> int | None:
    """Of a Range from 0 by 1, an iota constant, or a slice of one that starts at 0."""
    if value.encoding is not None:
        return _constant_iota_axis(value.encoding.decode())
    node = value.producer
    if node is None:
        return None
    if node.op == "Range":
        return 0 if is_scalar(node.inputs[0], 0) and is_scalar(node.inputs[2], 1) else None
    if node.op == "Slice" and operand(node, 0).is_constant:
        axis = _constant_iota_axis(operand(node, 0).numpy())
        cut = node.input(3)
        starts_at_zero = is_scalar(node.inputs[1], 0)
        steps_by_one = node.input(4) is None or is_scalar(node.input(4), 1)
        on_axis = scalar(cut) == axis if cut is not None else axis == 0
        return axis if starts_at_zero and steps_by_one and on_axis else None
    return None


def _constant_iota_axis(data: np.ndarray) -> int | None:
    long = [i for i, n in enumerate(data.shape) if n != 1]
    if data.dtype.kind not in "iu" or len(long) != 1:
        return None
    return long[0] if bool((data.reshape(-1) == np.arange(data.size)).all()) else None
