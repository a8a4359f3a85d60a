"""If, Loop and Scan, whose samples would need bodies: graphs that read outer values, against ONNX
Runtime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import pytest

from tersor.errors import InvalidGraph
from tersor.frontends.onnx.exporter import export_model
from tersor.ir import (
    DType,
    Graph,
    TensorType,
    Value,
    parse,
    print_graph,
    symbol,
    verify,
    weights_of,
)
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate

ROW = TensorType(DType.F32, (3,))
ROWS = TensorType(DType.F32, (symbol("steps"), 3))
INDEX, FLAG = TensorType(DType.I64, ()), TensorType(DType.BOOL, ())
X = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
START = np.array([1, -2, 3], np.float32)


def branch(outer: Graph, name: str, op: str, *captured: Value) -> Graph:
    graph = TABLE.graph(name, outer)
    graph.set_outputs([graph.emit(op, list(captured))])
    return graph


def choosing() -> Graph:
    graph = TABLE.graph()
    condition, a, b = (graph.add_input(n, t) for n, t in (("c", FLAG), ("a", ROW), ("b", ROW)))
    branches = {
        "then_branch": branch(graph, "yes", "Add", a, b),
        "else_branch": branch(graph, "no", "Mul", a, b),
    }
    graph.set_outputs([graph.emit("If", [condition], branches)], ["y"])
    return graph


def looping(limit: int | None, bound: float) -> Graph:
    """Doubles ``start`` plus what it captures until an element passes ``bound``; returns all turns."""
    graph = TABLE.graph()
    start, more = graph.add_input("start", ROW), graph.add_input("more", ROW)
    body = TABLE.graph("body", graph)
    turn, going = body.add_input("turn", INDEX), body.add_input("going", FLAG)
    held = body.add_input("held", ROW)
    doubled = body.emit("Add", [body.emit("Add", [held, held]), more])
    most = body.emit("ReduceMax", [doubled], {"keepdims": 0})
    on = body.emit("Less", [most, body.constant(np.array(bound, np.float32))])
    on = body.emit("And", [on, going])
    marked = body.emit("Add", [doubled, body.emit("Cast", [turn], {"to": 1})])
    body.set_outputs([on, doubled, marked])
    times = None if limit is None else graph.constant(np.array(limit))
    node = graph.emit_node("Loop", [times, None, start], {"body": body}, names=["last", "all"])
    graph.set_outputs(node.outputs, ["last", "all"])
    return graph


def scanning(**attrs: tuple[int, ...]) -> Graph:
    """Running sums of the rows of x, times what it captures."""
    graph = TABLE.graph()
    start, x = graph.add_input("start", ROW), graph.add_input("x", ROWS)
    body = TABLE.graph("body", graph)
    held, row = body.add_input("held", ROW), body.add_input("row", ROW)
    total = body.emit("Add", [held, row])
    body.set_outputs([total, body.emit("Mul", [total, start])])
    node = graph.emit_node(
        "Scan", [start, x], {"body": body, "num_scan_inputs": 1, **attrs}, names=["last", "all"]
    )
    graph.set_outputs(node.outputs, ["last", "all"])
    return graph


CASES: dict[str, tuple[Callable[[], Graph], dict[str, np.ndarray]]] = {
    "if-true": (choosing, {"c": np.array(True), "a": START, "b": START}),
    "if-false": (choosing, {"c": np.array(False), "a": START, "b": START}),
    "loop-times": (lambda: looping(3, 1e9), {"start": START, "more": START}),
    "loop-while": (lambda: looping(None, 50), {"start": START, "more": START}),
    "loop-first-of-both": (lambda: looping(100, 50), {"start": START, "more": START}),
    "loop-never": (lambda: looping(0, 50), {"start": START, "more": START}),
    "scan": (scanning, {"start": START, "x": X}),
    "scan-backwards": (
        lambda: scanning(scan_input_directions=(1,), scan_output_directions=(1,)),
        {"start": START, "x": X},
    ),
    "scan-along-columns": (
        lambda: scanning(scan_input_axes=(0,), scan_output_axes=(1,)),
        {"start": START, "x": X},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_evaluation_and_types_agree_with_the_runtime(name: str) -> None:
    build, inputs = CASES[name]
    graph = build()
    verify(graph)
    got = evaluate(graph, inputs)
    session = ort.InferenceSession(export_model(graph).SerializeToString())
    want = session.run(None, inputs)
    for mine, theirs, value in zip(got.values(), want, graph.outputs, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)  # sums in the same order
        assert mine.shape == np.shape(theirs)
        known = value.tensor
        assert known.dtype is DType.F32
        assert known.dims is not None and len(known.dims) == mine.ndim
        assert all(
            n == d for d, n in zip(known.dims, mine.shape, strict=True) if isinstance(d, int)
        )


@pytest.mark.parametrize("name", CASES)
def test_graphs_with_bodies_print_and_parse_back_the_same(name: str) -> None:
    graph = CASES[name][0]()
    text = print_graph(graph)
    assert print_graph(parse(text, TABLE, weights_of(graph))) == text


def test_types_follow_from_the_bodies() -> None:
    assert [str(v.type) for v in choosing().outputs] == ["f32[3]"]
    assert [str(v.type) for v in looping(3, 50).outputs] == ["f32[3]", "f32[?, 3]"]
    assert [str(v.type) for v in scanning().outputs] == ["f32[3]", "f32[steps, 3]"]
    turned = scanning(scan_output_axes=(-1,))
    assert [str(v.type) for v in turned.outputs] == ["f32[3]", "f32[3, steps]"]


def test_a_branch_that_returns_too_much_is_refused() -> None:
    graph = TABLE.graph()
    c, a = graph.add_input("c", FLAG), graph.add_input("a", ROW)
    yes, no = branch(graph, "yes", "Neg", a), branch(graph, "no", "Abs", a)
    no.set_outputs([*no.outputs, a])
    with pytest.raises(InvalidGraph, match=r"branches return \[1, 2\] values for 1 results"):
        graph.emit("If", [c], {"then_branch": yes, "else_branch": no})
