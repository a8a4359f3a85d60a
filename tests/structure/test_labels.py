"""Which units are found, on graphs small enough to say all positions: labels from single positions, and
from each of the ties that would put them together in another way."""

from __future__ import annotations

from tersor.ir import parse
from tersor.ops import TABLE
from tersor.structure import AxisGroup, axis_groups

# x[., 6] -> 2 heads of 3 lanes or 3 pairs, whatever reads it -> [., 6] -> y
FLAT = """graph main(%x: f32[n, 5]) -> (y = %y) {{
  @w: f32[5, 6] = dense normal(0)
  @o: f32[6, 4] = dense normal(1)
  %a: f32[n, 6] = tersor.Linear(%x, @w) {{activation = "none"}}
{middle}
  %y: f32[n, 4] = tersor.Linear(%b, @o) {{activation = "none"}}
}}"""


def groups(text: str) -> list[AxisGroup]:
    graph = parse(text, TABLE)
    return axis_groups(graph)


def owners(group: AxisGroup) -> dict[tuple[str, int], list[int]]:
    return {(value.name, axis): owner.tolist() for (value, axis), owner in group.axes.items()}


def by_name(found: list[AxisGroup], name: str, axis: int) -> list[list[int]]:
    """Units of each position of an axis, by each group that has it."""
    return [owners(g)[name, axis] for g in found if (name, axis) in owners(g)]


def test_a_flat_axis_that_is_only_passed_on_has_a_unit_for_each_position() -> None:
    found = groups(FLAT.format(middle="  %b: f32[n, 6] = Relu(%a)"))
    assert by_name(found, "w", 1) == by_name(found, "o", 0) == [[0, 1, 2, 3, 4, 5]]


def test_a_reshape_into_heads_shows_heads_and_lanes_once_each() -> None:
    middle = """
  @s: i64[3] = dense [0, 2, 3]
  @f: i64[2] = dense [0, 6]
  %h: f32[n, 2, 3] = Reshape(%a, @s)
  %b: f32[n, 6] = Reshape(%h, @f)"""
    found = groups(FLAT.format(middle=middle))
    heads, lanes = [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]
    assert by_name(found, "w", 1) == by_name(found, "o", 0) == [heads, lanes]
    assert by_name(found, "h", 1) == [[0, 1]]
    assert by_name(found, "h", 2) == [[0, 1, 2]]


def test_three_and_two_blocks_of_one_axis_are_told_apart_or_pinned() -> None:
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
    found = groups(FLAT.format(middle=middle))
    for group in found:
        assert ("w", 1) not in owners(group) or not group.free
    assert by_name(found, "w", 1), "a weight's axis is told of, if only why it stays"
