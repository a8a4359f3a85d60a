"""Vectors that several nodes read only because they are equal.

Equal constants are held once: the zero biases of all layers are one constant, and so are the ones that
all norms scale by.  That is no tie between their readers.  A matrix that several nodes read is one
(shared layers, a head that is the embedding): cut for one reader it has to be cut for all.
"""

from __future__ import annotations

from collections.abc import Sequence

from tersor.ir import Graph, Node, Value


def part_vectors(graph: Graph) -> list[list[Value]]:
    """Gives every reader of a vector of floats a constant of its own, in place; those that were one,
    together."""
    parted = []
    for inner in graph.all_graphs():
        for value in list(inner.constants.values()):
            uses = [u for u in value.uses if isinstance(u.user, Node)]
            if len(uses) < 2 or not value.tensor.dtype.is_float or not _is_vector(value):
                continue
            held = [value]
            for use in uses[1:]:
                assert isinstance(use.user, Node) and use.user.graph is not None
                assert value.encoding is not None
                own = value.graph.constant(value.encoding, value.name)
                use.user.graph.set_input(use.user, use.operand, own)
                held.append(own)
            parted.append(held)
    return parted


def join_vectors(graph: Graph, parted: Sequence[Sequence[Value]]) -> None:
    """Holds those once again that are still equal."""
    for values in parted:
        first: dict[str, Value] = {}
        for value in values:
            if value.encoding is None or not value.uses:
                continue
            one = first.setdefault(value.encoding.digest, value)
            if one is not value:
                value.graph.replace(value, one)
                value.graph.erase_constant(value)


def _is_vector(value: Value) -> bool:
    return sum(size != 1 for size in value.tensor.shape) == 1
