"""Where to insert a node that users in several subgraphs read."""

from __future__ import annotations

from collections.abc import Sequence

from tersor.analysis.match import has_trait
from tersor.ir import Graph, Node, Value


def insertion_point(x: Value, readers: Sequence[Node]) -> Node:
    """The node before which something computed from ``x`` dominates all ``readers`` (in execution order):
    in the innermost graph that encloses them all, but hoisted out of loops that ``x`` is defined outside of.

        x read in both branches of an If      -> the If
        x read in a Loop's body, and after it -> the Loop
        x read in one branch alone            -> its reader there
    """
    outers = []
    for node in readers:
        assert node.graph is not None
        around = enclosing_graphs(node.graph)
        outers.append(around[: around.index(x.graph) + 1])
    common = [g for g in outers[0] if all(g in around for around in outers)]
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
    """``graph`` and its ancestors, innermost first."""
    graphs = [graph]
    while (outer := graphs[-1].outer) is not None:
        graphs.append(outer)
    return graphs
