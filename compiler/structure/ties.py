"""Tied constants: views of the same memory, perhaps with axes in another order.

    @table [v, d] for a lookup, and its transpose @head [d, v] for the output layer

A frontend or pass makes the second a view of the first.  As long as they are tied, the numbers are saved
once; a pass that changes one has to change both, or neither.
"""

from __future__ import annotations

import math

from tersor.ir import Graph, Node, Value

LEAST_ELEMENTS = 1024


def tied_sets(graph: Graph) -> list[list[Value]]:
    """The sets of tied constants of ``graph`` and its subgraphs, in order, of at least two each."""
    sets: dict[object, list[Value]] = {}
    for owner in graph.all_graphs():
        for value in owner.constants.values():
            if (key := _key(value)) is not None:
                sets.setdefault(key, []).append(value)
    return [values for values in sets.values() if len(values) > 1]


def tied_to(value: Value) -> list[Value]:
    """The other constants that ``value`` is tied to."""
    graph = value.graph
    while graph.outer is not None:
        graph = graph.outer
    return [v for values in tied_sets(graph) if value in values for v in values if v is not value]


def axis_order(a: Value, b: Value) -> tuple[int, ...]:
    """The permutation of a's axes that gives b, to which it is tied."""
    assert a.encoding is not None and b.encoding is not None
    have, other = a.encoding.memory_order, b.encoding.memory_order
    return tuple(have[other.index(axis)] for axis in range(len(have)))


def retie(first: Value, other: Value, perm: tuple[int, ...]) -> None:
    """Makes ``other`` a view of ``first``, with axes permuted by ``perm``."""
    assert first.encoding is not None
    other.graph.set_encoding(other, first.encoding.permute(perm))


def why_shared(node: Node, weight: Value) -> str:
    """Why changing ``node``'s weight would store it twice: other nodes need the original; empty if not."""
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
