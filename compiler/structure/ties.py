"""Constants that are one: what lies in the same memory, and only the order of its axes is another.

    @table [v, d] for a lookup, and @head [d, v], its transpose, for the product with it

A frontend or a pass makes the second as a view of the first.  As long as it is one, the file holds the
numbers once; what changes one of them has to change the other, or leave both.
"""

from __future__ import annotations

from tersor.ir import Affine, Cast, Dense, Graph, Node, Value

LEAST_ELEMENTS = 1024


def tied_sets(graph: Graph) -> list[list[Value]]:
    """Constants of ``graph`` and its subgraphs that are tied, each set in order; none of one alone."""
    found: dict[object, list[Value]] = {}
    for owner in graph.all_graphs():
        for value in owner.constants.values():
            if (key := _key(value)) is not None:
                found.setdefault(key, []).append(value)
    return [values for values in found.values() if len(values) > 1]


def tied_to(value: Value) -> list[Value]:
    """The other constants that ``value`` is tied to."""
    graph = value.graph
    while graph.outer is not None:
        graph = graph.outer
    return [v for values in tied_sets(graph) if value in values for v in values if v is not value]


def turn(a: Value, b: Value) -> tuple[int, ...]:
    """The order of a's axes in which they are those of b, to which it is tied."""
    have, made = _memory_order(a), _memory_order(b)
    return tuple(have[made.index(axis)] for axis in range(len(have)))


def tie_again(first: Value, other: Value, perm: tuple[int, ...]) -> None:
    """Holds in ``other`` what ``first`` holds by now, turned by ``perm``."""
    assert first.encoding is not None
    other.graph.set_encoding(other, first.encoding.transpose(perm))


def held_twice(node: Node, weight: Value) -> str:
    """Why other numbers for ``node`` in place of its weight would leave the weight in the file beside
    them; empty where they would not."""
    if weight.only_user() is not node:
        return f"@{weight.name} is shared with other layers"
    if tied := tied_to(weight):
        return f"@{weight.name} is tied to @{tied[0].name}"
    return ""


def _key(value: Value) -> tuple[object, ...] | None:
    if value.encoding is None or not value.uses:
        return None
    held = value.encoding.unmasked
    if not isinstance(held, (Dense, Cast, Affine)) or len(held.type.shape) < 2:
        return None
    array = held.values if isinstance(held, Affine) else held.array
    if array.size < LEAST_ELEMENTS:
        return None
    return held.place, tuple(array.shape[axis] for axis in _memory_order(value))


def _memory_order(value: Value) -> list[int]:
    """Axes from that of the longest stride to that of the shortest."""
    assert value.encoding is not None
    held = value.encoding.unmasked
    assert isinstance(held, (Dense, Cast, Affine))
    array = held.values if isinstance(held, Affine) else held.array
    return sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
