"""Embedding lookups: who reads rows of which table, by which ids, and how often each was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import dims
from tersor.ir import Dense, Graph, Node, Use, Value
from tersor.pipeline import Evaluate, Feeds, replace_node
from tersor.statistics.calibration import tap
from tersor.statistics.padding import padding_mask
from tersor.structure.ties import tied_to


@dataclass(frozen=True)
class Lookup:
    """A read of rows of ``table`` [rows, size] by ``ids``, operand ``operand`` of ``node``: a Gather on axis
    0, or one of the pairs of a tersor.EmbeddingLayerNormalization."""

    node: Node
    operand: int

    @property
    def ids(self) -> Value:
        found = self.node.inputs[1 if self.node.op == "Gather" else self.operand - 1]
        assert found is not None
        return found


def as_lookup(use: Use) -> Lookup | None:
    """The use as a lookup in a 2-D table; None where it is something else."""
    node, operand = use.user, use.operand
    if not isinstance(node, Node):
        return None
    if node.op == "Gather":
        table = node.inputs[0]
        plain = operand == 0 and node.attrs["axis"] == 0
        return Lookup(node, 0) if plain and table and table.tensor.rank == 2 else None
    # Operands: scale, bias, then ids and table by turns.
    pair = node.op == "tersor.EmbeddingLayerNormalization" and operand >= 3 and operand % 2 == 1
    return Lookup(node, operand) if pair else None


def lookups_of(table: Value) -> list[Lookup]:
    """All lookups in ``table``, a 2-D constant."""
    return [found for use in table.uses if (found := as_lookup(use)) is not None]


def tables(graph: Graph, min_elements: int) -> list[Value]:
    """Float constants of at least ``min_elements`` that something looks rows up in."""
    return [
        table
        for owner in graph.all_graphs()
        for table in owner.constants.values()
        if table.tensor.dtype.is_float
        and table.tensor.rank == 2
        and int(np.prod(table.tensor.shape)) >= min_elements
        and lookups_of(table)
    ]


def unfit(table: Value, lookups: Sequence[Lookup]) -> str | None:
    """Why the table cannot be written as smaller ones; None where it can."""
    if not isinstance(table.encoding, Dense):
        return f"@{table.name} is not dense"
    if len(lookups) != len(table.uses):
        return f"@{table.name} is also read by something else than a lookup, as a tied head does"
    if tied := tied_to(table):
        return f"@{table.name} is tied to @{tied[0].name}, and would be held twice"
    if len({lookup.node for lookup in lookups}) != len(lookups):
        return f"@{table.name} is looked up twice by one node"
    if not all(dims(lookup.ids) for lookup in lookups):
        return f"@{table.name} is looked up by a single id, or ids of unknown rank"
    if not np.isfinite(table.numpy().astype(np.float64)).all():
        return f"@{table.name} holds NaN or infinity"
    return None


def frequencies(
    graph: Graph, table: Value, lookups: Sequence[Lookup], feeds: Feeds, evaluate: Evaluate
) -> np.ndarray:
    """f64[rows], how often each row was looked up on ``feeds``, padding left out; lookups in subgraphs
    are not seen."""
    counts = np.zeros(table.tensor.shape[0])
    masks = {
        lookup.ids: padding_mask(graph, lookup.node.output)
        for lookup in lookups
        if lookup.node.graph is graph
    }
    if not masks:
        return counts
    tapped = tap(graph, list(masks))
    for feed in feeds:
        outputs = evaluate(tapped, feed)
        for ids, mask in masks.items():
            asked = outputs[ids.name].reshape(-1)
            kept = feed[mask].reshape(-1) if mask is not None else None
            if kept is not None and len(kept) == len(asked):
                asked = asked[kept != 0]
            np.add.at(counts, asked, 1)
    return counts


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
