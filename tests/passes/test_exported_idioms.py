"""What exporters write, and the one way in which the IR says it."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.ir import Graph, Value, parse, print_node
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.passes.canonicalize import canonicalization
from tersor.passes.canonicalize.eliminate_identity import EliminateIdentity
from tersor.passes.canonicalize.matmul_to_linear import MatMulToLinear
from tersor.passes.canonicalize.normalize_axes import NormalizeAxes
from tersor.passes.canonicalize.shape_arithmetic import ShapeArithmetic
from tersor.passes.canonicalize.simplify_masks import SimplifyMasks
from tersor.passes.fuse.fuse_attention import FuseAttention
from tersor.passes.fuse.fuse_rms_norm import FuseRmsNorm
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
    graph = Pipeline([canonicalization()]).run(parse(text, TABLE))
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


# -- masks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", ["Less", "GreaterOrEqual"])
def test_what_counts_from_zero_is_never_negative(least: str) -> None:
    text = f"""graph g(%m: bool[b, s], %n: i64[]) -> (y = %y) {{
        @zero: i64[] = dense [0]
        @one: i64[] = dense [1]
        @front: i64[1] = dense [0]
        %count: i64[s] = Range(@zero, %n, @one)
        %row: i64[1, s] = Unsqueeze(%count, @front)
        %test: bool[1, s] = {least}(%row, @zero)
        {"%true: bool[1, s] = Not(%test)" if least == "Less" else ""}
        %y: bool[b, s] = And({"%true" if least == "Less" else "%test"}, %m)
    }}"""
    graph = Pipeline([SimplifyMasks()]).run(parse(text, TABLE))
    assert graph.outputs[0] is graph.inputs[0]
    other = Pipeline([SimplifyMasks()]).run(parse(text.replace("(@zero, %n", "(%n, %n"), TABLE))
    assert other.outputs[0].producer is not None


def test_one_minus_a_mask_times_a_number_is_a_choice() -> None:
    text = """graph g(%m: bool[b, s]) -> (y = %y) {
        @one: f32[] = dense [1.0]
        @low: f32[] = dense [-10000.0]
        %real: f32[b, s] = Cast(%m) {to = 1}
        %inverse: f32[b, s] = Sub(@one, %real)
        %y: f32[b, s] = Mul(%inverse, @low)
    }"""
    *_, last = after(text, SimplifyMasks())
    assert last.split(" = ")[1] == "Where(%m, @zero, @low)"
    # Of numbers that need not be 0 or 1 it is no choice.
    *_, last = after(text.replace("%m: bool", "%m: i64"), SimplifyMasks())
    assert " = Mul(" in last


def test_a_condition_is_turned_round_with_its_branches() -> None:
    text = """graph g(%m: bool[b, s], %x: f32[b, s], %z: f32[b, s]) -> (y = %y) {
        %n: bool[b, s] = Not(%m)
        %y: f32[b, s] = Where(%n, %x, %z)
    }"""
    *_, last = after(text, SimplifyMasks())
    assert last.split(" = ")[1] == "Where(%m, %z, %x)"


SCORES = """graph g(%q: f32[b, 2, s, 4], %m: bool[b, 1, 1, s], %n: i64[]) -> (y = %y) {{
    @low: f32[] = dense [{low}]
    @zero: i64[] = dense [0]
    @one: i64[] = dense [1]
    @fifty: f32[] = dense [50.0]
    @rows: i64[3] = dense [0, 1, 3]
    @columns: i64[3] = dense [0, 1, 2]
    @nothing: f32[] = dense [0.0]
    %count: i64[s] = Range(@zero, %n, @one)
    %i: i64[1, 1, s, 1] = Unsqueeze(%count, @rows)
    %j: i64[1, 1, 1, s] = Unsqueeze(%count, @columns)
    %causal: bool[1, 1, s, s] = LessOrEqual(%j, %i)
    %both: bool[b, 1, s, s] = And(%causal, %m)
    %kt: f32[b, 2, 4, s] = Transpose(%q) {{perm = [0, 1, 3, 2]}}
    %product: f32[b, 2, s, s] = MatMul(%q, %kt)
    {between}
    %weights: f32[b, 2, s, s] = Softmax(%scores) {{axis = -1}}
    %y: f32[b, 2, s, 4] = MatMul(%weights, %q)
}}"""
LOWEST = "-3.4028234663852886e+38"


def fused(between: str, low: str = LOWEST) -> tuple[Graph, list[str]]:
    graph = Pipeline([FuseAttention()]).run(parse(SCORES.format(between=between, low=low), TABLE))
    return graph, [n.op for n in graph.nodes]


@pytest.mark.parametrize("low", [LOWEST, "-inf", "-10000.0"])
@pytest.mark.parametrize("order", ["%product, @low", "@low, %product"])
def test_scores_that_a_mask_takes_the_place_of_are_masked(order: str, low: str) -> None:
    graph, made = fused(f"%scores: f32[b, 2, s, s] = Where(%m, {order})", low)
    assert ("Attention" in made) == (low != "-10000.0")  # Which other scores may reach.
    if "Attention" in made:
        mask = graph.outputs[0].producer.inputs[3]  # type: ignore[union-attr]
        assert mask is not None
        boolean = low == "-inf" and order.startswith("%product")
        assert str(mask.type) == f"{'bool' if boolean else 'f32'}[b, 1, 1, s]"


def test_scores_may_be_masked_by_position_and_then_by_padding() -> None:
    """As GPT-2 had it, and GPT-Neo has."""
    graph, _ = fused("""%some: f32[b, 2, s, s] = Where(%causal, %product, @low)
        %padding: f32[b, 1, 1, s] = Where(%m, @nothing, @low)
        %scores: f32[b, 2, s, s] = Add(%some, %padding)""")
    attention = graph.outputs[0].producer
    assert attention is not None and attention.op == "Attention"
    assert str(attention.inputs[3].type) == "f32[b, 1, s, s]"  # type: ignore[union-attr]


def test_one_head_of_keys_and_values_is_read_by_all() -> None:
    text = SCORES.format(between="%scores: f32[b, 2, s, s] = Identity(%product)", low=LOWEST)
    text = text.replace("%m: bool", "%k: f32[b, 1, s, 4], %m: bool")
    text = text.replace("f32[b, 2, 4, s] = Transpose(%q)", "f32[b, 1, 4, s] = Transpose(%k)")
    for values, op in (("%k", "Attention"), ("%q", "MatMul")):  # Values by heads are no such form.
        given = parse(text.replace("(%weights, %q)", f"(%weights, {values})"), TABLE)
        made = Pipeline([EliminateIdentity(), FuseAttention()]).run(given)
        assert made.outputs[0].producer.op == op  # type: ignore[union-attr]


def test_scores_that_are_capped_have_a_cap() -> None:
    graph, _ = fused("""%part: f32[b, 2, s, s] = Div(%product, @fifty)
        %tanh: f32[b, 2, s, s] = Tanh(%part)
        %scores: f32[b, 2, s, s] = Mul(%tanh, @fifty)""")
    attention = graph.outputs[0].producer
    assert attention is not None and attention.op == "Attention"
    assert (attention.attrs["softcap"], attention.attrs["scale"]) == (50.0, 1.0)


@pytest.mark.parametrize(("mask", "kind"), [("%causal", "bool"), ("%both", "f32")])
def test_lowest_floats_are_a_boolean_mask_where_every_query_has_a_key(mask: str, kind: str) -> None:
    """Its own; where padding may take that, too, such rows have the mean of all values."""
    graph, _ = (
        fused(f"""%low_or: f32[{"1" if mask == "%causal" else "b"}, 1, s, s] = Where({mask}, @nothing, @low)
        %scores: f32[b, 2, s, s] = Add(%product, %low_or)""")
    )
    attention = graph.outputs[0].producer
    assert attention is not None and attention.op == "Attention"
    assert str(attention.inputs[3].type).startswith(kind)  # type: ignore[union-attr]


def test_a_norm_of_what_is_centred_is_a_layer_norm() -> None:
    text = """graph g(%x: f32[b, 4]) -> (y = %y) {
        @last: i64[1] = dense [-1]
        @two: f32[] = dense [2.0]
        @eps: f32[] = dense [0.001]
        %mean: f32[b, 1] = ReduceMean(%x, @last) {keepdims = 1}
        %d: f32[b, 4] = Sub(%x, %mean)
        %square: f32[b, 4] = Pow(%d, @two)
        %var: f32[b, 1] = ReduceMean(%square, @last) {keepdims = 1}
        %sum: f32[b, 1] = Add(%var, @eps)
        %root: f32[b, 1] = Sqrt(%sum)
        %y: f32[b, 4] = Div(%d, %root)
    }"""
    *_, last = after(text, FuseRmsNorm())
    assert " = LayerNormalization(%x, @scale" in last
