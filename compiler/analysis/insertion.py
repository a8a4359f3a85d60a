"""Where a graph with subgraphs can hold what several of its nodes are to read."""

from __future__ import annotations

from collections.abc import Sequence

from tersor.analysis.match import has_trait
from tersor.ir import Graph, Node, Value


def insertion_point(x: Value, readers: Sequence[Node]) -> Node:
    """The node before which what is computed from ``x`` serves all ``readers``, given in the order of
    execution: in the innermost graph that holds them all, but outside of loops that ``x`` is not made
    in, which would compute it anew at every turn.

        x read in both branches of an If      -> the If
        x read in a Loop's body, and after it -> the Loop
        x read in one branch alone            -> its reader there
    """
    outers = []
    for node in readers:
        assert node.graph is not None
        held = enclosing_graphs(node.graph)
        outers.append(held[: held.index(x.graph) + 1])
    common = [g for g in outers[0] if all(g in held for held in outers)]
    place = common[0]
    for graph in common:
        if graph.parent is not None and graph is not x.graph and has_trait(graph.parent, "loop"):
            assert graph.outer is not None
            place = graph.outer
    node = readers[0]
    while node.graph is not place:
        assert node.graph is not None and node.graph.parent is not None
        node = node.graph.parent
    return node


def enclosing_graphs(graph: Graph) -> list[Graph]:
    """``graph`` and the graphs around it, from the inside out."""
    found = [graph]
    while (outer := found[-1].outer) is not None:
        found.append(outer)
    return found
