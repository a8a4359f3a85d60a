"""Vectors that share a constant because they are equal, and matrices that are really shared."""

from __future__ import annotations

import numpy as np
from architectures import ARCHITECTURES, traced

from tersor.ir import parse, print_graph, verify, weights_of
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.pipeline import Pipeline, registry
from tersor.structure import axis_groups, merge_vectors, slice_graph, split_vectors

# Two layers of their own weights whose biases are equal, and so one constant.
EQUAL = """graph main(%x: f32[n, 3]) -> (y = %y) {
  @u: f32[3, 4] = dense normal(1)
  @v: f32[4, 4] = dense normal(2)
  @w: f32[4, 2] = dense normal(3)
  @zero: f32[4] = dense [0.0, 0.0, 0.0, 0.0]
  %a: f32[n, 4] = tersor.Linear(%x, @u, @zero) {activation = "relu"} scope "first"
  %b: f32[n, 4] = tersor.Linear(%a, @v, @zero) {activation = "relu"} scope "second"
  %y: f32[n, 2] = tersor.Linear(%b, @w) scope "head"
}"""


def test_equal_biases_tie_layers_only_while_they_are_one_constant() -> None:
    graph = parse(EQUAL, TABLE)
    assert [len(g.free) for g in axis_groups(graph)] == [0, 4, 0]
    before = evaluate(graph, {"x": np.ones((2, 3), np.float32)})
    copies = split_vectors(graph)
    verify(graph)
    assert [[v.name for v in same] for same in copies] == [["zero", "zero_1"]]
    assert [(g.name, len(g.free)) for g in axis_groups(graph)] == [
        ("first", 0), ("first#2", 4), ("second", 4), ("head", 0),
    ]  # fmt: skip
    after = evaluate(graph, {"x": np.ones((2, 3), np.float32)})
    np.testing.assert_array_equal(before["y"], after["y"])


def test_splitting_then_merging_restores_the_graph() -> None:
    graph = parse(EQUAL, TABLE)
    before = print_graph(graph)
    merge_vectors(graph, split_vectors(graph))
    assert print_graph(graph) == before


def test_only_vectors_that_are_still_equal_are_merged() -> None:
    graph = parse(EQUAL, TABLE)
    copies = split_vectors(graph)
    first, second = (g for g in axis_groups(graph) if g.free)
    slice_graph(graph, first.positions([0]))
    merge_vectors(graph, copies)
    verify(graph)
    assert [graph.constants[n].tensor.shape for n in ("zero", "zero_1")] == [(3,), (4,)]
    slice_graph(graph, second.positions([3]))
    merge_vectors(graph, copies)
    verify(graph)
    assert "zero_1" not in graph.constants
    assert len(graph.constants["zero"].uses) == 2


def test_vectors_in_subgraphs_and_outputs_keep_their_readers() -> None:
    text = """graph main(%c: bool[]) -> (y = %y, b = @b) {
  @b: f32[3] = dense [1.0, 2.0, 3.0]
  %y: f32[3] = If(%c) {else_branch = graph else() -> (r = %q) {
      %q: f32[3] = Neg(@b)
    }, then_branch = graph then() -> (r = %p) {
      %p: f32[3] = Relu(@b)
    }}
}"""
    graph = parse(text, TABLE)
    copies = split_vectors(graph)
    verify(graph)
    assert [len(same) for same in copies] == [2]
    merge_vectors(graph, copies)
    assert print_graph(graph) == print_graph(parse(text, TABLE, weights_of(graph)))


def test_shared_layers_of_albert_keep_one_matrix() -> None:
    case = ARCHITECTURES["albert"]
    graph = Pipeline(registry.optimization(), level="none").run(traced(case, case.build("sdpa")))
    matrices = {n: len(v.uses) for n, v in graph.constants.items() if _is_matrix(v.tensor.shape)}
    assert sorted(matrices.values())[-6:] == [2] * 6  # Of query, key, value, output and two of FFN.
    split_vectors(graph)
    assert {
        n: len(v.uses) for n, v in graph.constants.items() if _is_matrix(v.tensor.shape)
    } == matrices
    ffn = next(g for g in axis_groups(graph) if g.name.endswith(".ffn"))
    assert len(ffn.free) == 64
    readers = [node for node, _, _ in ffn.weights(summed=True)]
    assert len(readers) == len({id(node) for node in readers}) == 2
    assert len({value for _, value, _ in ffn.weights(summed=True)}) == 1
    slice_graph(graph, ffn.positions(range(0, 64, 2)))
    verify(graph)


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return sum(size != 1 for size in shape) > 1
