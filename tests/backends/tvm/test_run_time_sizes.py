"""Sizes that only a run tells: branches that give other dims or ranks, and what is chosen by value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="the tvm backend is not installed")

from contract import Run, compiled_in_tvm, run_in_onnx

from tersor.backends.tvm.sizes import name_sizes
from tersor.errors import Unsupported
from tersor.ir import Graph, parse
from tersor.ops import TABLE

Feed = dict[str, np.ndarray]

# One equal dim; a bool and an integer result; what follows is computed of the names.
BRANCHES = """graph main(%c: bool[], %x: f32[n, 3]) -> (y = %y, m = %m, s = %s) {
  @zero: i64[1] = dense [0]
  @axis: i64[1] = dense [1]
  @half: f32[] = dense [0.5]
  %a: f32[?, 3], %m: bool[?, 3] = If(%c) {else_branch = graph other() -> (o = %x, p = %l) {
    %l: bool[n, 3] = Less(%x, @half)
  }, then_branch = graph taken() -> (t = %t, q = %g) {
    %t: f32[2*n, 3] = Concat(%x, %x) {axis = 0}
    %g: bool[2*n, 3] = Greater(%t, @half)
  }}
  %y: f32[?, 3] = Relu(%a)
  %s: i64[2] = Shape(%y) {start = 0}
}"""
# Two deep, and a branch that reads what another If made.
NESTED = """graph main(%c: bool[], %d: bool[], %x: f32[n, 2]) -> (y = %y) {
  %a: f32[?, 2] = If(%c) {else_branch = graph other() -> (o = %x) {
  }, then_branch = graph taken() -> (t = %t) {
    %t: f32[?, 2] = If(%d) {else_branch = graph inner_other() -> (p = %p) {
      %p: f32[3*n, 2] = Concat(%x, %x, %x) {axis = 0}
    }, then_branch = graph inner() -> (q = %q) {
      %q: f32[2*n, 2] = Concat(%x, %x) {axis = 0}
    }}
  }}
  %y: f32[?, 2] = If(%d) {else_branch = graph last_other() -> (r = %r) {
    %r: f32[?, 2] = Neg(%a)
  }, then_branch = graph last() -> (u = %u) {
    %u: f32[?, 2] = Concat(%a, %x) {axis = 0}
  }}
}"""
# Other ranks, of which the reader takes one: where the flag says otherwise a run fails.
RANKS = """graph main(%c: bool[], %x: f32[2, n]) -> (y = %y) {
  @first: i64[1] = dense [0]
  %a: f32[*] = If(%c) {else_branch = graph other() -> (o = %u) {
    %u: f32[1, 2, n] = Unsqueeze(%x, @first)
  }, then_branch = graph taken() -> (t = %x) {
  }}
  %y: f32[?, ?] = Transpose(%a) {perm = [1, 0]}
}"""
CHOSEN = """graph main(%x: f32[n, m], %f: bool[n]) -> (i = %i, g = %g, k = %k, u = %u, w = %w) {
  @half: f32[] = dense [0.5]
  %b: bool[n, m] = Greater(%x, @half)
  %i: i64[2, ?] = NonZero(%b)
  %t: i64[?, 2] = Transpose(%i) {perm = [1, 0]}
  %g: f32[?] = GatherND(%x, %t) {batch_dims = 0}
  %k: f32[?, m] = Compress(%x, %f) {axis = 0}
  %flat: i64[?] = Cast(%g) {saturate = 1, to = 7}
  %u: i64[?], %first: i64[?], %w: i64[?], %count: i64[?] = Unique(%flat) {sorted = 1}
}"""
# What is carried grows from turn to turn, by a branch.
GROWS = """graph main(%turns: i64[], %x: f32[n, 2]) -> (y = %y) {
  @yes: bool[] = dense [true]
  %y: f32[?, 2] = Loop(%turns, @yes, %x) {body = graph body(%i: i64[], %go: bool[], %h: f32[r, 2]) -> (on = %go, next = %next) {
    @one: i64[] = dense [1]
    %late: bool[] = Less(%i, @one)
    %next: f32[?, 2] = If(%late) {else_branch = graph other() -> (o = %h) {
    }, then_branch = graph taken() -> (t = %t) {
      %t: f32[?, 2] = Concat(%h, %x) {axis = 0}
    }}
  }}
}"""
# Numbers of the host, of which sizes are computed; what is made has its Shape read, and is read on.
COMPUTED = """graph main(%x: f32[n, m], %first: i64[2], %last: i64[2], %step: i64[2], %pads: i64[4], %k: i64[2], %v: i64[1], %to: i64[2]) -> (cut = %cut, s = %s, z = %z, p = %p, t = %t, e = %e, f = %f, g = %g, r = %r, j = %j) {
  @axes: i64[2] = dense [1, 0]
  @none: i64[] = dense [0]
  @one: i64[] = dense [1]
  @half: f32[] = dense [0.5]
  @zeros: i64[1] = dense [0]
  @ones: i64[1] = dense [1]
  %cut: f32[?, ?] = Slice(%x, %first, %last, @axes, %step)
  %s: i64[2] = Shape(%cut) {start = 0}
  %z: i64[] = Size(%cut)
  %p: f32[?, ?] = Pad(%x, %pads, @half) {mode = "constant"}
  %t: f32[?, ?] = Tile(%cut, %k)
  %row: f32[1, m] = Slice(%x, @zeros, @ones, @zeros, @ones)
  %wide: i64[2] = Concat(%v, @ones) {axis = 0}
  %e: f32[?, m] = Expand(%row, %wide)
  %f: f32[?] = ConstantOfShape(%v)
  %n: i64[] = Squeeze(%v)
  %g: i64[?] = Range(@none, %n, @one) {stash_type = 1}
  %w: f32[] = Cast(%n) {saturate = 1, to = 1}
  %r: f32[?] = Range(@half, %w, @half) {stash_type = 1}
  %j: f32[?, ?] = Reshape(%p, %to) {allowzero = 0}
}"""
TEXTS = {
    "branches": BRANCHES,
    "nested": NESTED,
    "ranks": RANKS,
    "chosen": CHOSEN,
    "grows": GROWS,
    "computed": COMPUTED,
}


def graph_of(name: str) -> Graph:
    return parse(TEXTS[name], TABLE)


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    made = compiled_in_tvm(*(name_sizes(graph_of(name)) for name in TEXTS))
    return dict(zip(TEXTS, made, strict=True))


def check(runs: dict[str, Run], name: str, feed: Feed) -> None:
    want: list[Any] = run_in_onnx(graph_of(name), feed, reference=False)
    for mine, theirs in zip(runs[name](feed), want, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, np.shape(theirs))
        np.testing.assert_array_equal(mine, theirs)


def rows(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape[0]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("c", [True, False])
def test_branches_of_other_dims(runs: dict[str, Run], c: bool, count: int) -> None:
    check(runs, "branches", {"c": np.array(c), "x": rows(count, 3)})


@pytest.mark.parametrize("c", [True, False])
@pytest.mark.parametrize("d", [True, False])
def test_branches_within_branches(runs: dict[str, Run], c: bool, d: bool) -> None:
    for count in (1, 4):
        check(runs, "nested", {"c": np.array(c), "d": np.array(d), "x": rows(count, 2)})


def test_a_rank_that_no_reader_takes_fails_as_the_model_does(runs: dict[str, Run]) -> None:
    check(runs, "ranks", {"c": np.array(True), "x": rows(2, 3)})
    with pytest.raises(Exception, match=r"(?i)rank|dim|shape"):
        runs["ranks"]({"c": np.array(False), "x": rows(2, 3)})


@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (3, 0)])
def test_what_is_chosen_by_value(runs: dict[str, Run], shape: tuple[int, int]) -> None:
    flags = np.arange(shape[0]) % 2 == 1
    check(runs, "chosen", {"x": 3 * rows(*shape), "f": flags})
    check(runs, "chosen", {"x": np.zeros(shape, np.float32), "f": ~flags})


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_what_a_loop_carries_may_grow(runs: dict[str, Run], turns: int) -> None:
    check(runs, "grows", {"turns": np.array(turns), "x": rows(2, 2)})


@pytest.mark.parametrize(
    ("first", "last", "step"),
    [
        ([1, 0], [2, 9], [1, 2]),
        ([-2, 5], [2**63 - 1, -(2**63)], [1, -2]),
        ([9, -1], [0, -9], [-2, -1]),
        ([2, 3], [1, 3], [1, 1]),
    ],
)
@pytest.mark.parametrize("count", [1, 4])
def test_numbers_of_the_run_tell_sizes(
    runs: dict[str, Run], first: list[int], last: list[int], step: list[int], count: int
) -> None:
    feed = {
        "x": rows(4, 6),
        "first": np.array(first),
        "last": np.array(last),
        "step": np.array(step),
        "pads": np.array([count, -1, 0, count]),
        "k": np.array([2, count]),
        "v": np.array([count]),
        "to": np.array([0, -1] if count == 1 else [-1, 2]),
    }
    check(runs, "computed", feed)


def test_an_input_has_the_rank_that_its_reader_takes() -> None:
    text = """graph main(%x: f32[*]) -> (y = %y) {
  %r: f32[*] = Relu(%x)
  %y: f32[?, ?, ?] = Transpose(%r) {perm = [0, 2, 1]}
}"""
    graph = name_sizes(parse(text, TABLE))
    assert str(graph.inputs[0].type) == "f32[size_0, size_1, size_2]"
    assert str(graph.outputs[0].type) == "f32[size_0, size_2, size_1]"
    with pytest.raises(Unsupported, match=r"input 'x': TVM needs its rank.*declare"):
        name_sizes(parse("graph main(%x: f32[*]) -> (y = %y) {\n %y: f32[*] = Relu(%x)\n}", TABLE))


def test_what_has_a_computed_size_follows_the_definition_of_that_size() -> None:
    """Fusion merges the last Mul with the arithmetic on %n, which comes before the size of %r is known."""
    graph = parse(
        """graph main(%n: i64[1]) -> (y = %y) {
  @two: f32[] = dense [2.0]
  @zero: i64[] = dense [0]
  @one: i64[] = dense [1]
  @axis: i64[1] = dense [0]
  %f: f32[1] = Cast(%n) {saturate = 1, to = 1}
  %step: f32[1] = Div(@two, %f)
  %end: i64[] = Squeeze(%n, @axis)
  %r: i64[?] = Range(@zero, %end, @one)
  %g: f32[?] = Cast(%r) {saturate = 1, to = 1}
  %m: f32[?] = Mul(%g, %step)
  %y: f32[?] = Add(%step, %m)
}""",
        TABLE,
    )
    (run,) = compiled_in_tvm(name_sizes(graph))
    for size in (4, 1, 0):
        feed = {"n": np.array([size])}
        want = run_in_onnx(graph, feed, reference=False)
        for ours, theirs in zip(run(feed), want, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_reshape_between_quotients_of_sizes_is_a_view() -> None:
    """The shift of relative positions (Transformer-XL, Conformer) behind convolutions that halve the length:
    as a kernel, it kept LLVM busy for ever."""
    graph = parse(
        """graph main(%x: f32[b, n, m]) -> (y = %y) {
  @zero: i64[1] = dense [0]
  @one: i64[1] = dense [1]
  @two: i64[1] = dense [2]
  @three: i64[1] = dense [3]
  @ends: i64[1] = dense [9223372036854775807]
  @axis: i64[1] = dense [1]
  %p: f32[b, (n + 1)//2, m] = Slice(%x, @zero, @ends, @axis, @two)
  %q: f32[b, (n + 1)//2, m] = Neg(%p)
  %s: i64[3] = Shape(%q) {start = 0}
  %b: i64[1] = Slice(%s, @zero, @one)
  %n: i64[1] = Slice(%s, @one, @two)
  %m: i64[1] = Slice(%s, @two, @three)
  %t: i64[3] = Concat(%b, %m, %n) {axis = 0}
  %r: f32[b, m, (n + 1)//2] = Reshape(%q, %t)
  %c: f32[b, m - 1, (n + 1)//2] = Slice(%r, @one, @ends, @axis)
  %y: f32[b, m - 1, (n + 1)//2] = Relu(%c)
}""",
        TABLE,
    )
    (run,) = compiled_in_tvm(name_sizes(graph))
    for shape in ((2, 4, 6), (1, 1, 1), (3, 5, 2)):
        feed = {"x": rows(*shape)}
        for ours, theirs in zip(run(feed), run_in_onnx(graph, feed, reference=False), strict=True):
            np.testing.assert_array_equal(ours, theirs)
