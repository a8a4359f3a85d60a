"""Parts of a graph: IR text in, IR text out; and what is no part is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from strategies import Case, table_cases

from tersor.backends.ort.session import Evaluator
from tersor.errors import InvalidOption
from tersor.ir import Graph, extract, parse, print_graph, verify
from tersor.ops import TABLE

STAGES = """graph main(%x: f32[n, 2], %go: bool[], %unread: f32[1]) -> (out = %y, again = %y) {
  @w: f32[2] = dense [1.0, 2.0]
  @v: f32[2] = dense [3.0, 4.0]
  %a: f32[n, 2] = Mul(%x, @w)
  %halves: f32[n, 1], %rest: f32[n, 1] = Split(%a) {axis = 1, num_outputs = 2}
  %b: f32[n, 2] = If(%go) {else_branch = graph no() -> (o = %o1) {
    %o1: f32[n, 2] = Neg(%a)
  }, then_branch = graph yes() -> (o = %o2) {
    @u: f32[1] = dense [5.0]
    %o2: f32[n, 2] = Mul(%a, @u)
  }} scope "branch"
  %y: f32[n, 2] = Add(%b, @v)
}
"""


@pytest.fixture
def graph() -> Graph:
    return parse(STAGES, TABLE)


def lines(graph: Graph) -> list[str]:
    verify(graph)
    assert print_graph(parse(print_graph(graph), TABLE)) == print_graph(graph)
    return [line.strip() for line in print_graph(graph).splitlines()]


def test_what_is_not_reached_is_left_out(graph: Graph) -> None:
    part = extract(graph, None, ["rest", "a"])
    assert lines(part) == [
        "graph main(%x: f32[n, 2], %go: bool[], %unread: f32[1]) -> (rest = %rest, a = %a) {",
        "@w: f32[2] = dense [1.0, 2.0]",
        "%a: f32[n, 2] = Mul(%x, @w)",
        "%halves: f32[n, 1], %rest: f32[n, 1] = Split(%a) {axis = 1, num_outputs = 2}",
        "}",
    ]
    assert print_graph(graph) == print_graph(parse(STAGES, TABLE))


def test_inner_values_are_inputs_and_what_subgraphs_read_counts(graph: Graph) -> None:
    part = extract(graph, ["a", "go"], ["y"])
    assert lines(part)[0] == "graph main(%a: f32[n, 2], %go: bool[]) -> (y = %y) {"
    assert [node.op for node in part.nodes] == ["If", "Add"]
    assert list(part.constants) == ["v"]
    with pytest.raises(
        InvalidOption, match=r"%x is needed for Mul %a, but is not among the inputs"
    ):
        extract(graph, ["go"], ["y"])
    with pytest.raises(InvalidOption, match=r"%go is needed for If %b \(branch\)"):
        extract(graph, ["x"], ["y"])


def test_an_input_in_place_of_one_of_several_results(graph: Graph) -> None:
    part = extract(graph, ["x", "halves"], ["halves", "rest"])
    split = next(n for n in part.nodes if n.op == "Split")
    assert [v.name for v in split.outputs] == ["halves_1", "rest"]
    assert part.outputs[0] is part.inputs[1] and part.outputs[0].name == "halves"
    verify(part)


def test_constants_may_be_inputs_and_inputs_outputs(graph: Graph) -> None:
    part = extract(graph, ["v", "b", "x"], ["y", "x", "y"])
    assert (
        lines(part)[0]
        == "graph main(%v: f32[2], %b: f32[n, 2], %x: f32[n, 2]) -> (y = %y, x = %x) {"
    )
    assert not part.constants and not part.inputs[0].is_constant


def test_encodings_are_shared_and_what_the_graph_says_of_itself_is_kept(graph: Graph) -> None:
    graph.metadata, graph.domains = {"a": "b"}, {"d": 3}
    part = extract(graph, None, [graph.outputs[0]])
    assert part.constants["v"].encoding is graph.constants["v"].encoding
    assert (part.metadata, part.domains) == ({"a": "b"}, {"d": 3})


def test_what_is_no_part_is_refused(graph: Graph) -> None:
    with pytest.raises(
        InvalidOption, match=r"graph main has no value %haves, did you mean 'halves'"
    ):
        extract(graph, None, ["haves"])
    with pytest.raises(
        InvalidOption, match=r"%o1 is inside If %b \(branch\), and exists only while"
    ):
        extract(graph, None, ["o1"])
    branch = next(n for n in graph.nodes if n.op == "If").subgraphs[0]
    with pytest.raises(InvalidOption, match=r"If %b \(branch\) runs <graph no"):
        extract(branch, None, branch.outputs)
    with pytest.raises(InvalidOption, match="%y belongs to another graph than main"):
        extract(graph, None, [graph.copy().outputs[0]])


def test_stages_in_a_row_compute_what_the_whole_does(graph: Graph) -> None:
    feed = {"x": np.arange(6, dtype=np.float32).reshape(3, 2), "go": np.array(True)}
    run = Evaluator()
    whole = run(graph, {**feed, "unread": np.ones(1, np.float32)})["out"]
    first = run(extract(graph, ["x"], ["a"]), {"x": feed["x"]})
    second = run(extract(graph, ["a", "go"], ["b"]), {**first, "go": feed["go"]})
    np.testing.assert_array_equal(run(extract(graph, ["b"], ["y"]), second)["y"], whole)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(case=table_cases())
def test_the_part_of_all_outputs_is_the_graph_without_what_is_dead(case: Case) -> None:
    part = extract(case.graph, None, case.graph.outputs)
    verify(part)
    again = extract(part, None, part.outputs)
    assert print_graph(again) == print_graph(part)
    cleaned = case.graph.copy()
    cleaned.set_outputs(list(dict.fromkeys(cleaned.outputs)))
    for node in reversed(list(cleaned.nodes)):
        if not any(value.uses for value in node.outputs):
            cleaned.erase(node)
    for constant in [c for c in cleaned.constants.values() if not c.uses]:
        cleaned.erase_constant(constant)
    assert print_graph(part) == print_graph(cleaned)
