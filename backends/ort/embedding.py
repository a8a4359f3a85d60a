"""Embedding lookups for ONNX Runtime, in float and in compressed tables."""

from __future__ import annotations

from collections.abc import Sequence

from tersor.backends.ort.constants import rows
from tersor.backends.ort.lowering import Lowering
from tersor.ir import Graph, Node, Value


def lower_gather(graph: Graph, node: Node, lowering: Lowering) -> Sequence[Value] | None:
    """None, which keeps the op, for float tables and for other axes than rows."""
    table, ids = node.inputs
    assert table is not None and ids is not None
    if table.encoding is None or table.is_dense or node.attrs["axis"] != 0:
        return None
    gathered = rows(graph, table, ids, lowering)
    return None if gathered is None else [gathered]


def lower_embedding_norm(graph: Graph, node: Node, lowering: Lowering) -> Sequence[Value]:
    """LayerNormalization(table_0[ids_0] + table_1[ids_1] + ...)."""
    scale, bias, *pairs = node.inputs
    total: Value | None = None
    for ids, table in zip(pairs[::2], pairs[1::2], strict=True):
        assert ids is not None and table is not None
        row = _lookup(graph, table, ids, lowering)
        total = row if total is None else graph.emit("Add", [total, row])
    attrs = {"axis": -1, "epsilon": node.attrs["epsilon"]}
    return [graph.emit("LayerNormalization", [total, scale, bias], attrs)]


def _lookup(graph: Graph, table: Value, ids: Value, lowering: Lowering) -> Value:
    gathered = rows(graph, table, ids, lowering)
    return graph.emit("Gather", [table, ids], {"axis": 0}) if gathered is None else gathered
