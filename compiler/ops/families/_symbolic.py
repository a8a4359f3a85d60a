"""Building blocks for symbolic inference: operands' contents, axes, and dims."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from tersor.errors import InvalidGraph
from tersor.ir import Dim, Node, Sym, TensorType, Value
from tersor.ir.dims import divide, floordiv, product
from tersor.ops.contents import CONTENTS_ELEMENTS, contents_of
from tersor.ops.opdef import Cost


def refuse(node: Node, reason: str) -> NoReturn:
    """Raises InvalidGraph for a node with invalid operands."""
    raise InvalidGraph(f"{node.label}: {reason}")


def no_work(node: Node) -> Cost:
    """The cost of views and copies: no arithmetic. (The table adds the bytes.)"""
    return Cost(0, 0)


def element_cost(node: Node) -> Cost:
    """One operation per element of the result."""
    return Cost(0, node.output.tensor.numel if isinstance(node.output.type, TensorType) else None)


# -- operands --------------------------------------------------------------------------------------


def tensor(node: Node, index: int = 0) -> TensorType:
    """Type of operand ``index``.

    Raises:
        InvalidGraph: it is left out or not a tensor.
    """
    value = node.input(index)
    if value is None or not isinstance(value.type, TensorType):
        refuse(node, f"operand {index} is {'left out' if value is None else value.type}")
    return value.type


def known(value: Value | None) -> list[Any] | None:
    """The elements of a tensor with known contents (each int, Sym or None), else None."""
    contents = contents_of(value)
    return None if contents is None else list(contents.reshape(-1))


def ints(value: Value | None) -> list[int] | None:
    """The elements of a tensor if all are known integers, else None."""
    items = known(value)
    return items if items is not None and all(isinstance(i, int) for i in items) else None


def scalar(value: Value | None) -> Dim:
    """The element of an integer scalar; None if unknown."""
    items = known(value)
    return items[0] if items is not None and len(items) == 1 else None


def vector_or_unknown(value: Value | None) -> list[Any] | None:
    """As :func:`known`, or a list of unknown elements if only the length is known."""
    items = known(value)
    if items is not None or value is None or not isinstance(value.type, TensorType):
        return items
    shape = value.type.dims
    length = shape[0] if shape is not None and len(shape) == 1 else None
    return [None] * length if isinstance(length, int) else None


def small(shape: Iterable[int]) -> bool:
    """Whether contents of that shape are worth tracking."""
    return math.prod(shape) <= CONTENTS_ELEMENTS


# -- axes ------------------------------------------------------------------------------------------


def axis_of(node: Node, rank: int, name: str = "axis") -> int:
    """The attribute ``name`` as a non-negative axis.

    Raises:
        InvalidGraph: it is out of range for ``rank``.
    """
    axis = node.attrs[name]
    assert isinstance(axis, int)
    return checked_axis(node, axis, rank)


def checked_axis(node: Node, axis: int, rank: int) -> int:
    """``axis``, made non-negative.

    Raises:
        InvalidGraph: it is out of range for ``rank``.
    """
    if not -rank <= axis < rank:
        refuse(node, f"axis {axis} is outside of rank {rank}")
    return axis + rank if axis < 0 else axis


def checked_axes(node: Node, axes: Sequence[int], rank: int) -> list[int]:
    """``axes``, made non-negative, in the given order.

    Raises:
        InvalidGraph: one is out of range for ``rank``, or given twice.
    """
    checked = [checked_axis(node, axis, rank) for axis in axes]
    if len(set(checked)) != len(checked):
        refuse(node, f"axes {list(axes)} name an axis twice")
    return checked


def merge(node: Node, *dims: Dim) -> Dim:
    """The dim that all of ``dims`` must equal: a number if one is, else the first known one.

    Raises:
        InvalidGraph: two are different numbers.
    """
    numbers = {d for d in dims if isinstance(d, int)}
    if len(numbers) > 1:
        refuse(node, f"dims {', '.join(map(str, sorted(numbers)))} should be equal")
    return numbers.pop() if numbers else next((d for d in dims if d is not None), None)


# -- dims ------------------------------------------------------------------------------------------


def quotient(have: Sequence[Dim], given: Sequence[Dim]) -> Dim:
    """The product of ``have`` divided by that of ``given``; None if unknown.

    Equal factors cancel first, also unknown dims on both sides.
    """
    left, right = list(have), []
    for dim in given:
        if dim is not None and dim != 0 and dim in left:
            left.remove(dim)
        else:
            right.append(dim)
    total, rest = product(left), product(right)
    if total is None or rest is None or rest == 0:
        return None
    exact = divide(total, rest)
    if exact is None and isinstance(total, int) and isinstance(rest, int):
        return None
    return exact if exact is not None else floordiv(total, rest)


def broadcast_dim(a: Dim, b: Dim) -> Dim:
    """The broadcast of two dims: 1 is stretched, another number wins over a symbol."""
    if a == 1 or a == b:
        return b
    if b == 1:
        return a
    if isinstance(a, int):
        return a
    return b if isinstance(b, int) else None


def broadcast_dims(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The dims of numpy's broadcasting."""
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    return tuple(broadcast_dim(x, y) for x, y in zip(a, b, strict=True))


def is_negative(dim: Dim) -> bool:
    """Whether a dim is certainly negative."""
    return isinstance(dim, int) and dim < 0


def is_known(items: Iterable[Any]) -> bool:
    """Whether every element is an int or a Sym."""
    return all(isinstance(i, (int, Sym)) for i in items)
