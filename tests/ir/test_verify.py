"""Each invariant that verify checks, broken once: the message names what is broken."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tersor.errors import InvalidGraph
from tersor.ir import Dense, DType, Graph, Node, TensorType, Use, Value, parse, verify
from tersor.ops import TABLE

TEXT = """
graph main(%x: f32[batch, 4], %flag: bool[]) -> (y = %r, z = %h) {
  @w: f32[4, 4] = dense normal(1)
  %h: f32[batch, 4] = MatMul(%x, @w) scope "encoder"
  %t: f32[batch, 4] = Tanh(%h)
  %r: f32[batch, 4] = If(%flag) {else_branch = graph else() -> (e = %t) {
  }, then_branch = graph then() -> (d = %n) {
    %n: f32[batch, 4] = Relu(%t)
  }}
}
"""


@pytest.fixture
def graph() -> Graph:
    graph = parse(TEXT, TABLE)
    verify(graph)
    return graph


def value(graph: Graph, name: str) -> Value:
    return next(v for g in graph.all_graphs() for v in g.values() if v.name == name)


def node(graph: Graph, op: str) -> Node:
    return next(n for n in graph.walk() if n.op == op)


def a_use_is_missing(g: Graph) -> None:
    value(g, "h").uses.pop(Use(node(g, "Tanh"), 0))


def a_use_is_missing_in_a_subgraph(g: Graph) -> None:
    value(g, "t").uses.pop(Use(node(g, "Relu"), 0))


def a_use_of_an_output_is_missing(g: Graph) -> None:
    value(g, "h").uses.pop(Use(g, 1))


def a_use_is_invented(g: Graph) -> None:
    value(g, "x").uses[Use(node(g, "Tanh"), 0)] = None


def a_use_by_an_erased_node(g: Graph) -> None:
    value(g, "x").uses[Use(Node("Old", {}, "", ""), 0)] = None


def a_read_before_the_definition(g: Graph) -> None:
    g.move_before(node(g, "Tanh"), node(g, "MatMul"))


def a_read_of_an_inner_value_from_outside(g: Graph) -> None:
    late = g.emit_node("Relu", [value(g, "n")])
    assert late.graph is g


def a_read_of_a_foreign_value(g: Graph) -> None:
    other = Graph("other")
    g.set_input(node(g, "Tanh"), 0, other.add_input("alien", TensorType(DType.F32, (4,))))


def an_output_that_is_not_defined(g: Graph) -> None:
    g.set_outputs([value(g, "n")], ["y"])


def a_node_of_another_graph(g: Graph) -> None:
    g.emit_node("Tanh", [value(g, "h")]).graph = Graph("other")


def a_result_of_another_producer(g: Graph) -> None:
    value(g, "t").producer = node(g, "MatMul")


def a_result_with_another_index(g: Graph) -> None:
    value(g, "t").index = 1


def a_subgraph_of_another_parent(g: Graph) -> None:
    node(g, "If").subgraphs[0].parent = node(g, "Tanh")


def two_values_of_one_name(g: Graph) -> None:
    value(g, "n").name = "h"


def two_outputs_of_one_name(g: Graph) -> None:
    g.output_names = ["y", "y"]


def fewer_output_names(g: Graph) -> None:
    g.output_names = ["y"]


def a_constant_of_another_type(g: Graph) -> None:
    value(g, "w").encoding = Dense(np.zeros((4, 5), np.float32))


def a_constant_under_another_name(g: Graph) -> None:
    g.constants["v"] = g.constants.pop("w")


def a_missing_default(g: Graph) -> None:
    softmax = g.emit_node("Softmax", [value(g, "h")])
    del softmax.attrs["axis"]


def an_unknown_attribute(g: Graph) -> None:
    node(g, "Tanh").attrs["alpha"] = 1.0


def a_contradicted_shape(g: Graph) -> None:
    value(g, "t").type = TensorType(DType.F32, (3, 5))


def a_contradicted_dtype(g: Graph) -> None:
    value(g, "t").type = TensorType(DType.F64, value(g, "t").tensor.dims)


def an_operand_that_the_op_refuses(g: Graph) -> None:
    g.set_input(node(g, "MatMul"), 1, g.constant(np.zeros((3, 4), np.float32), "v"))


BROKEN: list[tuple[Callable[[Graph], None], str]] = [
    (a_use_is_missing, r"Tanh %t> reads %h: .* which does not list it"),
    (a_use_is_missing_in_a_subgraph, r"Relu %n> reads %t: .* does not list it"),
    (a_use_of_an_output_is_missing, r"graph main.* reads %h: .* does not list it"),
    (a_use_is_invented, r"%x: .* lists a use by <Tanh %t> that does not read it"),
    (a_use_by_an_erased_node, r"%x: .* lists a use by <Old>"),
    (a_read_before_the_definition, r"Tanh %t reads %h: .* before it is defined: %t: .* = Tanh\(%h\)"),
    (a_read_of_an_inner_value_from_outside, r"Relu %relu reads %n: .* before it is defined"),
    (a_read_of_a_foreign_value, r"Tanh %t reads %alien"),
    (an_output_that_is_not_defined, r"graph main.* returns %n: .* not defined there"),
    (a_node_of_another_graph, r"<graph main: 2 inputs, 4 nodes>, but only 3 of them"),
    (a_result_of_another_producer, r"output 0 of Tanh %t names another producer"),
    (a_result_with_another_index, r"output 0 of Tanh %t names another producer"),
    (a_subgraph_of_another_parent, r"a subgraph of If %r has another parent"),
    (two_values_of_one_name, r"two values are called %h"),
    (two_outputs_of_one_name, r"output names \['y', 'y'\]"),
    (fewer_output_names, r"output names \['y'\]"),
    (a_constant_of_another_type, r"constant @w: f32\[4, 4\] does not agree with its encoding"),
    (a_constant_under_another_name, r"constant @w: .* does not agree"),
    (a_missing_default, r"Softmax %softmax lacks defaults"),
    (an_unknown_attribute, r"Tanh has no attribute 'alpha'"),
    (a_contradicted_shape, r"%t: f32\[3, 5\] is inferred as f32\[batch, 4\]"),
    (a_contradicted_dtype, r"%t: f64\[batch, 4\] is inferred as f32\[batch, 4\]"),
    (an_operand_that_the_op_refuses, r"MatMul %h \(encoder\)"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=[b.__name__ for b, _ in BROKEN])
def test_a_broken_rule_is_named(
    graph: Graph, damage: Callable[[Graph], None], message: str
) -> None:
    damage(graph)
    with pytest.raises(InvalidGraph, match=message) as caught:
        verify(graph)
    assert (
        str(caught.value).count("\n") <= 5
    )  # One line, with the lines of a node that has subgraphs.


def test_types_are_left_out_on_request(graph: Graph) -> None:
    a_contradicted_shape(graph)
    verify(graph, types=False)


def test_symbols_are_names_and_no_proofs(graph: Graph) -> None:
    """Two different symbols may be equal at run time, and nothing is wrong with that."""
    text = TEXT.replace("%t: f32[batch, 4] = Tanh", "%t: f32[other, 4] = Tanh")
    verify(parse(text, TABLE))
