"""Exact groups of small graphs: names, the number of free units, and the reasons of pinned ones as users see
them; and cutting equals zeroing."""

from __future__ import annotations

import numpy as np
import pytest
from cutting import cut_all, described, difference

from tersor.backends.ort import Evaluator
from tersor.ir import Graph, parse, print_graph, verify
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.structure import axis_groups, slice_graph

# Two evaluations of sums of a few float32 terms.
TOLERANCE = 1e-5

GRAPHS: dict[str, tuple[str, list[str]]] = {
    "two layers": (
        """graph main(%x: f32[n, 3]) -> (y = %y) {
  @w: f32[3, 4] = dense normal(1)
  @v: f32[4, 2] = dense normal(2)
  %h: f32[n, 4] = MatMul(%x, @w) scope "up"
  %r: f32[n, 4] = Relu(%h)
  %y: f32[n, 2] = MatMul(%r, @v) scope "down"
}""",
        [
            "up: 0 of 3, the model's input 'x' has them",
            "up#2: 4 of 4",
            "down: 0 of 2, the model's output 'y' has them",
        ],
    ),
    "residual with a projection": (
        """graph main(%x: f32[n, 3, 8, 8]) -> (y = %y) {
  @stem: f32[4, 3, 3, 3] = dense normal(1)
  @first: f32[6, 4, 3, 3] = dense normal(2)
  @scale: f32[6] = dense normal(3)
  @bias: f32[6] = dense normal(4)
  @mean: f32[6] = dense normal(5)
  @var: f32[6] = dense [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]
  @second: f32[6, 6, 3, 3] = dense normal(6)
  @short: f32[6, 4, 1, 1] = dense normal(7)
  @head: f32[6, 2] = dense normal(8)
  @axes: i64[2] = dense [2, 3]
  %s: f32[n, 4, 8, 8] = Conv(%x, @stem) {pads = [1, 1, 1, 1]} scope "stem"
  %a: f32[n, 6, 8, 8] = Conv(%s, @first) {pads = [1, 1, 1, 1]} scope "first"
  %b: f32[n, 6, 8, 8] = BatchNormalization(%a, @scale, @bias, @mean, @var) scope "norm"
  %r: f32[n, 6, 8, 8] = Relu(%b)
  %c: f32[n, 6, 8, 8] = Conv(%r, @second) {pads = [1, 1, 1, 1]} scope "second"
  %d: f32[n, 6, 8, 8] = Conv(%s, @short) scope "short"
  %e: f32[n, 6, 8, 8] = Add(%c, %d)
  %m: f32[n, 6] = ReduceMean(%e, @axes) {keepdims = 0}
  %y: f32[n, 2] = MatMul(%m, @head) scope "head"
}""",
        [
            "stem: 0 of 3, the model's input 'x' has them",
            "stem#2: 4 of 4",
            "first: 6 of 6",
            "second: 6 of 6",
            "head: 0 of 2, the model's output 'y' has them",
        ],
    ),
    "a head that is the embedding": (
        """graph main(%ids: i64[n]) -> (y = %y) {
  @table: f32[5, 4] = dense normal(1)
  @w: f32[4, 4] = dense normal(2)
  %e: f32[n, 4] = Gather(@table, %ids) scope "embedding"
  %h: f32[n, 4] = MatMul(%e, @w) scope "layer"
  %t: f32[4, 5] = Transpose(@table)
  %y: f32[n, 5] = MatMul(%h, %t) scope "head"
}""",
        [
            "embedding: 4 of 4 (MatMul %y (head) sums over them, and no weight there or before zeroes them)",
            "t: 0 of 5, Gather %e (embedding) needs all of them",
        ],
    ),
    "a transpose in between": (
        """graph main(%x: f32[n, 3, 5]) -> (y = %y) {
  @w: f32[5, 4] = dense normal(1)
  @v: f32[3, 2] = dense normal(2)
  %h: f32[n, 3, 4] = MatMul(%x, @w) scope "first"
  %t: f32[n, 4, 3] = Transpose(%h) {perm = [0, 2, 1]}
  %y: f32[n, 4, 2] = MatMul(%t, @v) scope "second"
}""",
        [
            "first: 0 of 5, the model's input 'x' has them",
            "first#2: 0 of 3, the model's input 'x' has them",
            "first#3: 0 of 4, the model's output 'y' has them",
            "second: 0 of 2, the model's output 'y' has them",
        ],
    ),
    "convolution along a text": (
        """graph main(%ids: i64[n, s]) -> (y = %y) {
  @table: f32[7, 4] = dense normal(1)
  @three: f32[6, 4, 3] = dense normal(2)
  @five: f32[2, 4, 5] = dense normal(3)
  @head: f32[8, 2] = dense normal(4)
  @last: i64[1] = dense [2]
  %e: f32[n, s, 4] = Gather(@table, %ids) scope "embedding"
  %t: f32[n, 4, s] = Transpose(%e) {perm = [0, 2, 1]}
  %a: f32[n, 6, -2 + s] = Conv(%t, @three) scope "three"
  %b: f32[n, 2, -4 + s] = Conv(%t, @five) scope "five"
  %p: f32[n, 6] = ReduceMax(%a, @last) {keepdims = 0}
  %q: f32[n, 2] = ReduceMax(%b, @last) {keepdims = 0}
  %c: f32[n, 8] = Concat(%p, %q) {axis = 1}
  %y: f32[n, 2] = MatMul(%c, @head) scope "head"
}""",
        [
            "embedding: 4 of 4",
            "three: 6 of 6",
            "five: 2 of 2",
            "head: 0 of 2, the model's output 'y' has them",
        ],
    ),
    "flattened maps": (
        """graph main(%x: f32[n, 3, 4, 4]) -> (y = %y) {
  @conv: f32[4, 3, 3, 3] = dense normal(1)
  @head: f32[16, 2] = dense normal(2)
  %c: f32[n, 4, 2, 2] = Conv(%x, @conv) scope "conv"
  %f: f32[n, 16] = Flatten(%c)
  %y: f32[n, 2] = MatMul(%f, @head) scope "head"
}""",
        [
            "conv: 0 of 3, the model's input 'x' has them",
            "conv#2: 4 of 4",
            "f: 0 of 2, Conv %c (conv) needs all of them",
            "f#2: 0 of 2, Conv %c (conv) needs all of them",
            "head: 0 of 2, the model's output 'y' has them",
        ],
    ),
    "groups of channels": (
        """graph main(%x: f32[n, 3, 4, 4]) -> (y = %y) {
  @before: f32[4, 3, 1, 1] = dense normal(1)
  @grouped: f32[6, 2, 3, 3] = dense normal(2)
  @after: f32[2, 6, 1, 1] = dense normal(3)
  %a: f32[n, 4, 4, 4] = Conv(%x, @before) scope "before"
  %b: f32[n, 6, 2, 2] = Conv(%a, @grouped) {group = 2} scope "grouped"
  %y: f32[n, 2, 2, 2] = Conv(%b, @after) scope "after"
}""",
        [
            "before: 0 of 3, the model's input 'x' has them",
            "before#2: 2 of 2",
            "before#3: 2 of 2",
            "grouped: 3 of 3",
            "after: 0 of 2, the model's output 'y' has them",
        ],
    ),
    "each channel for itself": (
        """graph main(%x: f32[n, 3, 4, 4]) -> (y = %y) {
  @before: f32[4, 3, 1, 1] = dense normal(1)
  @depth: f32[4, 1, 3, 3] = dense normal(2)
  @after: f32[2, 4, 1, 1] = dense normal(3)
  %a: f32[n, 4, 4, 4] = Conv(%x, @before) scope "before"
  %b: f32[n, 4, 2, 2] = Conv(%a, @depth) {group = 4} scope "depth"
  %y: f32[n, 2, 2, 2] = Conv(%b, @after) scope "after"
}""",
        [
            "before: 0 of 3, the model's input 'x' has them",
            "before#2: 4 of 4",
            "after: 0 of 2, the model's output 'y' has them",
        ],
    ),
    "branches and halves": (
        """graph main(%x: f32[n, 3]) -> (y = %y) {
  @a: f32[3, 2] = dense normal(1)
  @b: f32[3, 6] = dense normal(2)
  @c: f32[4, 4] = dense normal(3)
  @d: f32[8, 2] = dense normal(4)
  @sizes: i64[2] = dense [4, 4]
  %p: f32[n, 2] = MatMul(%x, @a) scope "narrow"
  %q: f32[n, 6] = MatMul(%x, @b) scope "wide"
  %j: f32[n, 8] = Concat(%p, %q) {axis = 1}
  %l: f32[n, 4], %r: f32[n, 4] = Split(%j, @sizes) {axis = 1}
  %m: f32[n, 4] = MatMul(%r, @c) scope "half"
  %k: f32[n, 8] = Concat(%l, %m) {axis = 1}
  %y: f32[n, 2] = MatMul(%k, @d) scope "head"
}""",
        [
            "narrow: 0 of 3, the model's input 'x' has them",
            "narrow#2: 2 of 2",
            "wide: 6 of 6",
            "half: 4 of 4",
            "head: 0 of 2, the model's output 'y' has them",
        ],
    ),
    "both branches of an If": (
        """graph main(%c: bool[], %x: f32[n, 3]) -> (y = %y) {
  @up: f32[3, 4] = dense normal(1)
  @down: f32[5, 2] = dense normal(2)
  %h: f32[n, 4] = MatMul(%x, @up) scope "up"
  %i: f32[n, 5] = If(%c) {else_branch = graph else() -> (r = %b) {
      @v: f32[4, 5] = dense normal(3)
      %b: f32[n, 5] = MatMul(%h, @v) scope "else"
    }, then_branch = graph then() -> (r = %a) {
      @w: f32[4, 5] = dense normal(4)
      %a: f32[n, 5] = MatMul(%h, @w) scope "then"
    }}
  %y: f32[n, 2] = MatMul(%i, @down) scope "down"
}""",
        [
            "up: 0 of 3, the model's input 'x' has them",
            "up#2: 4 of 4",
            "then: 5 of 5",
            "down: 0 of 2, the model's output 'y' has them",
        ],
    ),
    "a state that a Loop carries": (
        """graph main(%times: i64[], %x: f32[n, 3]) -> (y = %y, all = %z) {
  @up: f32[3, 4] = dense normal(1)
  @wide: f32[3, 6] = dense normal(5)
  @down: f32[4, 2] = dense normal(2)
  %h: f32[n, 4] = MatMul(%x, @up) scope "up"
  %o: f32[n, 6] = MatMul(%x, @wide) scope "captured"
  %l: f32[n, 4], %rows: f32[?, n, 4] = Loop(%times, _, %h) {body = graph body(%turn: i64[], %going: bool[], %held: f32[n, 4]) -> (on = %on, next = %s, row = %t) {
      @w: f32[4, 6] = dense normal(3)
      @u: f32[6, 4] = dense normal(4)
      %on: bool[] = Identity(%going)
      %g: f32[n, 6] = MatMul(%held, @w) scope "inner.up"
      %p: f32[n, 6] = Add(%g, %o)
      %s: f32[n, 4] = MatMul(%p, @u) scope "inner.down"
      %t: f32[n, 4] = Tanh(%s)
    }}
  %y: f32[n, 2] = MatMul(%l, @down) scope "down"
  %z: f32[?, n, 2] = MatMul(%rows, @down) scope "down"
}""",
        [
            "up: 0 of 3, the model's input 'x' has them",
            "up#2: 4 of 4",
            "captured: 6 of 6",
            "down: 0 of 2, the model's output 'y' has them",
        ],
    ),
    "rows of a Scan": (
        """graph main(%x: f32[s, n, 3]) -> (y = %y) {
  @up: f32[3, 4] = dense normal(1)
  @down: f32[5, 2] = dense normal(2)
  @start: f32[1, 5] = dense normal(3)
  %h: f32[s, n, 4] = MatMul(%x, @up) scope "up"
  %last: f32[?, 5], %all: f32[s, n, 5] = Scan(@start, %h) {body = graph step(%held: f32[1, 5], %row: f32[n, 4]) -> (next = %k, out = %q) {
      @w: f32[4, 5] = dense normal(4)
      %p: f32[n, 5] = MatMul(%row, @w) scope "inner"
      %q: f32[n, 5] = Add(%p, %held)
      %k: f32[1, 5] = Tanh(%held)
    }, num_scan_inputs = 1}
  %y: f32[s, n, 2] = MatMul(%all, @down) scope "down"
}""",
        [
            "up: 0 of 3, the model's input 'x' has them",
            "up#2: 4 of 4",
            "last: 5 of 5",
            "down: 0 of 2, the model's output 'y' has them",
        ],
    ),
    "nothing that can go": (
        """graph main(%x: f32[n, 3]) -> (y = %y) {
  @w: f32[3, 4] = dense normal(1)
  %h: f32[n, 4] = MatMul(%x, @w) scope "only"
  %y: f32[n, 4] = Softmax(%h)
}""",
        [
            "only: 0 of 3, the model's input 'x' has them",
            "only#2: 0 of 4, Softmax %y needs all of them",
        ],
    ),
    "an op that nothing is known of": (
        """graph main(%x: f32[n, 3]) -> (y = %y) {
  @w: f32[3, 4] = dense normal(1)
  @v: f32[4, 2] = dense normal(2)
  %h: f32[n, 4] = MatMul(%x, @w) scope "up"
  %f: f32[n, 4] = com.acme.Odd(%h) scope "odd"
  %y: f32[n, 2] = MatMul(%f, @v) scope "down"
}""",
        [
            "up: 0 of 3, the model's input 'x' has them",
            "up#2: 0 of 4, nothing is known of com.acme.Odd %f (odd)",
            "down: 0 of 4, nothing is known of com.acme.Odd %f (odd)",
            "down#2: 0 of 2, the model's output 'y' has them",
        ],
    ),
    "sizes that an operand tells": (
        """graph main(%x: f32[n, 3], %s: i64[2]) -> (y = %y) {
  @w: f32[3, 4] = dense normal(1)
  @v: f32[4, 2] = dense normal(2)
  %h: f32[n, 4] = MatMul(%x, @w) scope "up"
  %e: f32[?, ?] = Expand(%h, %s) scope "expand"
  %y: f32[?, 2] = MatMul(%e, @v) scope "down"
}""",
        [
            "up: 0 of 3, the model's input 'x' has them",
            "up#2: 0 of 4, Expand %e (expand) needs all of them",
            "down: 0 of 2, the model's output 'y' has them",
        ],
    ),
    "the best of them": (
        """graph main(%x: f32[n, 3]) -> (y = %y) {
  @w: f32[3, 4] = dense normal(1)
  %h: f32[n, 4] = MatMul(%x, @w) scope "scores"
  %y: i64[n, 1] = ArgMax(%h) {axis = 1}
}""",
        [
            "scores: 0 of 3, the model's input 'x' has them",
            "scores#2: 0 of 4, ArgMax %y needs all of them",
        ],
    ),
    "normalized": (
        """graph main(%x: f32[n, 3]) -> (y = %y) {
  @w: f32[3, 4] = dense normal(1)
  @g: f32[4] = dense normal(2)
  @v: f32[4, 2] = dense normal(3)
  %h: f32[n, 4] = MatMul(%x, @w) scope "up"
  %l: f32[n, 4] = LayerNormalization(%h, @g) {axis = -1} scope "norm"
  %y: f32[n, 2] = MatMul(%l, @v) scope "down"
}""",
        [
            "up: 0 of 3, the model's input 'x' has them",
            "up#2: 4 of 4 (LayerNormalization %l (norm) normalizes over them)",
            "down: 0 of 2, the model's output 'y' has them",
        ],
    ),
}  # fmt: skip


