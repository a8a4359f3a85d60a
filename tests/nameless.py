"""What a graph says without its names: for tests that two graphs are one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tersor.ir import Encoding, Graph, Value


def lines(graph: Graph, leaves: Mapping[Value, str] | None = None) -> list[str]:
    """Ops with what they read by number, types and attributes, constants by their contents. ``leaves``
    are called by the names given; what nothing but they need is left out."""
    names = dict(leaves or {}) | {value: f"%{value.name}" for value in graph.inputs}
    needed = _needed(graph, names)
    made = []
    for node in graph.nodes:
        if node.outputs[0] not in needed:
            continue
        reads = [_told(value, names) for value in node.inputs]
        attrs = {
            k: v.digest if isinstance(v, Encoding) else v for k, v in sorted(node.attrs.items())
        }
        made.append(f"{[str(v.type) for v in node.outputs]} {node.op}({reads}) {attrs}")
        names |= {value: f"%{len(made)}.{i}" for i, value in enumerate(node.outputs)}
    results = [_told(value, names) for value in graph.outputs]
    return [*made, f"{list(graph.output_names)} = {results}"]


def _told(value: Value | None, names: Mapping[Value, str]) -> Any:
    if value is None or value in names:
        return None if value is None else names[value]
    assert value.encoding is not None
    return f"@{value.encoding.digest}"


def _needed(graph: Graph, leaves: Mapping[Value, str]) -> set[Value]:
    """All results of the nodes that the outputs need, down to the leaves."""
    work, found = list(graph.outputs), set[Value]()
    while work:
        value = work.pop()
        if value in found or value in leaves or value.producer is None:
            continue
        found |= set(value.producer.outputs)
        work += [x for x in value.producer.inputs if x is not None]
    return found
