"""The sliding window of a boolean attention mask: the part of it that compares positions.

    mask = (j <= i) & (j > i - 8) & padding        query i, key j

is causal, has 7 keys to the left in its window, and leaves ``padding`` as a mask.
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.analysis.match import iota_axis, operand, operand_orders, producer_if, rank, scalar
from tersor.ir import Node, Value

QUERIES, KEYS = 2, 3  # Axes of a mask [batch, heads, queries, keys].


@dataclass(frozen=True)
class AttentionWindow:
    """Query i attends to keys i - left to i + right, where position 0 is that of the first key.

    Attributes:
        left, right: -1: unbounded.
        rest: masks that apply on top of the window.
    """

    left: int = -1
    right: int = -1
    rest: tuple[Value, ...] = ()

    @property
    def is_all(self) -> bool:
        """Whether the window is the whole mask; then each query attends to its own position at least."""
        return not self.rest


def attention_window(mask: Value) -> AttentionWindow:
    """The window of a mask of rank 4."""
    left, right, rest = -1, -1, list[Value]()
    for part in _parts(mask):
        bounds = _bounds(part)
        if bounds is None:
            rest.append(part)
            continue
        left = _nearer(left, bounds[0])
        right = _nearer(right, bounds[1])
    return AttentionWindow(left, right, tuple(rest))


def _nearer(a: int, b: int) -> int:
    return min((x for x in (a, b) if x >= 0), default=-1)


def _parts(mask: Value) -> list[Value]:
    """The conjuncts of ``mask``."""
    both = producer_if(mask, "And")
    if both is None:
        return [mask]
    return [part for i in (0, 1) for part in _parts(operand(both, i))]


# a OP b as (index of the lesser operand, of the greater, whether they may be equal).
_ORDERS = {
    "LessOrEqual": (0, 1, True), "Less": (0, 1, False),
    "GreaterOrEqual": (1, 0, True), "Greater": (1, 0, False),
}  # fmt: skip


def _bounds(mask: Value) -> tuple[int, int] | None:
    """(left, right) of a comparison of positions; None for any other mask."""
    if rank(mask) != 4:
        return None
    inverse = producer_if(mask, "Not")
    node = operand(inverse, 0).producer if inverse is not None else mask.producer
    if node is None or node.op not in _ORDERS:
        return None
    less, more, equal = _ORDERS[node.op]
    if inverse is not None:
        less, more, equal = more, less, not equal
    low, high = operand(node, less), operand(node, more)
    if (width := _whole(high)) is not None and _is_distance(low):
        reached = width - (0 if equal else 1)
        return (reached, reached) if reached >= 0 else None
    a, b = _position(low), _position(high)
    if a is None or b is None or {a[0], b[0]} != {QUERIES, KEYS}:
        return None
    # low + shift <= high, in whole numbers.
    shift = a[1] - b[1] + (0 if equal else 1)
    if a[0] == KEYS:
        return (-1, -shift) if shift <= 0 else None
    return (-shift, -1) if shift <= 0 else None


def _position(value: Value) -> tuple[int, int] | None:
    """(axis, n) of a value of rank 4 that counts n, n + 1, n + 2 … along the axis."""
    if rank(value) == 4 and (axis := iota_axis(value)) is not None:
        return axis, 0
    node = value.producer
    if node is None or node.op not in ("Add", "Sub"):
        return None
    for inner, number in operand_orders(node) if node.op == "Add" else [_operands(node)]:
        n = _whole(number)
        if n is not None and rank(inner) == 4 and (axis := iota_axis(inner)) is not None:
            return axis, n if node.op == "Add" else -n
    return None


def _is_distance(value: Value) -> bool:
    """Whether it is |i - j|."""
    absolute = producer_if(value, "Abs")
    difference = producer_if(operand(absolute, 0), "Sub") if absolute is not None else None
    if difference is None:
        return False
    axes = {iota_axis(v) if rank(v) == 4 else None for v in _operands(difference)}
    return axes == {QUERIES, KEYS}


def _operands(node: Node) -> tuple[Value, Value]:
    return operand(node, 0), operand(node, 1)


def _whole(value: Value) -> int | None:
    number = scalar(value)
    return int(number) if number is not None and float(number).is_integer() else None
