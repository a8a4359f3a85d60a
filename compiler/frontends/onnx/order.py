"""The order of a graph's nodes: that of the file where it holds, else one in which every value is
made before it is read."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from onnx import AttributeProto, GraphProto, NodeProto

from tersor.errors import InvalidModel

SHOWN = 6  # Nodes of a cycle that a message names.


def node_label(proto: NodeProto) -> str:
    """How messages call a node of the file."""
    name = repr(proto.name) if proto.name else ""
    if not name and proto.output:
        name = f"making {proto.output[0]!r}"
    op = proto.op_type if proto.op_type.isidentifier() else repr(proto.op_type)
    return f"node {op} {name}".rstrip()


def check_names(proto: GraphProto) -> None:
    """Every name is made once.

    Raises:
        InvalidModel: a name that two nodes make, or that a node and an input or initializer share.
    """
    made = {i.name for i in proto.input} | {t.name for t in proto.initializer}
    made |= {s.values.name for s in proto.sparse_initializer}
    for node in proto.node:
        for name in node.output:
            if name and name in made:
                raise InvalidModel(f"{node_label(node)} makes {name!r}, which is made before")
            made.add(name)


def sorted_nodes(nodes: Sequence[NodeProto]) -> list[int]:
    """Indices of ``nodes`` in an order in which they can run, as near to the given one as can be.

    Raises:
        InvalidModel: a cycle.
    """
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    waits: list[set[int]] = []
    readers: dict[int, list[int]] = {}
    for i, node in enumerate(nodes):
        needs = {maker[name] for name in _reads(node) if name in maker}
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
    """The cycle among nodes that each wait for another: following that leads into it."""
    at = next(i for i, needs in enumerate(waits) if needs)
    way: dict[int, None] = {}
    while at not in way:
        way[at] = None
        at = min(waits[at])
    ring = [*way][[*way].index(at) :]
    # What each waits for comes before it.
    ring.reverse()
    first = ring.index(min(ring))
    ring = ring[first:] + ring[:first]
    shown = [node_label(nodes[i]).removeprefix("node ") for i in ring[:SHOWN]]
    more = f"{len(ring) - SHOWN} more -> " if len(ring) > SHOWN else ""
    return f"a cycle of {len(ring)} nodes: {' -> '.join(shown)} -> {more}{shown[0]}"


def _reads(node: NodeProto) -> set[str]:
    """Names that a node reads of the graph it is in, by its subgraphs too."""
    found = set(node.input)
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            found |= _captures(attribute.g)
        elif attribute.type == AttributeProto.GRAPHS:
            found = found.union(*map(_captures, attribute.graphs))
    return found


def _captures(graph: GraphProto) -> set[str]:
    """Names that a subgraph reads and does not make. Recursion is as deep as graphs nest, which
    protobuf limits."""
    own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    own |= {s.values.name for s in graph.sparse_initializer}
    read = {o.name for o in graph.output}
    for node in graph.node:
        own |= set(node.output)
        read |= _reads(node)
    return read - own
