"""Constants that are held in fewer bits than they are read in: the file keeps them as they are held, and
what they mean is computed from that (by ONNX Runtime, when the model is loaded)."""

from __future__ import annotations

import numpy as np

from tersor.backends.ort.lowering import Lowering
from tersor.backends.ort.quantize import dequantized
from tersor.ir import Affine, Cast, Dense, Encoding, Graph, Value
from tersor.ops.onnx_schema import TO_ONNX
from tersor.pipeline.report import Decoded


def decode(graph: Graph, constant: Value, lowering: Lowering) -> None:
    """What reads ``constant``, a constant of ``graph`` that no kernel takes as it is held, reads its
    numbers; an unread one goes."""
    held = constant.encoding
    if constant.uses and held is not None:
        reader = next((user.op for user in constant.users), "an output")
        with graph.at(next(graph.nodes, None)):
            made = _decoded(graph, constant, lowering)
        why = no_kernel(reader, held)
        lowering.decoded.append(Decoded.of(constant, why, loaded=not made.is_constant))
        graph.replace(constant, made)
    graph.erase_constant(constant)


def no_kernel(op: str, held: Encoding) -> str:
    """Why a constant is decoded for ``op``."""
    return f"ONNX Runtime has no kernel of {op} that reads {held.describe()}"


def _decoded(graph: Graph, constant: Value, lowering: Lowering) -> Value:
    """Not by DequantizeLinear, where other ops can say it: ONNX Runtime makes MatMulNBits of that and a
    MatMul, which quantizes the other operand too, unasked. Of less than 8 bits that is what was meant."""
    held = constant.encoding
    if isinstance(held, Cast):
        short = lowering.part(constant, "short", held.array)
        return graph.emit("Cast", [short], {"to": TO_ONNX[held.dtype]})
    assert held is not None
    whole = isinstance(held, Affine) and not (
        held.block and held.values.shape[held.axis or 0] % held.block
    )
    if not isinstance(held, Affine) or not (whole or held.is_standard):
        return graph.constant(Dense(held.decode()), constant.name)
    if not whole or (held.storage.bits < 8 and held.is_standard):
        attrs = {} if held.axis is None else {"axis": held.axis, "block_size": held.block}
        parts = _parts(graph, constant, held.values, held.scale, held.zero_point, lowering)
        return graph.emit("DequantizeLinear", parts, attrs)
    if not held.block:
        scale, zero = held.expanded(held.scale), held.expanded(held.zero_point)
        parts = _parts(graph, constant, held.values, scale, zero, lowering)
        return dequantized(graph, *parts)
    # Blocks as an axis of their own, [..., n / block, block, ...].
    before, n, after = _around(held.values.shape, held.axis or 0)
    scale, zero = (
        p.reshape(*before, n // held.block, 1, *after) for p in (held.scale, held.zero_point)
    )
    values = held.values.reshape(*before, n // held.block, held.block, *after)
    made = dequantized(graph, *_parts(graph, constant, values, scale, zero, lowering))
    shape = graph.constant(np.array(held.values.shape, np.int64), "shape")
    return graph.emit("Reshape", [made, shape])


def _around(shape: tuple[int, ...], axis: int) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
    return shape[:axis], shape[axis], shape[axis + 1 :]


def _parts(
    graph: Graph,
    constant: Value,
    values: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
    lowering: Lowering,
) -> tuple[Value, Value, Value | None]:
    """Integers, their scale and, where that is not zero, their zero point as constants."""
    return (
        lowering.part(constant, "quantized", values),
        lowering.numbers(constant, "scale", scale),
        graph.constant(zero, f"{constant.name}_zero_point")
        if zero.astype(np.float64).any()
        else None,
    )


def has_rows(held: Encoding) -> bool:
    """Whether rows of a table are looked up as they are stored."""
    whole = isinstance(held, Affine) and not held.block and held.storage.bits >= 8
    return whole or isinstance(held, Cast)


def rows(graph: Graph, table: Value, ids: Value, lowering: Lowering) -> Value | None:
    """The rows ``ids`` of a table: gathered as they are held, and only those are made floats. None
    for a table whose rows are not held apart."""
    held = table.encoding
    if isinstance(held, Cast):
        short = _gathered(graph, lowering.part(table, "short", held.array), ids)
        return graph.emit("Cast", [short], {"to": TO_ONNX[held.dtype]})
    if held is None or not has_rows(held):
        return None
    assert isinstance(held, Affine)
    values = _gathered(graph, lowering.part(table, "quantized", held.values), ids)
    scale, zero = held.expanded(held.scale), held.expanded(held.zero_point)
    if held.axis != 0:  # Rows broadcast against them.
        scale, zero = scale.reshape(scale.shape[1:]), zero.reshape(zero.shape[1:])
    by = lowering.numbers(table, "row_scale", scale)
    minus = None if held.is_symmetric else lowering.part(table, "row_zero_point", zero)
    if held.axis == 0:
        by = _gathered(graph, by, ids)
        minus = None if minus is None else _gathered(graph, minus, ids)
    return dequantized(graph, values, by, minus)


def _gathered(graph: Graph, table: Value, ids: Value) -> Value:
    return graph.emit("Gather", [table, ids], {"axis": 0})
