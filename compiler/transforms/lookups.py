"""Lookups written as something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tersor.analysis.lookups import Lookup
from tersor.ir import Graph, Value
from tersor.pipeline import replace_node


def replace_lookups(lookups: Sequence[Lookup], rows: Callable[[Graph, Value], Value]) -> None:
    """What ``rows`` emits for the ids takes the place of each lookup; a fused layer normalization of
    several lookups is taken apart for it."""
    for lookup in lookups:
        node = lookup.node
        graph = node.graph
        assert graph is not None
        with graph.at(node):
            made = rows(graph, lookup.ids)
            if node.op != "Gather":
                made = _normalized(graph, lookup, made)
        replace_node(node, [made])


def _normalized(graph: Graph, lookup: Lookup, rows: Value) -> Value:
    """The layer normalization of the sum of ``rows`` and of the node's other lookups."""
    node = lookup.node
    total = rows
    for operand in range(3, len(node.inputs), 2):
        if operand != lookup.operand:
            pair = [node.inputs[operand], node.inputs[operand - 1]]
            total = graph.emit("Add", [total, graph.emit("Gather", pair, {"axis": 0})])
    attrs = {"axis": -1, "epsilon": node.attrs["epsilon"]}
    operands = [total, *node.inputs[:2]]
    return graph.emit("LayerNormalization", operands, attrs, name=node.output.name)