def feed(graph: Graph) -> dict[str, np.ndarray]:
    """Normal numbers at sizes that no constant has; ids within the table, true, a few turns."""
    rng, feed = np.random.default_rng(0), {}
    for value in graph.inputs:
        shape, dtype = value.tensor.at({"n": 9, "s": 11}), value.tensor.dtype
        array = rng.standard_normal(shape) if dtype.is_float else rng.integers(1, 3, shape)
        feed[value.name] = array.astype(dtype.numpy)
    return feed


@pytest.mark.parametrize("name", GRAPHS)
def test_groups_and_reasons(name: str) -> None:
    text, expected = GRAPHS[name]
    graph = parse(text, TABLE)
    verify(graph)
    before = print_graph(graph)
    assert described(axis_groups(graph)) == expected
    assert print_graph(graph) == before


def can_be_cut(name: str) -> bool:
    return any(g.free and not g.inexact for g in axis_groups(parse(GRAPHS[name][0], TABLE)))


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("name", [n for n in GRAPHS if can_be_cut(n)])
def test_cutting_exact_groups_equals_zeroing(name: str, share: float) -> None:
    cuts = cut_all(parse(GRAPHS[name][0], TABLE), share, exact=True)
    assert cuts.groups or share < 1
    inputs = feed(cuts.whole)
    for run in (evaluate, Evaluator()):
        whole, cut, zeroed = (run(g, inputs) for g in (cuts.whole, cuts.cut, cuts.zeroed))
        assert difference(zeroed, cut) < TOLERANCE
        assert (difference(whole, cut) > 1e-3) is (cuts.groups > 0)


