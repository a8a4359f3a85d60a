"""Vectors shared by several nodes only because they are equal.

Equal constants are stored once: the zero biases of all layers are one constant, and so are the all-one
scales of norms.  Sharing such a vector does not tie its readers.  Sharing a matrix does (shared layers, a
head that is the embedding): cut for one reader, it has to be cut for all.
"""

from __future__ import annotations

from collections.abc import Sequence

from tersor.ir import Graph, Node, Value


def split_vectors(graph: Graph) -> list[list[Value]]:
    """Gives every reader of a float vector its own constant, in place; returns the sets of copies."""
    copies = []
    for inner in graph.all_graphs():
        for value in list(inner.constants.values()):
            uses = [u for u in value.uses if isinstance(u.user, Node)]
            if len(uses) < 2 or not value.tensor.dtype.is_float or not _is_vector(value):
                continue
            same = [value]
            for use in uses[1:]:
                assert isinstance(use.user, Node) and use.user.graph is not None
                assert value.encoding is not None
                own = value.graph.constant(value.encoding, value.name)
                use.user.graph.set_input(use.user, use.operand, own)
                same.append(own)
            copies.append(same)
    return copies


def merge_vectors(graph: Graph, copies: Sequence[Sequence[Value]]) -> None:
    """Merges the copies that are still equal."""
    for values in copies:
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
