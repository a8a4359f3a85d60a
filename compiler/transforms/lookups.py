"""Replacing lookups in a table."""

from __future__ import annotations

from collections.abc import Callable

from tersor.analysis.layers import Reader, WeightedLayer, readers_of
from tersor.analysis.match import dims
from tersor.ir import Graph, Value
from tersor.pipeline import replace_node


def irreplaceable(table: WeightedLayer) -> str:
    """Why the lookups in ``table`` cannot be replaced; empty if they can."""
    if len(table.nodes) != len(table.readers):
        return f"@{table.name} is looked up twice by one node"
    if not all(dims(lookup.ids) for lookup in table.readers):
        return f"@{table.name} is looked up by a single id, or ids of unknown rank"
    return ""


def replace_lookups(table: Value, rows: Callable[[Graph, Value], Value]) -> None:
    """Replaces each lookup in ``table`` by what ``rows`` emits for its ids. A fused sum of lookups with layer
    normalization is split, which gives its other tables new readers."""
    for lookup in readers_of(table):
        node = lookup.node
        graph = node.graph
        assert graph is not None
        with graph.at(node):
            result = rows(graph, lookup.ids)
            if node.op != "Gather":
                result = _normalized(graph, lookup, result)
        replace_node(node, [result])


def _normalized(graph: Graph, lookup: Reader, rows: Value) -> Value:
    """The layer normalization of the sum of ``rows`` and the node's other lookups."""
    node = lookup.node
    total = rows
    for operand in range(3, len(node.inputs), 2):
        if operand != lookup.form.operand:
            pair = [node.inputs[operand], node.inputs[operand - 1]]
            total = graph.emit("Add", [total, graph.emit("Gather", pair, {"axis": 0})])
    attrs = {"axis": -1, "epsilon": node.attrs["epsilon"]}
    operands = [total, *node.inputs[:2]]
    return graph.emit("LayerNormalization", operands, attrs, name=node.output.name)
