"""Topological order of a file's nodes, and checks of the names that define it."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from onnx import GraphProto, NodeProto

from tersor.errors import InvalidModel
from tersor.frontends.onnx.scopes import module_path
from tersor.frontends.onnx.walk import graphs_in

SHOWN = 6  # Nodes of a cycle that a message names.


def node_label(proto: NodeProto) -> str:
    """A node's name in messages, in the form of :attr:`tersor.ir.Node.label`:
    ``MatMul %h (encoder.layer.0)``."""
    domain = f"{proto.domain}." if proto.domain not in ("", "ai.onnx") else ""
    result = next((f" %{name}" for name in proto.output if name), "")
    where = module_path(proto) or proto.name
    return f"{domain}{proto.op_type}{result}{f' ({where})' if where else ''}"


def check_names(proto: GraphProto) -> None:
    """Checks that every name is defined once.

    Raises:
        InvalidModel: a node's result has the name of another's, of an input or of an initializer.
    """
    defined = {i.name for i in proto.input} | {t.name for t in proto.initializer}
    defined |= {s.values.name for s in proto.sparse_initializer}
    for node in proto.node:
        for name in node.output:
            if name and name in defined:
                raise InvalidModel(f"{node_label(node)}: its result {name!r} is already defined")
            defined.add(name)


def sorted_nodes(nodes: Sequence[NodeProto]) -> list[int]:
    """Indices of ``nodes`` in topological order, each as early as the given order allows.

    Raises:
        InvalidModel: a cycle.
    """
    producers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    waits: list[set[int]] = []
    readers: dict[int, list[int]] = {}
    for i, node in enumerate(nodes):
        needs = {producers[name] for name in _reads(node) if name in producers}
        for j in needs:
            readers.setdefault(j, []).append(i)
        waits.append(needs)
    ready = [i for i, needs in enumerate(waits) if not needs]
    order: list[int] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for j in readers.get(i, ()):
            waits[j].discard(i)
            if not waits[j]:
                heapq.heappush(ready, j)
    if len(order) < len(nodes):
        raise InvalidModel(_cycle(nodes, waits))
    return order


def _cycle(nodes: Sequence[NodeProto], waits: Sequence[set[int]]) -> str:
    """Describes a cycle. Every waiting node waits for another one, so following these leads into a cycle."""
    at = next(i for i, needs in enumerate(waits) if needs)
    path: dict[int, None] = {}
    while at not in path:
        path[at] = None
        at = min(waits[at])
    cycle = [*path][[*path].index(at) :]
    cycle.reverse()  # In the direction of the data.
    first = cycle.index(min(cycle))
    cycle = cycle[first:] + cycle[:first]
    shown = [node_label(nodes[i]) for i in cycle[:SHOWN]]
    more = f"{len(cycle) - SHOWN} more -> " if len(cycle) > SHOWN else ""
    return f"a cycle of {len(cycle)} nodes: {' -> '.join(shown)} -> {more}{shown[0]}"


def _reads(node: NodeProto) -> set[str]:
    """Names that a node or its subgraphs read from the graph that contains it."""
    return set(node.input).union(*(_captures(g) for a in node.attribute for g in graphs_in(a)))


def _captures(graph: GraphProto) -> set[str]:
    """Names that a subgraph reads but does not define. Recursion is bounded by the depth of graphs, which
    :func:`check_depth` limits."""
    own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    own |= {s.values.name for s in graph.sparse_initializer}
    read = {o.name for o in graph.output}
    for node in graph.node:
        own |= set(node.output)
        read |= _reads(node)
    return read - own
