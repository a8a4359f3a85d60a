"""Sequences and optionals, whose rows have no samples: operands are tensors, built and read in a graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import pytest

from tersor.frontends.onnx.exporter import export_model
from tersor.ir import DType, Graph, TensorType, Value, verify
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = A * 10

Build = Callable[[Graph, Value, Value], Value]


def i(graph: Graph, number: int) -> Value:
    return graph.constant(np.array(number))


def _construct(g: Graph, a: Value, b: Value) -> Value:
    return g.emit("SequenceConstruct", [a, b, a])


def at(g: Graph, a: Value, b: Value) -> Value:
    return g.emit("SequenceAt", [_construct(g, a, b), i(g, -2)])


def length(g: Graph, a: Value, b: Value) -> Value:
    return g.emit("SequenceLength", [_construct(g, a, b)])


def empty_then_inserted(g: Graph, a: Value, b: Value) -> Value:
    held = g.emit("SequenceInsert", [g.emit("SequenceEmpty", []), a])
    held = g.emit("SequenceInsert", [held, b, i(g, 0)])
    return g.emit("SequenceAt", [held, i(g, 0)])


def erased(g: Graph, a: Value, b: Value) -> Value:
    held = g.emit("SequenceErase", [_construct(g, a, b), i(g, 0)])
    return g.emit("SequenceAt", [g.emit("SequenceErase", [held]), i(g, 0)])


def joined(g: Graph, a: Value, b: Value) -> Value:
    return g.emit("ConcatFromSequence", [_construct(g, a, b)], {"axis": -1})


def stacked(g: Graph, a: Value, b: Value) -> Value:
    return g.emit("ConcatFromSequence", [_construct(g, a, b)], {"axis": 1, "new_axis": 1})


def split_in_parts(g: Graph, a: Value, b: Value) -> Value:
    parts = g.emit("SplitToSequence", [b, i(g, 2)], {"axis": 1})
    return g.emit("SequenceAt", [parts, i(g, 1)])


def split_by_sizes(g: Graph, a: Value, b: Value) -> Value:
    parts = g.emit("SplitToSequence", [b, g.constant(np.array([1, 2]))], {"axis": 1})
    return g.emit("SequenceAt", [parts, i(g, 1)])


def split_without_the_axis(g: Graph, a: Value, b: Value) -> Value:
    parts = g.emit("SplitToSequence", [b], {"axis": 0, "keepdims": 0})
    return g.emit("SequenceAt", [parts, i(g, 1)])


def optional_element(g: Graph, a: Value, b: Value) -> Value:
    return g.emit("OptionalGetElement", [g.emit("Optional", [a])])


def optional_has_one(g: Graph, a: Value, b: Value) -> Value:
    return g.emit("OptionalHasElement", [g.emit("Optional", [a])])


BUILDERS: list[Build] = [
    at, length, empty_then_inserted, erased, joined, stacked, split_in_parts, split_by_sizes,
    split_without_the_axis, optional_element, optional_has_one,
]  # fmt: skip


@pytest.mark.parametrize("build", BUILDERS, ids=lambda f: f.__name__)
def test_evaluation_and_types_agree_with_the_runtime(build: Build) -> None:
    graph = TABLE.graph()
    a, b = (graph.add_input(n, TensorType(DType.F32, (2, 3))) for n in "ab")
    graph.set_outputs([build(graph, a, b)], ["y"])
    verify(graph)
    inputs = {"a": A, "b": B}
    got = evaluate(graph, inputs)["y"]
    session = ort.InferenceSession(export_model(graph).SerializeToString())
    (want,) = session.run(None, {v.name: inputs[v.name] for v in graph.inputs})
    assert got.dtype == np.asarray(want).dtype
    np.testing.assert_array_equal(got, want)
    known = graph.outputs[0].tensor
    assert known.dtype is DType.of(got)
    assert known.dims is None or all(
        d is None or d == n for d, n in zip(known.dims, got.shape, strict=True)
    )


def test_every_sequence_row_is_exercised() -> None:
    used: set[str] = set()
    for build in BUILDERS:
        graph = TABLE.graph()
        a, b = (graph.add_input(n, TensorType(DType.F32, (2, 3))) for n in "ab")
        build(graph, a, b)
        used |= {node.op for node in graph.nodes}
    rows = {row.op for row in TABLE if "Sequence" in row.op or row.op.startswith("Optional")}
    assert rows - {"ReverseSequence"} <= used
