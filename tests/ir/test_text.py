"""Print then parse gives the same graph."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from same import assert_same
from strategies import Case, table_cases

from tersor.errors import InvalidGraph
from tersor.ir import (
    Affine,
    Dense,
    DType,
    Graph,
    SequenceType,
    TensorType,
    UnknownType,
    parse,
    print_graph,
    symbol,
    verify,
    weights_of,
)
from tersor.ops import TABLE

SLOW_DRAWS = [HealthCheck.too_slow, HealthCheck.data_too_large]
F32 = TensorType(DType.F32, (2,))


@settings(max_examples=150, deadline=None, suppress_health_check=SLOW_DRAWS)
@given(table_cases())
def test_a_printed_graph_round_trips(case: Case) -> None:
    text = print_graph(case.graph)
    again = parse(text, TABLE, weights_of(case.graph))
    verify(again)
    assert print_graph(again) == text
    assert_same(case.graph, again)


@given(st.lists(st.text(max_size=8), min_size=5, max_size=5, unique=True), st.text(max_size=6))
def test_any_name_round_trips(names: list[str], scope: str) -> None:
    graph = Graph(names[0])
    x = graph.add_input(names[1], F32)
    c = graph.constant(np.ones(20, np.float32), names[2])
    node = graph.emit_node(
        "custom.Op", [x, None, c], {"text": scope, "raw": b"\x00\xff"}, names=[names[3]], types=[F32], scope=scope, node_name=scope,
    )  # fmt: skip
    graph.set_outputs([node.output, x], [names[4], names[3]])
    again = parse(print_graph(graph), weights=weights_of(graph))
    assert_same(graph, again)


@pytest.mark.parametrize(
    "name",
    [
        "1",
        "12ab",
        "/encoder/Add_0",
        "//x",
        "inf",
        "nan-x",
        "-1",
        ".5",
        "a b",
        "%x",
        "graph",
        "1.5",
        "->",
        "",
    ],
)
def test_names_that_look_like_other_tokens_round_trip(name: str) -> None:
    graph = Graph(name or "main")
    x = graph.add_input(name, F32)
    y = graph.emit_node(f"op{name}", [x], {f"k{name}": 1}, types=[F32]).output
    graph.set_outputs([y, x], [name, f"{name}x"])
    again = parse(print_graph(graph), weights=weights_of(graph))
    assert_same(graph, again)


@pytest.mark.parametrize(
    "dtype", [d for d in DType if d is not DType.STRING], ids=lambda d: d.value
)
def test_small_constants_of_every_dtype_round_trip_bit_by_bit(dtype: DType) -> None:
    array = np.array([0, 1, 1, 0]).astype(dtype.numpy)
    check_constant(array)
    if dtype.is_integer:
        info = ml_dtypes.iinfo(dtype.numpy)
        check_constant(np.array([int(info.min), int(info.max)], object).astype(dtype.numpy))
    if dtype.is_float:
        check_constant(np.array([0.1, -0.0, np.inf, -1e-30, np.nan]).astype(dtype.numpy))


def check_constant(array: np.ndarray) -> None:
    graph = Graph()
    graph.constant(array, "c")
    again = parse(print_graph(graph), weights=weights_of(graph)).constants["c"].numpy()
    assert again.dtype == array.dtype
    assert again.tobytes() == array.tobytes()


def test_strings_and_encoded_constants_are_looked_up_by_digest() -> None:
    graph = Graph()
    graph.constant(np.array(["a", "b"], object), "words")
    affine = Affine(np.ones((5, 2), np.int8), np.ones(2, np.float32), np.zeros(2, np.int8), axis=1)
    graph.constant(affine, "w")
    text = print_graph(graph)
    assert f"@w: f32[5, 2] = affine(i8, axis=1) #{affine.digest}" in text
    again = parse(text, weights=weights_of(graph))
    assert again.constants["w"].encoding is affine
    assert again.constants["words"].numpy().tolist() == ["a", "b"]
    with pytest.raises(InvalidGraph, match="no weight with digest"):
        parse(text)


def test_attributes_of_every_kind_round_trip() -> None:
    attrs = {
        "a": 1, "b": -1.5, "c": "x\n\"y\"", "d": b"\x01", "e": (1, 2), "f": (1.0, 1e-30, float("inf")), "g": ("a", ""),
        "h": (), "i": SequenceType(F32), "j": UnknownType(), "k": 1e16,
    }  # fmt: skip
    graph = Graph()
    graph.emit_node("custom.Op", [], {**attrs, "t": Dense(np.arange(3))}, types=[F32])
    node = next(parse(print_graph(graph), weights=weights_of(graph)).nodes)
    encoded = node.attrs.pop("t")
    assert isinstance(encoded, Dense)
    assert encoded.decode().tolist() == [0, 1, 2]
    assert node.attrs == attrs
    assert {k: type(v) for k, v in node.attrs.items()} == {k: type(v) for k, v in attrs.items()}


def test_a_node_without_outputs_and_lists_of_graphs_round_trip() -> None:
    graph = Graph()
    x = graph.add_input("x", F32)
    bodies = []
    for i in range(2):
        body = Graph(f"body{i}", None, graph)
        body.set_outputs([x], [f"out{i}"])
        bodies.append(body)
    graph.emit_node("custom.Switch", [x], {"bodies": tuple(bodies)}, names=[], types=[])
    text = print_graph(graph)
    again = parse(text)
    assert print_graph(again) == text
    assert [g.parent for g in next(again.nodes).subgraphs] == [next(again.nodes)] * 2
    verify(again)


def test_hand_written_text_may_have_comments_and_generated_constants() -> None:
    graph = parse(
        """
        graph main(%x: f32[batch, 4]) -> (y = %y) {  // a comment
          @w: f32[4, 3] = dense normal(7)
          @i: i64[2, 5] = dense arange
          %y: f32[batch, 3] = MatMul(%x, @w)
        }
        """,
        TABLE,
    )
    expected = np.random.default_rng(7).standard_normal((4, 3)).astype(np.float32)
    np.testing.assert_array_equal(graph.constants["w"].numpy(), expected)
    assert graph.constants["i"].numpy().tolist() == np.arange(10).reshape(2, 5).tolist()
    assert graph.inputs[0].type == TensorType(DType.F32, (symbol("batch"), 4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("graph main(%x: f32[2]) -> (y = %z) {\n}", "%z is not defined"),
        ("graph main(%x: f32[2]) -> () {\n  %y: f32[2] = Relu(%q)\n}", "line 2: %q is not defined"),
        ("graph main(%x: f32[2], %x: f32[2]) -> () {\n}", "line 1: %x is defined twice"),
        ("graph main(%x: f32[2]) -> () {\n  %x: f32[2] = Relu(%x)\n}", "line 2: %x is defined twice"),
        ("graph main(%x: g32[2]) -> () {\n}", "unknown element type 'g32'"),
        ("graph main(%x: f32[2 3]) -> () {\n}", "not a dimension: '2 3'"),
        ("graph main() -> () {\n  %y: f32[2] = Relu(\n", "expected a value"),
        ("graph main() -> () {\n} }", "unexpected '}' after the graph"),
        ("graph main() -> () {\n  @c: f32[2] = affine [1.0, 2.0]\n}", "line 2: expected '('"),
        ("graph main() -> () {\n  $\n}", "line 2: cannot read"),
    ],
)  # fmt: skip
def test_a_syntax_error_names_its_line(text: str, message: str) -> None:
    with pytest.raises(InvalidGraph, match=message.replace("(", r"\(")):
        parse(text)


def test_the_table_checks_attributes() -> None:
    with pytest.raises(InvalidGraph, match="activaton"):
        parse(
            'graph m(%x: f32[2, 2]) -> () {\n @w: f32[2, 2] = dense normal(0)\n %y: f32[2, 2] = tersor.Linear(%x, @w) {activaton = "relu"}\n}',
            TABLE,
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("graph main", "line 1: unexpected end of text, expected '('"),
        ("graph main() -> () {\n  @x: bool[2] = dense [true",
         "line 2: unexpected end of text"),
        ("graph main() -> () {\n  @x: i64[2] = dense [2, 3) }",
         "line 2: invalid literal for int() with base 10: ')'"),
        ("graph main() -> () {\n  @x: i64[2] = dense [2, 3, 4]\n}",
         "line 2: cannot reshape array of size 3 into shape (2,)"),
        ("graph main() -> () {\n  @x: f32[9999999, 9999999] = dense normal(0)\n}",
         "line 2: f32[9999999, 9999999] is too large for numbers in the text"),
        ("graph main() -> () {\n  @x: i64[n] = dense [2]\n}", "line 2: i64[n] is not static"),
    ],
)  # fmt: skip
def test_malformed_text_is_rejected_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InvalidGraph) as error:
        parse(text, TABLE)
    assert str(error.value) == message


def test_text_nested_too_deeply_is_rejected() -> None:
    with pytest.raises(InvalidGraph, match="nested too deeply"):
        parse("graph main() -> () { %x: f32[] = a.B() {k = " + "[" * 5000, TABLE)
