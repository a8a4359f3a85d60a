"""Units on graphs small enough to list all positions: labels from single positions, and from each of the
alternative ties."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.ir import parse, verify
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.structure import AxisGroup, axis_groups, slice_graph, union, zero_graph

# x[., 6] -> 2 heads of 3 lanes or 3 pairs, whatever reads it -> [., 6] -> y
FLAT = """graph main(%x: f32[n, 5]) -> (y = %y) {{
  @w: f32[5, 6] = dense normal(0)
  @o: f32[6, 4] = dense normal(1)
  %a: f32[n, 6] = tersor.Linear(%x, @w) {{activation = "none"}}
{middle}
  %y: f32[n, 4] = tersor.Linear(%b, @o) {{activation = "none"}}
}}"""


def groups(text: str) -> list[AxisGroup]:
    return axis_groups(parse(text, TABLE))


def free_groups(text: str) -> list[AxisGroup]:
    """Without those of the model's input and output."""
    return [group for group in groups(text) if group.free]


def owners(group: AxisGroup) -> dict[tuple[str, int], list[int]]:
    return {(value.name, axis): owner.tolist() for (value, axis), owner in group.axes.items()}


def by_name(every: list[AxisGroup], name: str, axis: int) -> list[list[int]]:
    """Units of each position of an axis, by each group that has it."""
    return [owners(g)[name, axis] for g in every if (name, axis) in owners(g)]


def test_an_axis_that_is_only_passed_on_has_a_unit_per_position() -> None:
    every = groups(FLAT.format(middle="  %b: f32[n, 6] = Relu(%a)"))
    assert by_name(every, "w", 1) == by_name(every, "o", 0) == [[0, 1, 2, 3, 4, 5]]


def test_a_reshape_into_heads_gives_heads_and_lanes() -> None:
    middle = """
  @s: i64[3] = dense [0, 2, 3]
  @f: i64[2] = dense [0, 6]
  %h: f32[n, 2, 3] = Reshape(%a, @s)
  %b: f32[n, 6] = Reshape(%h, @f)"""
    every = groups(FLAT.format(middle=middle))
    heads, lanes = [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]
    assert by_name(every, "w", 1) == by_name(every, "o", 0) == [heads, lanes]
    assert by_name(every, "h", 1) == [[0, 1]]
    assert by_name(every, "h", 2) == [[0, 1, 2]]


def test_three_and_two_blocks_of_one_axis_are_distinguished_or_pinned() -> None:
    """As 2 heads of 3 and as 3 heads of 2: each tie joins what the other holds apart."""
    middle = """
  @s: i64[3] = dense [0, 2, 3]
  @t: i64[3] = dense [0, 3, 2]
  %h: f32[n, 2, 3] = Reshape(%a, @s)
  %g: f32[n, 3, 2] = Reshape(%a, @t)
  %i: f32[n, 2, 3] = Relu(%h)
  %j: f32[n, 3, 2] = Relu(%g)
  @f: i64[2] = dense [0, 6]
  %k: f32[n, 6] = Reshape(%i, @f)
  %l: f32[n, 6] = Reshape(%j, @f)
  %b: f32[n, 6] = Add(%k, %l)"""
    every = groups(FLAT.format(middle=middle))
    for group in every:
        assert ("w", 1) not in owners(group) or not group.free
    assert by_name(every, "w", 1), "a weight's axis is reported, at least as pinned"


# -- an attention on flat hidden axes --------------------------------------------------------------

# 2 heads that share each 1 key head: 4 query heads of 3 lanes, 2 key heads of 3, values of 2.
ATTENTION = """graph main(%x: f32[b, n, 5]) -> (y = %y) {
  @q: f32[5, 12] = dense normal(0)
  @c: f32[12] = dense normal(1)
  @k: f32[5, 6] = dense normal(2)
  @v: f32[5, 4] = dense normal(3)
  @e: f32[4] = dense normal(4)
  @o: f32[8, 5] = dense normal(5)
  %query: f32[b, n, 12] = tersor.Linear(%x, @q, @c) {activation = "none"}
  %key: f32[b, n, 6] = tersor.Linear(%x, @k) {activation = "none"}
  %value: f32[b, n, 4] = tersor.Linear(%x, @v, @e) {activation = "none"}
  %mixed: f32[b, n, 8] = Attention(%query, %key, %value) {q_num_heads = 4, kv_num_heads = 2}
  %y: f32[b, n, 5] = tersor.Linear(%mixed, @o) {activation = "none"}
}"""
LANES = [0, 1, 2]


