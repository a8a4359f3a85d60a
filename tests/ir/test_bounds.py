"""Comparing symbolic sizes agrees with comparing numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.ir import TensorType, parse
from tersor.ir.bounds import UNBOUNDED, is_at_least, larger, smaller
from tersor.ir.dims import KnownDim, evaluate, parse_dim
from tersor.ops import TABLE

EXPRESSIONS = st.sampled_from(
    ["0", "3", "-2", "a", "b", "2*a", "a + b", "a*b + 1", "a - 4", "a//2", "max(a, 3)", "min(a, b) + 2"]
)  # fmt: skip


def dim(text: str) -> KnownDim:
    parsed = parse_dim(text)
    assert parsed is not None
    return parsed


@given(EXPRESSIONS, EXPRESSIONS, st.integers(0, 40), st.integers(0, 40))
def test_bounds_hold_at_every_size(one: str, other: str, a: int, b: int) -> None:
    left, right, sizes = dim(one), dim(other), {"a": a, "b": b}
    low, high = sorted((evaluate(left, sizes), evaluate(right, sizes)))
    assert evaluate(smaller(left, right), sizes) == low
    assert evaluate(larger(left, right), sizes) == high
    if is_at_least(left, right):
        assert evaluate(left, sizes) >= evaluate(right, sizes)


@pytest.mark.parametrize("size", ["a", "a*b", "3*a + 7", "max(a, 3)", "a//2"])
@pytest.mark.parametrize("bound", [UNBOUNDED, 2**31 - 1, 2**63 - 1])
def test_a_bound_beyond_every_size_is_ignored(size: str, bound: int) -> None:
    assert smaller(bound, dim(size)) == smaller(dim(size), bound) == dim(size)
    assert larger(bound, dim(size)) == bound


def test_numbers_are_compared_exactly() -> None:
    assert smaller(UNBOUNDED, 3 * UNBOUNDED) == UNBOUNDED
    assert larger(3 * UNBOUNDED, UNBOUNDED) == 3 * UNBOUNDED
    assert is_at_least(2 * UNBOUNDED, 2 * UNBOUNDED + 1) is False


@pytest.mark.parametrize(
    ("x", "start", "end", "step", "left"),
    [
        ("a", 0, 10**9, 1, "a"),
        ("a", 0, 2**31 - 1, 1, "a"),
        ("a*b", 0, 10**9, 1, "a*b"),
        ("a", -(10**9), 10**9, 1, "a"),
        ("a", 0, -(10**9), 1, "0"),
        ("a", 2, 10**9, 1, "max(-2 + a, 0)"),
        ("a", 0, 10**9, 2, "(1 + a)//2"),
        ("a", -1, -(10**9), -1, "a"),
        ("a", 10**9, -(10**9), -1, "a"),
        ("3000000000", 0, 10**9, 1, "1000000000"),  # Numbers are compared, not assumed.
        ("a", 0, 10**9 - 1, 1, "min(999999999, a)"),
    ],
)
def test_a_slice_to_an_end_beyond_every_size_goes_to_the_end(
    x: str, start: int, end: int, step: int, left: str
) -> None:
    graph = parse(
        f"""graph main(%x: i8[{x}]) -> (y = %y) {{
          @s: i64[1] = dense [{start}]
          @e: i64[1] = dense [{end}]
          @a: i64[1] = dense [0]
          @p: i64[1] = dense [{step}]
          %y: i8[{left}] = Slice(%x, @s, @e, @a, @p)
        }}""",
        TABLE,
    )
    node = next(iter(graph.nodes))
    graph.infer(node)
    assert isinstance(node.output.type, TensorType)
    assert node.output.type.dims == (dim(left),)


def test_computed_ends_are_bounded_too() -> None:
    graph = parse(
        """graph main(%x: i8[a]) -> (y = %y) {
          @most: i64[1] = dense [1000000000]
          @zero: i64[1] = dense [0]
          %shape: i64[1] = Shape(%x)
          %end: i64[1] = Min(%shape, @most)
          %y: i8[?] = Slice(%x, @zero, %end)
        }""",
        TABLE,
    )
    for node in graph.nodes:
        graph.infer(node)
    assert graph.outputs[0].type == graph.inputs[0].type
