"""Small questions that rewrite rules ask about what stands around a node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tersor.ir import Dim, DType, Encoding, Node, TensorType, Value

if TYPE_CHECKING:
    from tersor.ops.opdef import Trait


def scalar(value: Value | None) -> float | None:
    """The number of a constant with one element, else None."""
    if value is None or value.encoding is None or value.encoding.type.numel != 1:
        return None
    number = value.encoding.decode().reshape(-1)[0]
    return None if isinstance(number, (str, bytes, complex, np.complexfloating)) else float(number)


def is_scalar(value: Value | None, number: float, rtol: float = 1e-5) -> bool:
    """Whether ``value`` is a constant with one element that is ``number``."""
    have = scalar(value)
    return have is not None and bool(np.isclose(have, number, rtol=rtol, atol=0))


def producer_if(value: Value | None, op: str) -> Node | None:
    """The node that makes ``value``, if it is an ``op``."""
    if value is None or value.producer is None or value.producer.op != op:
        return None
    return value.producer


def has_trait(node: Node, trait: Trait) -> bool:
    """Whether the op of a node is of this kind."""
    from tersor.ops import TABLE  # Loads onnx's schemas, which `import tersor` does without.

    return TABLE.has(node.op, trait)


def operand(node: Node, index: int) -> Value:
    """Operand ``index``, which the op requires."""
    value = node.inputs[index]
    assert value is not None
    return value


def operand_orders(node: Node) -> Iterator[tuple[Value, Value]]:
    """Both orders of a binary op's operands."""
    a, b = operand(node, 0), operand(node, 1)
    yield a, b
    yield b, a


def operand_and_constant(node: Node) -> tuple[Value, Value] | None:
    """(operand, constant) of a commutative binary op that has exactly one constant operand."""
    for a, b in operand_orders(node):
        if b.is_constant and not a.is_constant:
            return a, b
    return None


def has_one_use(value: Value) -> bool:
    """Whether a single operand of a single node reads it, and no graph returns it."""
    return len(value.uses) == 1 and not value.is_output


def rank(value: Value) -> int | None:
    """Number of dims; None where unknown."""
    return value.type.rank if isinstance(value.type, TensorType) else None


def dims(value: Value) -> tuple[Dim, ...] | None:
    """Its dims; None where not even the rank is known, or it is no tensor."""
    return value.type.dims if isinstance(value.type, TensorType) else None


def dtype(value: Value) -> DType | None:
    """Its element type; None where it is not known, or it is no tensor."""
    return value.type.dtype if isinstance(value.type, TensorType) else None


def same_type(a: Value, b: Value) -> bool:
    """Whether both are known to be of one type: equal dtype, and equal dims that are all known."""
    return (
        a.type == b.type
        and isinstance(a.type, TensorType)
        and a.type.dims is not None
        and None not in a.type.dims
    )


def is_last_axis_mean(value: Value, x: Value) -> bool:
    """Whether ``value`` is the mean of ``x`` over its last axis, which is kept as 1."""
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
    """The one number that all elements of ``value`` are, whatever its shape; None if not known.

    Sees through whatever only moves or repeats elements; of a size that is not known, there may be none.
    """
    work: Value | None = value
    while work is not None:
        if work.encoding is not None:
            data = work.encoding.decode()
            if data.size == 0 or data.dtype.kind not in "biuf":
                return None
            first = data.reshape(-1)[0]
            # An int stays one: not all of 64 bits are floats.
            return first.item() if bool((data == first).all()) else None
        node = work.producer
        if node is not None and node.op == "ConstantOfShape":
            return _filling(node)
        if node is None or not has_trait(node, "movement"):
            return None
        work = node.inputs[0]
    return None


def _filling(node: Node) -> float | None:
    """What a ConstantOfShape fills with; zeros by default."""
    value = node.attrs.get("value")
    if not isinstance(value, Encoding):
        return 0.0
    numbers = value.decode().reshape(-1)
    return numbers[0].item() if numbers.size and numbers.dtype.kind in "biuf" else None


def iota_axis(value: Value) -> int | None:
    """The axis along which ``value`` counts 0, 1, 2 …, being constant along all others; else None.

    Range(0, n, 1) -> 0;   Unsqueeze(that, [0, 2]) -> 1
    """
    inserted: list[list[int]] = []
    work: Value | None = value
    while work is not None:
        start = _counts(work)
        if start is not None:
            axis = start
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


def _counts(value: Value) -> int | None:
    """The axis of a Range from 0 by 1, of a constant that counts, or of the beginning of one."""
    if value.encoding is not None:
        return _constant_counts(value.encoding.decode())
    node = value.producer
    if node is None:
        return None
    if node.op == "Range":
        return 0 if is_scalar(node.inputs[0], 0) and is_scalar(node.inputs[2], 1) else None
    if node.op == "Slice" and operand(node, 0).is_constant:
        axis = _constant_counts(operand(node, 0).numpy())
        cut = node.input(3)
        starts_at_zero = is_scalar(node.inputs[1], 0)
        steps_by_one = node.input(4) is None or is_scalar(node.input(4), 1)
        on_axis = scalar(cut) == axis if cut is not None else axis == 0
        return axis if starts_at_zero and steps_by_one and on_axis else None
    return None


def _constant_counts(data: np.ndarray) -> int | None:
    long = [i for i, n in enumerate(data.shape) if n != 1]
    if data.dtype.kind not in "iu" or len(long) != 1:
        return None
    return long[0] if bool((data.reshape(-1) == np.arange(data.size)).all()) else None