def test_an_attention_has_heads_and_lanes() -> None:
    """Nothing but flat axes holds them: each weight's axis alone could be cut by either."""
    heads, scored, valued = free_groups(ATTENTION)
    assert [g.units for g in (heads, scored, valued)] == [2, 3, 2]
    assert owners(heads)["q", 1] == [0] * 6 + [1] * 6
    assert owners(heads)["k", 1] == [0] * 3 + [1] * 3
    assert owners(heads)["e", 0] == [0] * 2 + [1] * 2
    assert owners(heads)["o", 0] == [0] * 4 + [1] * 4
    assert owners(scored) == {
        ("q", 1): LANES * 4,
        ("c", 0): LANES * 4,
        ("query", 2): LANES * 4,
        ("k", 1): LANES * 2,
        ("key", 2): LANES * 2,
    }
    assert owners(valued) == {
        ("v", 1): [0, 1] * 2,
        ("e", 0): [0, 1] * 2,
        ("value", 2): [0, 1] * 2,
        ("mixed", 2): [0, 1] * 4,
        ("o", 0): [0, 1] * 4,
    }
    assert all(g.free == list(range(g.units)) and not g.inexact for g in (heads, scored, valued))


def test_one_head_has_only_lanes() -> None:
    text = ATTENTION.replace(
        "q_num_heads = 4, kv_num_heads = 2", "q_num_heads = 1, kv_num_heads = 1"
    )
    text = text.replace("12", "6").replace("[8, 5]", "[4, 5]").replace("n, 8]", "n, 4]")
    assert [g.units for g in free_groups(text)] == [6, 4]


@pytest.mark.parametrize(
    ("which", "counts", "scale"),
    [
        ({0: [1]}, (2, 1), None),
        ({1: [0, 2]}, (4, 2), 3**-0.5),
        ({2: [1]}, (4, 2), None),
        ({0: [0], 1: [1]}, (2, 1), 3**-0.5),
        ({0: [1], 1: [0], 2: [0]}, (2, 1), 3**-0.5),
    ],
)
def test_cutting_heads_and_lanes_equals_zeroing_them(
    which: dict[int, list[int]], counts: tuple[int, int], scale: float | None
) -> None:
    cut, zeroed = parse(ATTENTION, TABLE), parse(ATTENTION, TABLE)
    free, same = ([g for g in axis_groups(x) if g.free] for x in (cut, zeroed))
    slice_graph(cut, union(*(free[i].positions(units) for i, units in which.items())))
    for i, units in which.items():
        zero_graph(zeroed, same[i], units)
    verify(cut)
    node = next(n for n in cut.nodes if n.op == "Attention")
    assert (node.attrs["q_num_heads"], node.attrs["kv_num_heads"]) == counts
    # A number in single precision.
    assert node.attrs.get("scale") == (scale and pytest.approx(scale, rel=1e-7))
    feed = {"x": np.random.default_rng(0).standard_normal((2, 4, 5)).astype(np.float32)}
    # The same sums without their zeros, in single precision.
    np.testing.assert_allclose(
        evaluate(cut, feed)["y"], evaluate(zeroed, feed)["y"], rtol=1e-4, atol=1e-5
    )


def test_lanes_that_no_weight_zeroes_are_inexact() -> None:
    """What a sigmoid makes of zero is one half."""
    text = ATTENTION.replace(
        '%query: f32[b, n, 12] = tersor.Linear(%x, @q, @c) {activation = "none"}',
        '%query: f32[b, n, 12] = tersor.Linear(%x, @q, @c) {activation = "sigmoid"}',
    ).replace(
        '%key: f32[b, n, 6] = tersor.Linear(%x, @k) {activation = "none"}',
        '%key: f32[b, n, 6] = tersor.Linear(%x, @k) {activation = "sigmoid"}',
    )
    scored = free_groups(text)[1]
    assert scored.units == 3
    assert "no weight there or before" in scored.inexact
