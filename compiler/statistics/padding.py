"""The input that marks which positions of a value are padding."""

from __future__ import annotations

from tersor.analysis.feeds import table_rows
from tersor.analysis.match import dims
from tersor.ir import Dim, DType, Graph, TensorType, Value
from tersor.ir.dims import product


def padding_mask(graph: Graph, value: Value) -> str | None:
    """The name of the input that marks which positions of ``value`` [..., k] are padding: integers or
    booleans with one element per row that do not index an embedding table. None if there is none, or more
    than one.
    """
    shape = dims(value)
    return mask_over(graph, shape[:-1]) if shape else None


def padding_of(graph: Graph, value: Value) -> str | None:
    """As :func:`padding_mask`, for a value with one element or one row per position."""
    shape = dims(value)
    return (mask_over(graph, shape) if shape else None) or padding_mask(graph, value)


def mask_over(graph: Graph, leading: tuple[Dim, ...]) -> str | None:
    """As :func:`padding_mask`, for rows at the positions that the dims ``leading`` span."""
    candidates = [
        v
        for v in graph.inputs
        if isinstance(v.type, TensorType)
        and v.type.dtype in (DType.BOOL, DType.I32, DType.I64)
        and len(dims(v) or ()) >= 2
        and (dims(v) == leading or leading == (product(dims(v) or ()),))
        and None not in leading
        and not table_rows(v)
    ]
    return candidates[0].name if len(candidates) == 1 else None
