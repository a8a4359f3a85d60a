"""What the graph alone tells of units: how much of what flows from the inputs to the outputs goes through.

    share of all paths of values, from an input to an output, that touch the group's activations
    times the share of the group's positions that is the unit's

A neuron of a feed-forward layer beside a residual connection carries 1/512 of the paths that do not take
the connection; a channel of the connection itself 1/128 of all paths.  Units of one size in one group are
alike: the criterion tells groups apart, and the units of a concatenation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import networkx as nx
import numpy as np

from tersor.ir import Graph, Value
from tersor.ops import TABLE
from tersor.structure import AxisGroup


def path_shares(graph: Graph, groups: Sequence[AxisGroup]) -> list[np.ndarray]:
    """f64[units] in [0, 1] for each group."""
    flow = _flow(graph)
    total = _paths(graph, flow, set())
    found = []
    for group in groups:
        values = {value for value, _ in group.axes if not value.is_constant}
        share = 1 - _paths(graph, flow, values) / total if total else 0.0
        counts = np.zeros(group.units)
        for (value, _), owner in group.axes.items():
            if not value.is_constant:
                counts += np.bincount(owner[owner >= 0], minlength=group.units)
        found.append(share * counts / max(counts.sum(), 1))
    return found


def _flow(graph: Graph) -> nx.DiGraph[Value]:
    """Values that are no constants, with edges from operands to results, through subgraphs too."""
    flow: nx.DiGraph[Value] = nx.DiGraph()
    flow.add_nodes_from(graph.inputs)
    for node in graph.walk():
        read = [v for v in node.inputs if v is not None and not v.is_constant]
        flow.add_nodes_from(node.outputs)
        if TABLE.has(node.op, "shape"):
            continue
        flow.add_edges_from((v, made) for v in read for made in node.outputs)
        for sub in node.subgraphs:
            flow.add_edges_from((v, taken) for v in read for taken in sub.inputs)
            returned = [v for v in sub.outputs if not v.is_constant]
            flow.add_edges_from((v, made) for v in returned for made in node.outputs)
    return flow


def _paths(graph: Graph, flow: nx.DiGraph[Value], without: Collection[Value]) -> int:
    """How many paths lead from inputs to outputs beside the values ``without``."""
    count: dict[Value, int] = {}
    for value in nx.topological_sort(flow):
        before = sum(count[v] for v in flow.predecessors(value))
        count[value] = 0 if value in without else before + value.is_input * (value.graph is graph)
    return sum(count.get(value, 0) for value in graph.outputs)
