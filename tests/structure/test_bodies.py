"""Axes that are the same inside and outside a subgraph (``OpDef.bound``), by brute force: cutting a position
of an input, wherever the ties lead, equals cutting it from the outputs; the subgraphs here treat all
positions alike."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.backends.ort import Evaluator
from tersor.ir import Graph, parse, verify
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.structure import slice_graph
from tersor.structure.labels import Labels
from tersor.structure.links import Axis, links, links_by_axis

IF = """graph main(%c: bool[], %x: f32[2, 3], %z: f32[2, 3]) -> (y = %y, t = %t) {
  %y: f32[2, 3], %t: f32[3, 2] = If(%c) {else_branch = graph else() -> (a = %p, b = %q) {
      %p: f32[2, 3] = Mul(%x, %z)
      %q: f32[3, 2] = Transpose(%z)
    }, then_branch = graph then() -> (a = %r, b = %s) {
      %r: f32[2, 3] = Tanh(%x)
      %s: f32[3, 2] = Transpose(%r)
    }}
}"""
LOOP = """graph main(%times: i64[], %x: f32[2, 3], %z: f32[3]) -> (y = %y, all = %all) {
  %y: f32[2, 3], %all: f32[?, 3, 2] = Loop(%times, _, %x) {body = graph body(%turn: i64[], %going: bool[], %held: f32[2, 3]) -> (on = %on, next = %n, row = %r) {
      %on: bool[] = Identity(%going)
      %n: f32[2, 3] = Add(%held, %z)
      %r: f32[3, 2] = Transpose(%held)
    }}
}"""
SCAN = """graph main(%start: f32[2], %x: f32[2, 5, 4]) -> (last = %last, all = %all) {
  %last: f32[2], %all: f32[4, 2, 5] = Scan(%start, %x) {body = graph step(%held: f32[2], %row: f32[2, 4]) -> (next = %n, out = %o) {
      @one: i64[1] = dense [1]
      %h: f32[2, 1] = Unsqueeze(%held, @one)
      %t: f32[2, 4] = Mul(%row, %h)
      %o: f32[4, 2] = Transpose(%t)
      %n: f32[2] = Tanh(%held)
    }, num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [-1], scan_input_directions = [1]}
}"""
# (graph, input, its axis, axes of each output that lose the position)
CASES = [
    ("if", IF, "x", 0, [(0,), (1,)]),
    ("if", IF, "x", 1, [(1,), (0,)]),
    ("if", IF, "z", 1, [(1,), (0,)]),
    ("loop", LOOP, "x", 0, [(0,), (2,)]),
    ("loop", LOOP, "x", 1, [(1,), (1,)]),
    ("loop", LOOP, "z", 0, [(1,), (1,)]),
    ("scan", SCAN, "start", 0, [(0,), (1,)]),
    ("scan", SCAN, "x", 0, [(0,), (1,)]),
    ("scan", SCAN, "x", 2, [(), (0,)]),
]


def feed(graph: Graph, flag: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feed: dict[str, np.ndarray] = {}
    for v in graph.inputs:
        if v.tensor.dtype.is_float:
            feed[v.name] = rng.standard_normal(v.tensor.shape).astype(np.float32)
        else:
            feed[v.name] = np.array(flag if v.name == "c" else 3)
    return feed


def tied(graph: Graph, start: Axis, gone: list[int]) -> dict[Axis, np.ndarray]:
    """All that goes with the positions ``gone`` of an axis."""
    spread = Labels(links_by_axis(links(graph)))
    size = start[0].tensor.shape[start[1]]
    spread.spread(start, np.arange(size))
    return {axis: np.flatnonzero(np.isin(labels, gone)) for axis, labels in spread.axes.items()}


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize(("name", "text", "given", "axis", "lost"), CASES)
def test_positions_cut_outside_are_cut_inside(
    name: str, text: str, given: str, axis: int, lost: list[tuple[int, ...]], flag: bool
) -> None:
    graph = parse(text, TABLE)
    verify(graph)
    cut = graph.copy()
    value = next(v for v in cut.inputs if v.name == given)
    gone = [1]
    positions = tied(cut, (value, axis), gone)
    slice_graph(cut, positions)
    verify(cut)
    inputs = feed(graph, flag)
    left = dict(inputs)
    for v in cut.inputs:
        for at in range(len(v.tensor.dims or ())):
            if (v, at) in positions:
                left[v.name] = np.delete(left[v.name], gone, at)
    for run in (evaluate, Evaluator()):
        whole, got = run(graph, inputs), run(cut, left)
        for axes, want, mine in zip(lost, whole.values(), got.values(), strict=True):
            for at in axes:
                want = np.delete(want, gone, at)
            assert mine.shape == want.shape
            # One operation after another on the same numbers, in one library and the other.
            np.testing.assert_allclose(mine, want, rtol=1e-6, atol=1e-6)


def test_axes_scanned_over_have_no_units() -> None:
    """A step is no position of what the body sees."""
    graph = parse(SCAN, TABLE)
    value = next(v for v in graph.inputs if v.name == "x")
    feed = {(end.axis, link.node.op) for link in links(graph) for end in link.ends}
    assert ((value, 1), "Scan") not in feed
    assert ((value, 0), "Scan") in feed
