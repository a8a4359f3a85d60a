"""If, Loop and Scan, of open sizes and many turns, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from contract import run_in_onnx

from tersor.errors import Unsupported
from tersor.ir import DType, Graph, TensorType, symbol
from tersor.ops import TABLE

pytest.importorskip("tvm", reason="the tvm backend is not installed")

from tersor.backends import tvm as backend

Feeds = dict[str, np.ndarray]

ROWS = TensorType(DType.F32, (symbol("rows"), 3))
FLAG, INDEX = TensorType(DType.BOOL, ()), TensorType(DType.I64, ())
# More than INLINE_BYTES: it is a parameter of the functions that read it.
WEIGHT = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32) / 2
WIDE = np.linspace(-1, 1, 60, dtype=np.float32).reshape(20, 3)


def check(graph: Graph, *feeds: Feeds) -> None:
    """Builds once, runs each of ``feeds``."""
    session = backend.open_session(backend.build(graph))
    for given in feeds:
        want = run_in_onnx(graph, given, reference=False)
        for mine, theirs in zip(session.run(given).values(), want, strict=True):
            assert mine.dtype == theirs.dtype
            assert mine.shape == np.shape(theirs)
            # Sums of three products in another order.
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3)).astype(np.float32)


def choosing(nested: bool = False) -> Graph:
    """x W or x * x, by a flag; the second branch may choose once more."""
    graph = TABLE.graph()
    flag, other, x = (graph.add_input(n, t) for n, t in (("f", FLAG), ("g", FLAG), ("x", ROWS)))
    wide = graph.constant(WIDE, "wide")

    def branch(outer: Graph, name: str, way: str) -> Graph:
        inner = TABLE.graph(name, outer)
        if way == "if":
            made = inner.emit("If", [other], {
                "then_branch": branch(inner, "inner_yes", "weight"),
                "else_branch": branch(inner, "inner_no", "self"),
            })  # fmt: skip
        elif way == "weight":
            made = inner.emit("MatMul", [x, inner.emit("Slice", [
                wide, *(inner.constant(np.array([n])) for n in (0, 3, 0))])])  # fmt: skip
        elif way == "self":
            made = inner.emit("Mul", [x, x])
        else:
            made = x
        inner.set_outputs([made])
        return inner

    branches = {
        "then_branch": branch(graph, "yes", "outer"),
        "else_branch": branch(graph, "no", "if" if nested else "weight"),
    }
    y = graph.emit("If", [flag], branches)
    graph.set_outputs([graph.emit("Add", [y, x])], ["y"])
    return graph


@pytest.mark.parametrize("nested", [False, True])
def test_a_branch_is_chosen_in_the_run(nested: bool) -> None:
    flags = [(np.array(a), np.array(b)) for a in (True, False) for b in (True, False)]
    given = [{"f": f, "g": g, "x": rows(n)} for n in (1, 4) for f, g in flags]
    check(choosing(nested), *given)


def looping(limit: bool, condition: bool) -> Graph:
    """x <- tanh(x W) + turn, y <- y + 1, until a sum is reached, or a number of turns, or both."""
    graph = TABLE.graph()
    x = graph.add_input("x", ROWS)
    turns = graph.add_input("turns", INDEX) if limit else None
    bound = graph.add_input("bound", INDEX)
    weight = graph.constant(np.tile(WEIGHT, (1, 1)), "w")
    start = graph.constant(np.array(0), "start")
    body = TABLE.graph("body", graph)
    turn, going = body.add_input("turn", INDEX), body.add_input("going", FLAG)
    held, number = body.add_input("held", ROWS), body.add_input("number", INDEX)
    moved = body.emit("Tanh", [body.emit("MatMul", [held, weight])])
    moved = body.emit("Add", [moved, body.emit("Cast", [turn], {"to": 1})])
    following = body.emit("Add", [number, body.constant(np.array(1))])
    on = body.emit("Less", [following, bound]) if condition else body.emit("Identity", [going])
    body.set_outputs([on, moved, following])
    node = graph.emit_node("Loop", [turns, None, x, start], {"body": body}, names=["last", "count"])
    graph.set_outputs(node.outputs, ["last", "count"])
    return graph


@pytest.mark.parametrize(("limit", "condition"), [(True, False), (False, True), (True, True)])
def test_a_loop_makes_its_turns(limit: bool, condition: bool) -> None:
    given = []
    for turns, bound, count in [(1, 1, 1), (5, 9, 2), (9, 5, 2), (0, 1, 3), (3000, 2500, 1)]:
        feeds = {"x": rows(count), "bound": np.array(bound)}
        given.append(feeds | ({"turns": np.array(turns)} if limit else {}))
    check(looping(limit, condition), *given)


def scanning(**attrs: tuple[int, ...]) -> Graph:
    """Running sums of the rows of x, times what is captured."""
    graph = TABLE.graph()
    vector = TensorType(DType.F32, (3,))
    start, x = graph.add_input("start", vector), graph.add_input("x", ROWS)
    body = TABLE.graph("body", graph)
    held, row = body.add_input("held", vector), body.add_input("row", vector)
    total = body.emit("Add", [held, row])
    body.set_outputs([total, body.emit("Mul", [total, start])])
    node = graph.emit_node(
        "Scan", [start, x], {"body": body, "num_scan_inputs": 1, **attrs}, names=["last", "all"]
    )
    graph.set_outputs(node.outputs, ["last", "all"])
    return graph


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"scan_input_directions": (1,), "scan_output_directions": (1,)},
        {"scan_input_directions": (1,)},
        {"scan_output_axes": (1,)},
        {"scan_output_axes": (-1,), "scan_output_directions": (1,)},
    ],
    ids=str,
)
def test_a_scan_of_any_length(attrs: dict[str, tuple[int, ...]]) -> None:
    start = np.array([1, -2, 3], np.float32)
    check(scanning(**attrs), *({"start": start, "x": rows(n)} for n in (1, 2, 7, 300)))


def test_a_scan_of_columns_with_two_operands() -> None:
    graph = TABLE.graph()
    column = TensorType(DType.F32, (symbol("rows"),))
    steps = TensorType(DType.F32, (symbol("rows"), symbol("steps")))
    start, x, y = (graph.add_input(n, t) for n, t in (("s", column), ("x", steps), ("y", steps)))
    body = TABLE.graph("body", graph)
    held, left, right = (body.add_input(n, column) for n in ("held", "left", "right"))
    total = body.emit("Add", [held, body.emit("Mul", [left, right])])
    body.set_outputs([total, body.emit("Add", [total, total])])
    attrs = {"body": body, "num_scan_inputs": 2, "scan_input_axes": (1, -1)}
    node = graph.emit_node("Scan", [start, x, y], attrs, names=["last", "all"])
    graph.set_outputs(node.outputs, ["last", "all"])
    a, b = rows(4), rows(4) + 1
    check(graph, {"s": a[:, 0], "x": a, "y": b}, {"s": a[0], "x": a.T, "y": b.T})


def test_rows_that_a_loop_gathers_are_refused() -> None:
    graph = TABLE.graph()
    x = graph.add_input("x", ROWS)
    body = TABLE.graph("body", graph)
    body.add_input("turn", INDEX)
    going, held = body.add_input("going", FLAG), body.add_input("held", ROWS)
    body.set_outputs([body.emit("Identity", [going]), body.emit("Neg", [held]), held])
    limit = graph.constant(np.array(4))
    node = graph.emit_node("Loop", [limit, None, x], {"body": body}, names=["last", "all"])
    graph.set_outputs(node.outputs, ["last", "all"])
    with pytest.raises(Unsupported, match="known at run time only"):
        backend.build(graph)


def test_what_a_body_cannot_do_is_told_with_its_node() -> None:
    graph = TABLE.graph()
    flag, x = graph.add_input("f", FLAG), graph.add_input("x", ROWS)
    branches = {}
    for name, op in (("then_branch", "Neg"), ("else_branch", "Dropout")):
        inner = TABLE.graph(name, graph)
        operands = [x] if op == "Neg" else [x, None, flag]
        inner.set_outputs([inner.emit(op, operands)])
        branches[name] = inner
    graph.set_outputs([graph.emit("If", [flag], branches)], ["y"])
    with pytest.raises(Unsupported, match=r"\(If\): in its body, .* \(Dropout\): it is not known"):
        backend.build(graph)


@pytest.mark.parametrize("op", ["SequenceConstruct", "Optional"])
def test_what_is_no_tensor_is_refused(op: str) -> None:
    graph = TABLE.graph()
    held = graph.emit(op, [graph.add_input("x", ROWS)])
    if op == "SequenceConstruct":
        y, reason = graph.emit("SequenceAt", [held, graph.constant(np.array(0))]), "no sequences"
    else:
        y, reason = graph.emit("OptionalGetElement", [held]), "no optional values"
    graph.set_outputs([y], ["y"])
    with pytest.raises(Unsupported, match=rf"\({op}\): .* is no tensor; .*: TVM has {reason}$"):
        backend.build(graph)


def test_a_tensor_is_there() -> None:
    graph = TABLE.graph()
    x = graph.add_input("x", ROWS)
    outputs = [graph.emit("OptionalHasElement", [x]), graph.emit("OptionalGetElement", [x])]
    graph.set_outputs(outputs, ["has", "get"])
    check(graph, {"x": rows(2)})
