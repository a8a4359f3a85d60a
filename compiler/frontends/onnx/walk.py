"""Walks over nested graphs, without recursion: a model in memory may nest deeper than Python's stack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import AttributeProto, GraphProto, NodeProto


def graphs_in(attribute: AttributeProto) -> list[GraphProto]:
    """The subgraphs of an attribute."""
    if attribute.type == AttributeProto.GRAPH:
        return [attribute.g]
    return list(attribute.graphs) if attribute.type == AttributeProto.GRAPHS else []


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """``nodes`` and the nodes of their subgraphs. A node may be changed as soon as it is yielded."""
    work = [iter(nodes)]
    while work:
        node = next(work[-1], None)
        if node is None:
            work.pop()
            continue
        yield node
        work += [iter(g.node) for attribute in node.attribute for g in graphs_in(attribute)]


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """``graph`` and its subgraphs."""
    yield graph
    for node in all_nodes(graph.node):
        for attribute in node.attribute:
            yield from graphs_in(attribute)
