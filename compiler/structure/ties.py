"""Constants that are one: what lies in the same memory, and only the order of its axes is another.

    @table [v, d] for a lookup, and @head [d, v], its transpose, for the product with it

A frontend or a pass makes the second as a view of the first.  As long as it is one, the file holds the
numbers once; what changes one of them has to change the other, or leave both.
"""

from __future__ import annotations

import math

from tersor.ir import Graph, Node, Value

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
    assert a.encoding is not None and b.encoding is not None
    have, other = a.encoding.memory_order, b.encoding.memory_order
    return tuple(have[other.index(axis)] for axis in range(len(have)))


def tie_again(first: Value, other: Value, perm: tuple[int, ...]) -> None:
    """Holds in ``other`` what ``first`` holds by now, turned by ``perm``."""
    assert first.encoding is not None
    other.graph.set_encoding(other, first.encoding.permute(perm))


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
    shape, order = value.encoding.type.shape, value.encoding.memory_order
    if len(shape) < 2 or math.prod(shape) < LEAST_ELEMENTS:
        return None
    return value.encoding.place, tuple(shape[axis] for axis in order)
