"""The graph as the only mutator: def-use stays exact, order consistent, long chains work."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import InvalidGraph
from tersor.ir import (
    DType,
    Graph,
    Node,
    TensorType,
    Use,
    Value,
    parse,
    print_graph,
    symbol,
    verify,
)
from tersor.ops import TABLE
from tersor.ops.contents import contents_of
from tersor.ops.evaluate import evaluate
from tersor.passes.canonicalize import canonicalization
from tersor.passes.fuse import fusion
from tersor.pipeline import Pipeline, erase_dead

F32 = TensorType(DType.F32, (2,))


def recounted(graph: Graph) -> Counter[tuple[int, int, int]]:
    """(reader, operand, value) of every read."""
    reads: Counter[tuple[int, int, int]] = Counter()
    for g in graph.all_graphs():
        for i, value in enumerate(g.outputs):
            reads[id(g), i, id(value)] += 1
        for node in g.nodes:
            for i, operand in enumerate(node.inputs):
                if operand is not None:
                    reads[id(node), i, id(operand)] += 1
    return reads


def listed(values: list[Value]) -> Counter[tuple[int, int, int]]:
    return Counter((id(u.user), u.operand, id(v)) for v in values for u in v.uses)


def every_value(graph: Graph) -> list[Value]:
    return [v for g in graph.all_graphs() for v in g.values()]


OPERATIONS = st.tuples(
    st.sampled_from(["emit", "before", "subgraph", "constant", "replace", "erase", "erase_dead", "set_input", "drop_input", "outputs", "move"]),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(OPERATIONS, max_size=40))
def test_def_use_is_exact_after_any_mutation(operations: list[tuple[str, int, int, int]]) -> None:
    graph = Graph("main")
    graph.add_input("x", F32)
    graph.constant(np.ones(2, np.float32), "c")
    for kind, i, j, k in operations:
        apply(graph, kind, i, j, k)
        # Values that were erased read nothing; those that remain list just the reads that there are.
        assert listed(every_value(graph)) == recounted(graph)
        nodes = list(graph.nodes)
        assert len(graph) == len(nodes)
        assert all(node.graph is graph for node in nodes)
        assert walked_back(graph) == nodes


def walked_back(graph: Graph) -> list[Node]:
    backwards, node = [], graph._last
    while node is not None:
        backwards.append(node)
        node = node._prev
    return backwards[::-1]


def apply(graph: Graph, kind: str, i: int, j: int, k: int) -> None:
    nodes, values = list(graph.nodes), list(graph.values())

    def value(n: int) -> Value:
        return values[n % len(values)]

    if kind == "emit":
        names = [""] * (1 + k % 2)
        graph.emit_node("t.Op", [value(i), None, value(j)], names=names, types=[F32] * len(names))
    elif kind == "before" and nodes:
        graph.emit_node("t.Op", [value(i)], types=[F32], before=nodes[j % len(nodes)])
    elif kind == "subgraph":
        body = Graph("body", None, graph)
        inner = body.emit_node("t.Inner", [value(i), value(j)], types=[F32])
        body.set_outputs([inner.output, value(k)], ["a", "b"])
        graph.emit_node("t.Op", [value(k)], {"body": body}, types=[F32])
    elif kind == "constant":
        graph.constant(np.full(2, i, np.float32), "c")
    elif kind == "replace":
        graph.replace(value(i), value(j))
    elif kind == "erase" and nodes:
        node = nodes[i % len(nodes)]
        if any(v.uses for v in node.outputs):
            with pytest.raises(ValueError, match="is still read by"):
                graph.erase(node)
        else:
            graph.erase(node)
            assert node.graph is None
    elif kind == "erase_dead" and nodes:
        erase_dead([nodes[i % len(nodes)]])
    elif kind in ("set_input", "drop_input") and nodes:
        node = nodes[i % len(nodes)]
        new = value(k) if kind == "set_input" else None
        graph.set_input(
            node, j % (len(node.inputs) + 2), new
        )  # Those behind the last were left out.
    elif kind == "outputs":
        graph.set_outputs([value(i), value(j), value(i)], ["p", "q", "r"])
        graph.set_input(graph, 1, value(k))
    elif kind == "move" and nodes:
        graph.move_before(nodes[i % len(nodes)], nodes[j % len(nodes)])


def test_a_value_read_twice_lists_both_uses() -> None:
    graph = Graph()
    x = graph.add_input("x", F32)
    node = graph.emit_node("t.Add", [x, x], types=[F32])
    graph.set_outputs([x, x], ["a", "b"])
    assert list(x.uses) == [Use(node, 0), Use(node, 1), Use(graph, 0), Use(graph, 1)]
    assert x.users == [node]
    assert x.is_output
    assert x.only_user() is None
    graph.set_outputs([node.output])
    assert x.only_user() is node


def test_nodes_may_be_erased_and_inserted_during_iteration() -> None:
    graph = Graph()
    values = [graph.add_input("x", F32)]
    for i in range(6):
        values.append(graph.emit_node("t.Op", [values[0]], names=[f"v{i}"], types=[F32]).output)
    seen = []
    for node in graph.nodes:
        seen.append(node.output.name)
        if node.output.name == "v1":
            graph.erase(node)
            for name in ("v2", "v3"):
                graph.erase(next(n for n in graph.nodes if n.output.name == name))
        if node.output.name == "v4":
            graph.emit_node("t.Op", [values[0]], names=["before"], types=[F32], before=node)
            graph.emit_node("t.Op", [values[0]], names=["after"], types=[F32], before=node._next)
    assert seen == ["v0", "v1", "v4", "after", "v5"]
    assert [n.output.name for n in graph.nodes] == ["v0", "before", "v4", "after", "v5"]


def test_a_node_that_inference_rejects_is_removed() -> None:
    graph = TABLE.graph()
    x = graph.add_input("x", TensorType(DType.F32, (2, 3)))
    before = print_graph(graph)
    with pytest.raises(InvalidGraph):
        graph.emit("MatMul", [x, x])
    assert print_graph(graph) == before
    assert not x.uses


def test_emitted_nodes_get_position_and_scope_from_at() -> None:
    graph = Graph()
    x = graph.add_input("x", F32)
    last = graph.emit_node("t.Last", [x], types=[F32], scope="layer.1")
    with graph.at(last):
        first = graph.emit_node("t.First", [x], types=[F32])
        other = graph.emit_node("t.Second", [x], types=[F32], scope="own")
    end = graph.emit_node("t.End", [x], types=[F32])
    assert list(graph.nodes) == [first, other, last, end]
    assert [n.scope for n in graph.nodes] == ["layer.1", "own", "layer.1", ""]


def test_names_are_unique_over_a_graph_and_its_subgraphs() -> None:
    graph = Graph()
    x = graph.add_input("x", F32)
    body = Graph("body", None, graph)
    inner = body.add_input("x", F32)
    assert (x.name, inner.name, graph.fresh("x"), body.fresh("x_1")) == ("x", "x_1", "x_2", "x_1_1")


def test_outputs_and_names_must_match_in_number() -> None:
    graph = Graph()
    x = graph.add_input("x", F32)
    with pytest.raises(ValueError, match="1 outputs, 2 names"):
        graph.set_outputs([x], ["a", "b"])


def test_a_constant_keeps_its_type_under_another_encoding() -> None:
    graph = Graph()
    c = graph.constant(np.ones(3, np.float32))
    from tersor.ir import Dense

    with pytest.raises(ValueError, match="cannot be stored as f64"):
        graph.set_encoding(c, Dense(np.ones(3)))


def test_an_omitted_operand_is_set_and_removed() -> None:
    graph = Graph()
    x = graph.add_input("x", F32)
    node = graph.emit_node("t.Op", [x], types=[F32])
    graph.set_input(node, 3, x)
    assert node.inputs == [x, None, None, x]
    graph.set_input(node, 3, None)
    assert node.inputs == [x]
    assert len(x.uses) == 1


def test_slice_axis_slices_constants_and_types() -> None:
    graph = TABLE.graph()
    x = graph.add_input("x", TensorType(DType.F32, (symbol("n"), 3)))
    c = graph.constant(np.arange(6, dtype=np.float32).reshape(2, 3))
    ids = graph.constant(np.array([5, 6, 7]))
    assert contents_of(ids) is not None
    before, encoding = graph.changes, c.encoding
    for value, axis in ((x, 1), (c, 1), (ids, 0)):
        graph.slice_axis(value, axis, np.array([0, 2]))
    assert graph.changes > before
    assert [str(v.type) for v in (x, c, ids)] == ["f32[n, 2]", "f32[2, 2]", "i64[2]"]
    np.testing.assert_array_equal(c.numpy(), [[0, 2], [3, 5]])
    assert list(contents_of(ids)) == [5, 7]  # type: ignore[arg-type]
    assert encoding is not None
    np.testing.assert_array_equal(encoding.decode(), np.arange(6).reshape(2, 3))


def test_attributes_are_set_and_removed() -> None:
    graph = Graph()
    node = graph.emit_node("t.Op", [], {"a": 1, "b": 2, "c": 3}, types=[F32])
    before = graph.changes
    graph.set_attributes(node, {"a": 5, "b": None, "not there": None})
    assert node.attrs == {"a": 5, "c": 3}
    assert graph.changes > before


# -- copies ----------------------------------------------------------------------------------------

COPIED = """
graph main(%x: f32[2], %flag: bool[]) -> (y = %r, again = %x) {
  @c: f32[20] = dense arange
  @d: f32[2] = dense [1.0, 2.0]
  %a: f32[2] = Add(%x, @d) scope "block.0" name "first"
  %r: f32[2] = If(%flag) {else_branch = graph else() -> (e = %a) {
  }, then_branch = graph then() -> (t = %n) {
    @k: f32[2] = dense [3.0, 4.0]
    %n: f32[2] = Mul(%a, @k)
  }}
}
"""


def test_a_copy_shares_weights_and_nothing_else() -> None:
    graph = parse(COPIED, TABLE)
    graph.metadata["producer"] = "a test"
    text = print_graph(graph)
    copy = graph.copy()
    verify(copy)
    assert print_graph(copy) == text
    assert copy.metadata == graph.metadata
    mine, theirs = every_value(graph), every_value(copy)
    assert not {id(v) for v in mine} & {id(v) for v in theirs}
    for a, b in zip(mine, theirs, strict=True):
        assert a.encoding is b.encoding
    nodes = [{id(n) for n in g.walk()} for g in (graph, copy)]
    assert not nodes[0] & nodes[1]
    assert not {id(g) for g in graph.all_graphs()} & {id(g) for g in copy.all_graphs()}
    # Everything is taken apart in the copy, and the original does not notice.
    copy.metadata.clear()
    copy.set_outputs([copy.inputs[0]], ["only"])
    for node in reversed(list(copy.nodes)):
        copy.erase(node)
    for constant in list(copy.constants.values()):
        copy.erase_constant(constant)
    copy.add_input("more", F32)
    assert print_graph(graph) == text
    assert graph.metadata == {"producer": "a test"}
    verify(graph)


def test_a_copy_has_its_own_namespace() -> None:
    graph = parse(COPIED, TABLE)
    copy = graph.copy()
    assert copy.fresh("a") == "a_1"
    assert graph.fresh("a") == "a_1"
    assert next(n for n in copy.walk() if n.subgraphs).subgraphs[0].fresh("a") == "a_2"


# -- long chains -----------------------------------------------------------------------------------

LONG = 5000  # Far beyond Python's limit of recursion.


def chain(ops: list[str]) -> Graph:
    graph = TABLE.graph()
    value = graph.add_input("x", TensorType(DType.F32, (2,)))
    for i in range(LONG):
        value = graph.emit(ops[i % len(ops)], [value])
    graph.set_outputs([value])
    return graph


@pytest.mark.slow
def test_a_chain_of_thousands_of_nodes_survives_every_operation() -> None:
    graph = chain(["Relu", "Tanh"])
    text = print_graph(graph)
    again = parse(text, TABLE)
    assert print_graph(again) == text
    assert print_graph(graph.copy()) == text
    after = Pipeline([canonicalization(), *fusion()]).run(graph)
    assert len(after) == LONG
    feed = {"x": np.array([0.5, -1], np.float32)}
    assert next(iter(evaluate(after, feed).values())).shape == (2,)


def test_a_chain_of_thousands_of_nodes_is_rewritten_and_eliminated() -> None:
    graph = chain(["Neg"])
    after = Pipeline([canonicalization()], level="types").run(graph)
    assert len(after) == 0
    assert after.outputs == after.inputs
    graph.set_outputs([graph.inputs[0]])
    erase_dead([list(graph.nodes)[-1]])
    assert len(graph) == 0
