"""Building blocks for symbolic inference: operands' contents, axes, and sizes that are compared
without knowing them. A symbol is a size: it is never negative."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import numpy as np

from tersor.errors import InvalidGraph
from tersor.ir import Dim, Node, Sym, TensorType, Value
from tersor.ir.dims import divide, floordiv, product
from tersor.ops.contents import CONTENTS_ELEMENTS, contents_of
from tersor.ops.opdef import Cost


def refuse(node: Node, reason: str) -> NoReturn:
    """Raises InvalidGraph for a node whose operands cannot be."""
    raise InvalidGraph(f"{node.label}: {reason}")


def no_work(node: Node) -> Cost:
    """Views and copies compute nothing; what a copy costs is its bytes, which its type tells."""
    return Cost(0, 0)


def element_cost(node: Node) -> Cost:
    """One operation for each element of the result."""
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
    """Elements of a vector whose contents are known (each int, Sym or None), else None."""
    contents = contents_of(value)
    return None if contents is None else list(contents.reshape(-1))


def ints(value: Value | None) -> list[int] | None:
    """Elements of a vector that are all plain integers, else None."""
    items = known(value)
    return items if items is not None and all(isinstance(i, int) for i in items) else None


def scalar(value: Value | None) -> Dim:
    """The one element of an integer scalar; None where it is not known."""
    items = known(value)
    return items[0] if items is not None and len(items) == 1 else None


def vector_or_unknown(value: Value | None) -> list[Any] | None:
    """As :func:`known`, with as many unknown elements where only the length is known."""
    items = known(value)
    if items is not None or value is None or not isinstance(value.type, TensorType):
        return items
    shape = value.type.dims
    length = shape[0] if shape is not None and len(shape) == 1 else None
    return [None] * length if isinstance(length, int) else None


def vector(items: Sequence[Any]) -> np.ndarray:
    """An object array of dims."""
    held = np.empty(len(items), object)
    held[:] = items
    return held


def small(shape: Iterable[int]) -> bool:
    """Whether contents of that shape are worth tracking."""
    return math.prod(shape) <= CONTENTS_ELEMENTS


# -- axes ------------------------------------------------------------------------------------------


def axis_of(node: Node, rank: int, name: str = "axis") -> int:
    """The attribute ``name`` as a non-negative axis.

    Raises:
        InvalidGraph: it lies outside of ``rank``.
    """
    axis = node.attrs[name]
    assert isinstance(axis, int)
    return checked_axis(node, axis, rank)


def checked_axis(node: Node, axis: int, rank: int) -> int:
    """``axis``, not negative.

    Raises:
        InvalidGraph: it lies outside of ``rank``.
    """
    if not -rank <= axis < rank:
        refuse(node, f"axis {axis} is outside of rank {rank}")
    return axis + rank if axis < 0 else axis


def checked_axes(node: Node, axes: Sequence[int], rank: int) -> list[int]:
    """``axes``, not negative, in the order given.

    Raises:
        InvalidGraph: one lies outside of ``rank``, or is named twice.
    """
    found = [checked_axis(node, axis, rank) for axis in axes]
    if len(set(found)) != len(found):
        refuse(node, f"axes {list(axes)} name an axis twice")
    return found


def merge(node: Node, *dims: Dim) -> Dim:
    """One dim that all of ``dims`` must be: a number if one is, else the first that is known.

    Raises:
        InvalidGraph: two are different numbers.
    """
    numbers = {d for d in dims if isinstance(d, int)}
    if len(numbers) > 1:
        refuse(node, f"dims {', '.join(map(str, sorted(numbers)))} should be equal")
    return numbers.pop() if numbers else next((d for d in dims if d is not None), None)


# -- dims ------------------------------------------------------------------------------------------


def quotient(have: Sequence[Dim], given: Sequence[Dim]) -> Dim:
    """The one size left when ``have``'s product is shared out to ``given``; None where unknown.

    Equal factors cancel first, so that unknown ones elsewhere need not be known.
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
    """The dim that broadcasting gives: 1 gives way; a number above 1 decides."""
    if a == 1 or a == b:
        return b
    if b == 1:
        return a
    if isinstance(a, int):
        return a
    return b if isinstance(b, int) else None


def broadcast_dims(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Dims that numpy's broadcasting gives."""
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    return tuple(broadcast_dim(x, y) for x, y in zip(a, b, strict=True))


def is_negative(dim: Dim) -> bool:
    """Whether a dim is certainly below zero."""
    return isinstance(dim, int) and dim < 0


def is_known(items: Iterable[Any]) -> bool:
    """Whether every element is an int or a Sym."""
    return all(isinstance(i, (int, Sym)) for i in items)
