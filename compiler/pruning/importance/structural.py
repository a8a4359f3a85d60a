"""Importance by graph structure alone: the share of the data flow from inputs to outputs through a unit.

    share of all paths from an input to an output that pass through the group's activations
    times the unit's share of the group's positions

One of 512 neurons in a branch next to a residual connection gets 1/512 of the paths through the branch; one
of 128 channels of the connection itself 1/128 of all paths. Units of the same size in one group score the
same: the criterion discriminates between groups, and between the units of a concatenation.
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
    shares = []
    for group in groups:
        values = {value for value, _ in group.axes if not value.is_constant}
        share = 1 - _paths(graph, flow, values) / total if total else 0.0
        counts = np.zeros(group.units)
        for (value, _), owner in group.axes.items():
            if not value.is_constant:
                counts += np.bincount(owner[owner >= 0], minlength=group.units)
        shares.append(share * counts / max(counts.sum(), 1))
    return shares


def _flow(graph: Graph) -> nx.DiGraph[Value]:
    """Edges from operands to results among non-constant values, through subgraphs too."""
    flow: nx.DiGraph[Value] = nx.DiGraph()
    flow.add_nodes_from(graph.inputs)
    for node in graph.walk():
        read = [v for v in node.inputs if v is not None and not v.is_constant]
        flow.add_nodes_from(node.outputs)
        if TABLE.has(node.op, "shape"):
            continue
        flow.add_edges_from((v, result) for v in read for result in node.outputs)
        for sub in node.subgraphs:
            flow.add_edges_from((v, argument) for v in read for argument in sub.inputs)
            returned = [v for v in sub.outputs if not v.is_constant]
            flow.add_edges_from((v, result) for v in returned for result in node.outputs)
    return flow


def _paths(graph: Graph, flow: nx.DiGraph[Value], without: Collection[Value]) -> int:
    """The number of paths from inputs to outputs that avoid the values ``without``."""
    count: dict[Value, int] = {}
    for value in nx.topological_sort(flow):
        before = sum(count[v] for v in flow.predecessors(value))
        count[value] = 0 if value in without else before + value.is_input * (value.graph is graph)
    return sum(count.get(value, 0) for value in graph.outputs)
