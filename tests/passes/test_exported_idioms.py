"""What exporters write, and the one way in which the IR says it."""

from __future__ import annotations

import numpy as np

from tersor.ir import Graph, Value, parse, print_node
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.passes.canonicalize import canonicalization
from tersor.passes.canonicalize.matmul_to_linear import MatMulToLinear
from tersor.passes.canonicalize.normalize_axes import NormalizeAxes
from tersor.passes.canonicalize.shape_arithmetic import ShapeArithmetic
from tersor.passes.canonicalize.simplify_masks import SimplifyMasks
from tersor.passes.fuse.fuse_attention import FuseAttention
from tersor.pipeline import Pass, Pipeline

SIZES = {"b": 2, "s": 5}


def feeds_of(graph: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def numbers(value: Value) -> np.ndarray:
        shape = [SIZES.get(str(d), d) for d in value.tensor.dims or ()]
        data = rng.standard_normal([int(d) for d in shape])
        kind = value.tensor.dtype.numpy
        return data > 0 if kind == np.bool_ else data.astype(kind)

    return {v.name: numbers(v) for v in graph.inputs}


def after(text: str, *passes: Pass) -> list[str]:
    """Lines of the nodes after ``passes``, each of which must keep its claim on values."""
    graph = parse(text, TABLE)
    feeds = [feeds_of(graph)]
    made = Pipeline(passes, level="values", feeds=feeds, evaluate=evaluate).run(graph)
    return [print_node(n).strip() for n in made.nodes]


def test_axes_count_from_the_front() -> None:
    text = """graph g(%x: f32[b, s]) -> (y = %y) {
        @axes: i64[1] = dense [-1]
        %y: f32[b, s, 1] = Unsqueeze(%x, @axes)
    }"""
    (line,) = after(text, NormalizeAxes())
    graph = Pipeline([NormalizeAxes()]).run(parse(text, TABLE))
    (node,) = graph.nodes
    assert node.inputs[1] is not None and list(node.inputs[1].numpy()) == [2], line


def test_steps_of_one_are_left_out() -> None:
    text = """graph g(%x: f32[b, 8]) -> (y = %y) {
        @zero: i64[1] = dense [0]
        @four: i64[1] = dense [4]
        @one: i64[1] = dense [1]
        %y: f32[b, 4] = Slice(%x, @zero, @four, @one, @one)
    }"""
    (line,) = after(text, NormalizeAxes())
    assert line.startswith("%y: f32[b, 4] = Slice(%x, @zero, @four, @one)")


def test_sizes_are_asked_of_the_first_input() -> None:
    text = """graph g(%ids: i64[b, s], %h: f32[b, s, 4]) -> (y = %y) {
        %y: i64[2] = Shape(%h) {start = 0, end = 2}
    }"""
    (line,) = after(text, NormalizeAxes())
    assert line.endswith("Shape(%ids) {end = 2, start = 0}")


def test_one_size_is_asked_of_the_first_input() -> None:
    text = """graph g(%ids: i64[b, s], %h: f32[b, s, 4]) -> (y = %y) {
        @one: i64[] = dense [1]
        %all: i64[3] = Shape(%h)
        %y: i64[] = Gather(%all, @one)
    }"""
    *_, shape, squeeze = after(text, NormalizeAxes())
    assert shape.endswith("Shape(%ids) {end = 2, start = 1}")
    assert squeeze.split(" = ")[1].startswith("Squeeze(%shape")


def test_an_index_of_the_only_one_drops_its_axis() -> None:
    text = """graph g(%h: f32[1, b, 4]) -> (y = %y) {
        @last: i64[] = dense [-1]
        %y: f32[b, 4] = Gather(%h, @last)
    }"""
    (line,) = after(text, NormalizeAxes())
    assert line.startswith("%squeeze: f32[b, 4] = Squeeze(%h, @axes)")
    (line,) = after(text.replace("h: f32[1,", "h: f32[2,"), NormalizeAxes())
    assert "= Gather(%h" in line


ROWS = """graph g(%x: f32[b, s, 2, 4]) -> (y = %y) {
    @w: f32[8, 2] = dense [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    @rows: i64[2] = dense [-1, 8]
    @two: i64[1] = dense [2]
    %lead: i64[2] = Shape(%x) {start = 0, end = 2}
    %back: i64[3] = Concat(%lead, @two) {axis = 0}
    %m: f32[b*s, 8] = Reshape(%x, @rows)
    %p: f32[b*s, 2] = MatMul(%m, @w)
    %y: f32[b, s, 2] = Reshape(%p, %back)
}"""


def test_a_linear_layer_on_merged_rows_is_one_on_the_rows_themselves() -> None:
    *_, last = after(ROWS, MatMulToLinear())
    assert "f32[b, s, 2] = tersor.Linear(" in last


def test_a_reshape_that_inserts_ones_between_symbols_is_an_unsqueeze() -> None:
    text = """graph g(%m: bool[b, s]) -> (y = %y) {
        @all: i64[1] = dense [-1]
        @one: i64[2] = dense [1, 1]
        %b: i64[1] = Shape(%m) {start = 0, end = 1}
        %s: i64[1] = Shape(%m) {start = 1, end = 2}
        %shape: i64[4] = Concat(%b, @one, %s) {axis = 0}
        %flat: bool[b*s] = Reshape(%m, @all)
        %y: bool[b, 1, 1, s] = Reshape(%flat, %shape)
    }"""
    *_, last = after(text, ShapeArithmetic())
    assert "= Unsqueeze(%m, " in last


def test_a_lookup_of_flattened_coordinates_is_a_view() -> None:
    text = """graph g(%m: bool[b, s]) -> (y = %y) {
        @zero: i64[] = dense [0]
        @one: i64[] = dense [1]
        @first: i64[1] = dense [0]
        @last: i64[1] = dense [1]
        %shape: i64[2] = Shape(%m)
        %b: i64[] = Gather(%shape, @zero)
        %s: i64[] = Gather(%shape, @one)
        %i: i64[b] = Range(@zero, %b, @one)
        %j: i64[s] = Range(@zero, %s, @one)
        %down: i64[b, 1] = Unsqueeze(%i, @last)
        %along: i64[1, s] = Unsqueeze(%j, @first)
        %start: i64[b, 1] = Mul(%down, %s)
        %index: i64[b, s] = Add(%along, %start)
        %flat: bool[b*s, 1] = Flatten(%m) {axis = 2}
        %y: bool[b, s, 1] = Gather(%flat, %index)
    }"""
    *_, last = after(text, SimplifyMasks())
    assert "= Unsqueeze(%m, " in last


def test_the_last_axis_of_a_mask_is_not_narrowed() -> None:
    """A mask shorter than the keys masks the rest, so that one element cannot stand for all."""
    text = """graph g(%q: f32[b, 1, s, 4], %n: i64[1]) -> (y = %y) {
        @true: bool[1, 1, 1, 1] = dense [True]
        @three: i64[3] = dense [1, 1, 1]
        %s: i64[1] = Shape(%q) {start = 2, end = 3}
        %shape: i64[4] = Concat(@three, %s) {axis = 0}
        %mask: bool[1, 1, 1, s] = Expand(@true, %shape)
        %y: f32[b, 1, s, 4] = Attention(%q, %q, %q, %mask)
    }"""
    graph = Pipeline(canonicalization()).run(parse(text, TABLE))
    (attention,) = (n for n in graph.nodes if n.op == "Attention")
    mask = attention.input(3)
    assert mask is None or str(mask.type) == "bool[1, 1, 1, s]"


ATTENTION = """graph g(%q: f32[b, 2, s, 4], %bias: f32[1, 2, s, s], %pad: f32[b, 1, 1, s]) -> (y = %y) {
    %kt: f32[b, 2, 4, s] = Transpose(%q) {perm = [0, 1, 3, 2]}
    %product: f32[b, 2, s, s] = MatMul(%q, %kt)
    %with_bias: f32[b, 2, s, s] = Add(%product, %bias)
    %masked: f32[b, 2, s, s] = Add(%with_bias, %pad)
    %weights: f32[b, 2, s, s] = Softmax(%masked) {axis = -1}
    %y: f32[b, 2, s, 4] = MatMul(%weights, %q)
}"""


def test_masks_added_one_after_the_other_are_summed_for_attention() -> None:
    *_, total, transpose, attention = after(ATTENTION, FuseAttention())
    lines = (total, transpose, attention)
    assert any("= Add(%bias, %pad)" in line for line in lines)
    assert " = Attention(%q, " in attention


REPEATED = """graph g(%q: f32[b, 4, s, 4], %k: f32[b, 2, s, 4]) -> (y = %y) {
    @axes: i64[1] = dense [2]
    @two: i64[1] = dense [2]
    @four: i64[1] = dense [4]
    %b: i64[1] = Shape(%k) {start = 0, end = 1}
    %s: i64[1] = Shape(%k) {start = 2, end = 3}
    %wide: i64[5] = Concat(%b, @two, @two, %s, @four) {axis = 0}
    %heads: i64[4] = Concat(%b, @four, %s, @four) {axis = 0}
    %one: f32[b, 2, 1, s, 4] = Unsqueeze(%k, @axes)
    %each: f32[b, 2, 2, s, 4] = Expand(%one, %wide)
    %all: f32[b, 4, s, 4] = Reshape(%each, %heads)
    %y: f32[b, 4, s, 4] = Attention(%q, %all, %all) {is_causal = 1}
}"""


def test_keys_repeated_for_attention_are_read_before_they_are_repeated() -> None:
    *_, attention = after(REPEATED, FuseAttention())
    assert " = Attention(%q, %k, %k) {is_causal = 1," in attention
