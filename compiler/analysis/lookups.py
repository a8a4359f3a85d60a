"""Embedding lookups: who reads rows of which table, by which ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import dims
from tersor.ir import Graph, Node, Use, Value
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
    if not table.is_dense:
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
