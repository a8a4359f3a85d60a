"""Graphs of one node from rows' samples, for the contract tests of the table and of backends."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tersor.ir import Dim, DType, Graph, TensorType, Value
from tersor.ops import TABLE
from tersor.ops.opdef import OpDef, Sample

Dims = Callable[[int, tuple[int, ...]], tuple[Dim, ...]]
"""(operand index, shape) -> the dims of the graph input."""


@dataclass(frozen=True)
class Case:
    """A sample of a row; ``name`` is the op and the sample's number."""

    name: str
    row: OpDef
    sample: Sample


def cases() -> list[Case]:
    """Every sample of every row, seeded by the op's name."""
    return [
        Case(f"{row.op}-{i}", row, sample)
        for row in TABLE
        if row.samples is not None
        for i, sample in enumerate(row.samples(np.random.default_rng(zlib.crc32(row.op.encode()))))
    ]


def one_node(op: str, sample: Sample, dims: Dims = lambda _, shape: shape) -> Graph:
    """A graph of one node with operands ``x0``, ``x1`` … and results ``y0``, ``y1`` …

    Raises:
        InvalidGraph: the op does not accept the operands.
    """
    graph = TABLE.graph()
    outputs = put(graph, op, sample, dims)
    graph.set_outputs(outputs, [v.name for v in outputs])
    return graph


def put(graph: Graph, op: str, sample: Sample, dims: Dims, prefix: str = "") -> tuple[Value, ...]:
    """Adds the node of :func:`one_node` to a graph and returns the results; names begin with ``prefix``.

    Raises:
        InvalidGraph: the op does not accept the operands.
    """
    operands: list[Value | None] = []
    for i, array in enumerate(sample.inputs):
        if array is None:
            operands.append(None)
        elif i in sample.constant:
            operands.append(graph.constant(array, f"{prefix}x{i}"))
        else:
            type = TensorType(DType.of(array), dims(i, array.shape))
            operands.append(graph.add_input(f"{prefix}x{i}", type))
    names = [f"{prefix}y{i}" for i in range(sample.outputs)]
    return graph.emit_node(op, operands, sample.attrs, names=names).outputs


def feeds(sample: Sample) -> dict[str, np.ndarray]:
    """The sample's numbers for the inputs of :func:`one_node`."""
    return {
        f"x{i}": array
        for i, array in enumerate(sample.inputs)
        if array is not None and i not in sample.constant
    }
