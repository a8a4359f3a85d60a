"""Embedding lookups for ONNX Runtime, from float tables and from int8 tables with a scale a row."""

from __future__ import annotations

from collections.abc import Sequence

from tersor.backends.ort.lowering import Lowering
from tersor.ir import Affine, Graph, Node, Value
from tersor.ops.onnx_schema import TO_ONNX


def lower_gather(graph: Graph, node: Node, lowering: Lowering) -> Sequence[Value] | None:
    """Rows of an int8 table: the integers and their scales are gathered, then multiplied."""
    table, ids = node.inputs
    assert table is not None and ids is not None
    if not isinstance(table.encoding, Affine) or node.attrs["axis"] != 0:
        return None
    return [_lookup(graph, table, ids, lowering)]


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
    encoding = table.encoding
    if not isinstance(encoding, Affine):
        return graph.emit("Gather", [table, ids], {"axis": 0})
    if encoding.axis != 0 or encoding.block or not encoding.is_symmetric:
        return graph.emit("Gather", [table, ids], {"axis": 0})
    values = lowering.part(table, "quantized", encoding.values)
    scales = lowering.part(table, "scale", encoding.scale.reshape(-1, 1))
    rows = graph.emit("Gather", [values, ids], {"axis": 0})
    real = graph.emit("Cast", [rows], {"to": TO_ONNX[table.tensor.dtype]})
    return graph.emit("Mul", [real, graph.emit("Gather", [scales, ids], {"axis": 0})])
