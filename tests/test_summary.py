"""Summaries of graphs: what is counted, and what is said to be unknown."""

from __future__ import annotations

import numpy as np

import tersor
from tersor.analysis.summary import MAX_SCOPE_DEPTH, Scope, Weight, summarize
from tersor.ir import Affine, DType, Graph, TensorType, symbol
from tersor.ops import TABLE


def linear() -> Graph:
    graph = TABLE.graph()
    x = graph.add_input("x", TensorType(DType.F32, (symbol("batch"), 4)))
    w = graph.constant(np.ones((4, 6), np.float32), "w")
    b = graph.constant(np.ones(6, np.float32), "b")
    y = graph.emit("tersor.Linear", [x, w, b], scope="encoder.layer.0")
    z = graph.emit("Relu", [y], scope="encoder.layer.1")
    graph.set_outputs([z], ["z"])
    return graph


def test_counts_of_a_linear_layer() -> None:
    summary = summarize(linear())
    assert summary.inputs == [("x", "f32[batch, 4]")]
    assert summary.outputs == [("z", "f32[batch, 6]")]
    assert summary.ops == {"Relu": 1, "tersor.Linear": 1}
    assert summary.nodes == 2
    assert summary.parameters == 24 + 6
    assert summary.weight_bytes == 4 * 30
    assert summary.macs == symbol("batch") * 24
    assert summary.unknown_macs == {}
    assert summary.largest == [Weight("w", (4, 6), "f32", 96), Weight("b", (6,), "f32", 24)]


def test_modules_hold_what_lies_below_them() -> None:
    assert summarize(linear()).scopes == [
        Scope("encoder", 30, 120),
        Scope("encoder.layer", 30, 120),
        Scope("encoder.layer.0", 30, 120),
        Scope("encoder.layer.1", 0, 0),
    ]


def test_a_weight_with_two_readers_counts_once() -> None:
    graph = linear()
    x, w = graph.inputs[0], graph.constants["w"]
    graph.set_outputs([graph.emit("MatMul", [x, w], scope="head")], ["z"])
    summary = summarize(graph)
    assert summary.parameters == 30
    scopes = {s.path: s.parameters for s in summary.scopes}
    assert scopes["encoder"] == 30 and scopes["head"] == 0


def test_encoded_weights_count_their_encoded_bytes() -> None:
    graph = linear()
    scale, zero = np.ones(6, np.float32), np.zeros(6, np.int8)
    graph.set_encoding(graph.constants["w"], Affine(np.ones((4, 6), np.int8), scale, zero, axis=1))
    summary = summarize(graph)
    assert summary.parameters == 30
    assert summary.weight_bytes == 24 + 24 + 24  # integers, scales, bias
    assert summary.largest[0] == Weight("w", (4, 6), "affine(i8, axis=1)", 48)


def test_shapes_and_indices_are_no_parameters() -> None:
    graph = linear()
    shape = graph.constant(np.array([3, -1]), "shape")
    graph.set_outputs([graph.emit("Reshape", [graph.outputs[0], shape])], ["z"])
    assert summarize(graph).parameters == 30


def test_an_opaque_op_is_unknown_and_not_zero() -> None:
    graph = linear()
    kind = TensorType(DType.F32, (6,))
    node = graph.emit_node("example.Twist", [graph.outputs[0]], types=[kind])
    graph.set_outputs(node.outputs, ["z"])
    summary = summarize(graph)
    assert summary.unknown_macs == {"example.Twist": 1}
    assert summary.macs == symbol("batch") * 24


def test_work_on_what_an_opaque_op_makes_is_unknown() -> None:
    graph = linear()
    node = graph.emit_node("example.Twist", [graph.outputs[0]])
    scale = graph.constant(np.ones(6, np.float32), "scale")
    y = graph.emit("LayerNormalization", [node.output, scale])
    graph.set_outputs([graph.emit("Identity", [y])], ["z"])
    # Identity does nothing whatever it is given.
    assert summarize(graph).unknown_macs == {"LayerNormalization": 1, "example.Twist": 1}


def test_the_work_of_a_loop_is_unknown() -> None:
    summary = summarize(loop())
    assert summary.ops == {"Loop": 1, "MatMul": 1}
    assert summary.unknown_macs.get("MatMul") == 1
    assert summary.macs == 0


def loop() -> Graph:
    graph = TABLE.graph()
    square = TensorType(DType.F32, (4, 4))
    x = graph.add_input("x", square)
    n = graph.add_input("n", TensorType(DType.I64, ()))
    go = graph.add_input("go", TensorType(DType.BOOL, ()))
    body = TABLE.graph("body", graph)
    body.add_input("i", TensorType(DType.I64, ()))
    c = body.add_input("c", TensorType(DType.BOOL, ()))
    s = body.add_input("s", square)
    body.set_outputs([c, body.emit("MatMul", [s, x])])
    graph.set_outputs([graph.emit("Loop", [n, go, x], {"body": body})], ["y"])
    return graph


def test_deep_modules_count_in_the_deepest_that_is_listed() -> None:
    graph = linear()
    node = next(graph.nodes)
    node.scope = ".".join(["a"] * 10_000)
    paths = [s.path for s in summarize(graph).scopes]
    assert max(p.count(".") for p in paths) == MAX_SCOPE_DEPTH - 1
    assert len(paths) == MAX_SCOPE_DEPTH + 3  # and those of the other node


def test_inspect_takes_what_compile_takes() -> None:
    assert tersor.inspect(linear()) == summarize(linear())
