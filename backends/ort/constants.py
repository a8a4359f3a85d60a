"""Compressed constants: the file stores them compressed, and ONNX Runtime computes their values when it
loads the model."""

from __future__ import annotations

import numpy as np

from tersor.backends.ort.lowering import Lowering
from tersor.backends.ort.quantize import dequantized
from tersor.ir import Affine, Cast, Dense, Encoding, Graph, Value
from tersor.ops.onnx_schema import TO_ONNX
from tersor.pipeline.report import Decoded


def decode(graph: Graph, constant: Value, lowering: Lowering) -> None:
    """Replaces ``constant``, a constant of ``graph`` whose encoding no kernel reads, by its decoded values;
    erases it where it is unused."""
    encoding = constant.encoding
    if constant.uses and encoding is not None:
        reader = next((user.op for user in constant.users), "an output")
        with graph.at(next(graph.nodes, None)):
            values = _decoded(graph, constant, lowering)
        why = no_kernel(reader, encoding)
        lowering.decoded.append(Decoded.of(constant, why, loaded=not values.is_constant))
        graph.replace(constant, values)
    graph.erase_constant(constant)


def no_kernel(op: str, encoding: Encoding) -> str:
    """Why a constant is decoded for ``op``."""
    return f"ONNX Runtime has no kernel of {op} that reads {encoding.describe()}"


def _decoded(graph: Graph, constant: Value, lowering: Lowering) -> Value:
    """The values in ops other than DequantizeLinear where possible: ONNX Runtime fuses that and a MatMul to
    MatMulNBits, which quantizes the other operand too. Below 8 bits that is intended."""
    encoding = constant.encoding
    if isinstance(encoding, Cast):
        short = lowering.part(constant, "short", encoding.array)
        return graph.emit("Cast", [short], {"to": TO_ONNX[encoding.dtype]})
    assert encoding is not None
    whole = isinstance(encoding, Affine) and not (
        encoding.block and encoding.values.shape[encoding.axis or 0] % encoding.block
    )
    if not isinstance(encoding, Affine) or not (whole or encoding.is_standard):
        return graph.constant(Dense(encoding.decode()), constant.name)
    if not whole or (encoding.storage.bits < 8 and encoding.is_standard):
        attrs = (
            {} if encoding.axis is None else {"axis": encoding.axis, "block_size": encoding.block}
        )
        parts = _parts(
            graph, constant, encoding.values, encoding.scale, encoding.zero_point, lowering
        )
        return graph.emit("DequantizeLinear", parts, attrs)
    if not encoding.block:
        scale, zero = encoding.expanded(encoding.scale), encoding.expanded(encoding.zero_point)
        parts = _parts(graph, constant, encoding.values, scale, zero, lowering)
        return dequantized(graph, *parts)
    # Blocks as a separate axis, [..., n / block, block, ...].
    before, n, after = _around(encoding.values.shape, encoding.axis or 0)
    scale, zero = (
        p.reshape(*before, n // encoding.block, 1, *after)
        for p in (encoding.scale, encoding.zero_point)
    )
    values = encoding.values.reshape(*before, n // encoding.block, encoding.block, *after)
    blocks = dequantized(graph, *_parts(graph, constant, values, scale, zero, lowering))
    shape = graph.constant(np.array(encoding.values.shape, np.int64), "shape")
    return graph.emit("Reshape", [blocks, shape])


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
    """Integers, their scale and, unless it is zero, their zero point as constants."""
    return (
        lowering.part(constant, "quantized", values),
        lowering.numbers(constant, "scale", scale),
        graph.constant(zero, f"{constant.name}_zero_point")
        if zero.astype(np.float64).any()
        else None,
    )


def has_rows(encoding: Encoding) -> bool:
    """Whether rows of a table can be looked up as they are stored."""
    whole = isinstance(encoding, Affine) and not encoding.block and encoding.storage.bits >= 8
    return whole or isinstance(encoding, Cast)


def rows(graph: Graph, table: Value, ids: Value, lowering: Lowering) -> Value | None:
    """The rows ``ids`` of a table: gathered as they are stored, then converted to floats. None for a table
    whose encoding has no separate rows."""
    encoding = table.encoding
    if isinstance(encoding, Cast):
        short = _gathered(graph, lowering.part(table, "short", encoding.array), ids)
        return graph.emit("Cast", [short], {"to": TO_ONNX[encoding.dtype]})
    if encoding is None or not has_rows(encoding):
        return None
    assert isinstance(encoding, Affine)
    values = _gathered(graph, lowering.part(table, "quantized", encoding.values), ids)
    scale, zero = encoding.expanded(encoding.scale), encoding.expanded(encoding.zero_point)
    if encoding.axis != 0:  # They broadcast against rows.
        scale, zero = scale.reshape(scale.shape[1:]), zero.reshape(zero.shape[1:])
    row_scale = lowering.numbers(table, "row_scale", scale)
    row_zero = None if encoding.is_symmetric else lowering.part(table, "row_zero_point", zero)
    if encoding.axis == 0:
        row_scale = _gathered(graph, row_scale, ids)
        row_zero = None if row_zero is None else _gathered(graph, row_zero, ids)
    return dequantized(graph, values, row_scale, row_zero)


def _gathered(graph: Graph, table: Value, ids: Value) -> Value:
    return graph.emit("Gather", [table, ids], {"axis": 0})
