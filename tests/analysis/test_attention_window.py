"""What a mask tells by positions."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.analysis.attention_window import attention_window
from tersor.ir import parse
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate

MASK = """graph g(%m: bool[b, 1, 1, s], %n: i64[]) -> (y = %y) {{
    @zero: i64[] = dense [0]
    @one: i64[] = dense [1]
    @three: i64[] = dense [3]
    @rows: i64[3] = dense [0, 1, 3]
    @columns: i64[3] = dense [0, 1, 2]
    %count: i64[s] = Range(@zero, %n, @one)
    %i: i64[1, 1, s, 1] = Unsqueeze(%count, @rows)
    %j: i64[1, 1, 1, s] = Unsqueeze(%count, @columns)
    {body}
}}"""
ALL = "[1, 1, s, s]"


@pytest.mark.parametrize(
    ("body", "left", "right"),
    [
        ("%y: bool[1, 1, s, s] = LessOrEqual(%j, %i)", -1, 0),
        ("%y: bool[1, 1, s, s] = GreaterOrEqual(%i, %j)", -1, 0),
        ("%y: bool[1, 1, s, s] = LessOrEqual(%i, %j)", 0, -1),
        ("%t: bool[1, 1, s, s] = Greater(%j, %i)\n%y: bool[1, 1, s, s] = Not(%t)", -1, 0),
        ("%a: i64[1, 1, s, 1] = Add(%i, @three)\n%y: bool[1, 1, s, s] = Less(%j, %a)", -1, 2),
        ("%a: i64[1, 1, s, 1] = Sub(%i, @three)\n%y: bool[1, 1, s, s] = Greater(%j, %a)", 2, -1),
        ("%a: i64[1, 1, 1, s] = Add(@three, %j)\n%y: bool[1, 1, s, s] = GreaterOrEqual(%a, %i)", 3, -1),
        ("%d: i64[1, 1, s, s] = Sub(%i, %j)\n%a: i64[1, 1, s, s] = Abs(%d)\n"
         "%y: bool[1, 1, s, s] = Less(%a, @three)", 2, 2),
        ("%a: i64[1, 1, s, 1] = Sub(%i, @three)\n%l: bool[1, 1, s, s] = Greater(%j, %a)\n"
         "%c: bool[1, 1, s, s] = LessOrEqual(%j, %i)\n%y: bool[1, 1, s, s] = And(%l, %c)", 2, 0),
    ],
)  # fmt: skip
def test_comparisons_of_positions_are_a_window(body: str, left: int, right: int) -> None:
    graph = parse(MASK.format(body=body), TABLE)
    found = attention_window(graph.outputs[0])
    assert (found.left, found.right, found.rest) == (left, right, ())
    size = 7
    feeds = {"m": np.ones((1, 1, 1, size), bool), "n": np.array(size)}
    (mask,) = evaluate(graph, feeds).values()
    i, j = np.arange(size)[:, None], np.arange(size)
    window = ((left < 0) | (j >= i - left)) & ((right < 0) | (j <= i + right))
    np.testing.assert_array_equal(mask[0, 0], window)


def test_what_is_looked_up_is_left() -> None:
    body = """%c: bool[1, 1, s, s] = LessOrEqual(%j, %i)
    %y: bool[b, 1, s, s] = And(%m, %c)"""
    graph = parse(MASK.format(body=body), TABLE)
    found = attention_window(graph.outputs[0])
    assert (found.left, found.right, list(found.rest)) == (-1, 0, [graph.inputs[0]])


@pytest.mark.parametrize(
    "body",
    [
        "%y: bool[1, 1, s, s] = Equal(%j, %i)",
        "%y: bool[1, 1, s, 1] = LessOrEqual(%i, @three)",
        "%a: i64[1, 1, s, 1] = Sub(%i, @three)\n%y: bool[1, 1, s, s] = LessOrEqual(%j, %a)",
        "%a: i64[1, 1, s, 1] = Mul(%i, @three)\n%y: bool[1, 1, s, s] = LessOrEqual(%j, %a)",
    ],
    ids=["equal", "a number", "not its own key", "steps of three"],
)
def test_other_comparisons_are_masks(body: str) -> None:
    graph = parse(MASK.format(body=body), TABLE)
    found = attention_window(graph.outputs[0])
    assert (found.left, found.right, list(found.rest)) == (-1, -1, graph.outputs)