def test_subgraph_inputs_and_outputs_are_cut() -> None:
    graph = parse(GRAPHS["a state that a Loop carries"][0], TABLE)
    state = next(g for g in axis_groups(graph) if g.name == "up#2")
    slice_graph(graph, state.positions([1, 3]))
    verify(graph)
    loop = next(n for n in graph.nodes if n.op == "Loop")
    (body,) = loop.subgraphs
    assert [str(v.type) for v in (body.inputs[2], *body.outputs[1:])] == ["f32[n, 2]"] * 3
    assert [str(v.type) for v in loop.outputs] == ["f32[n, 2]", "f32[?, n, 2]"]
    assert {v.name: v.tensor.shape for v in body.constants.values()} == {"w": (2, 6), "u": (6, 2)}


def test_positions_of_units_by_axis() -> None:
    """A channel's map of 2 x 2 is four rows of the layer that reads it flat."""
    graph = parse(GRAPHS["flattened maps"][0], TABLE)
    channels = next(g for g in axis_groups(graph) if g.name == "conv#2")
    positions = channels.positions([0, 2])
    assert {(v.name, axis): at.tolist() for (v, axis), at in positions.items()} == {
        ("conv", 0): [0, 2], ("c", 1): [0, 2], ("f", 1): [0, 1, 2, 3, 8, 9, 10, 11],
        ("head", 0): [0, 1, 2, 3, 8, 9, 10, 11],
    }  # fmt: skip


def test_weights_that_compute_units_and_weights_that_sum_over_them() -> None:
    graph = parse(GRAPHS["two layers"][0], TABLE)
    units = axis_groups(graph)[1]
    computed, summed = (
        [(n.scope, v.name, axis) for n, v, axis in units.weights(summed=s)] for s in (False, True)
    )
    assert computed == [("up", "w", 1)]
    assert summed == [("down", "v", 0)]
