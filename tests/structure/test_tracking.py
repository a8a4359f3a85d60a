"""Tracking groups while their graph is cut: numbers, positions and links of the remaining units."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.ir import Graph, parse, verify
from tersor.ops import TABLE
from tersor.structure import AxisGroup, axis_groups, slice_graph, union
from tersor.structure.links import links
from tersor.structure.tracking import Tracked, follow_cut, remaining_positions, spans, tie_vector

# 3 heads of 2 lanes, in queries, keys and values.
HEADS = """graph main(%x: f32[b, s, 5]) -> (y = %y) {
  @wq: f32[5, 6] = dense normal(0)
  @wk: f32[5, 6] = dense normal(1)
  @wv: f32[5, 6] = dense normal(2)
  @wo: f32[6, 5] = dense normal(3)
  %q: f32[b, s, 6] = tersor.Linear(%x, @wq) {activation = "none"}
  %k: f32[b, s, 6] = tersor.Linear(%x, @wk) {activation = "none"}
  %v: f32[b, s, 6] = tersor.Linear(%x, @wv) {activation = "none"}
  %a: f32[b, s, 6] = Attention(%q, %k, %v) {q_num_heads = 3, kv_num_heads = 3}
  %y: f32[b, s, 5] = tersor.Linear(%a, @wo) {activation = "none"}
}"""


def heads() -> tuple[Graph, dict[str, Tracked]]:
    """The graph and its groups: heads, the lanes of queries and keys, and those of values."""
    graph = parse(HEADS, TABLE)
    tracked = [Tracked(g) for g in axis_groups(graph) if g.free]
    names = {}
    for one in tracked:
        weights = {value.name for value, _ in one.group.axes if value.is_constant}
        kinds = {4: "heads", 2: "meet" if "wq" in weights else "lanes"}
        names[kinds[len(weights)]] = one
    assert len(names) == len(tracked) == 3
    return graph, names


def cut(graph: Graph, tracked: dict[str, Tracked], name: str, units: list[int]) -> None:
    gone = tracked[name].group.positions(units)
    slice_graph(graph, gone)
    verify(graph)
    follow_cut(list(tracked.values()), gone)


def owner(group: AxisGroup, name: str, axis: int) -> list[int]:
    return next(o.tolist() for (v, a), o in group.axes.items() if (v.name, a) == (name, axis))


@pytest.mark.parametrize("order", [["heads", "lanes"], ["lanes", "heads"]])
def test_cutting_heads_then_lanes_equals_cutting_both(order: list[str]) -> None:
    graph, tracked = heads()
    whole, gone = graph.copy(), {"heads": [1], "lanes": [0]}
    together = {t: tracked[t].group.positions(gone[t]) for t in order}
    by_name = {v.name: v for v in whole.values()}
    parts = [{(by_name[v.name], a): at for (v, a), at in p.items()} for p in together.values()]
    slice_graph(whole, union(*parts))
    for name in order:
        cut(graph, tracked, name, gone[name])
    for name, value in whole.constants.items():
        np.testing.assert_array_equal(graph.constants[name].numpy(), value.numpy())
    assert tracked["heads"].original.tolist() == [0, 2]
    assert tracked["lanes"].original.tolist() == [1]
    assert tracked["meet"].original.tolist() == [0, 1]
    assert owner(tracked["heads"].group, "wo", 0) == [0, 1]
    assert owner(tracked["lanes"].group, "wo", 0) == [0, 0]
    assert owner(tracked["meet"].group, "wq", 1) == [0, 1, 0, 1]


def test_original_positions_are_reported() -> None:
    graph, tracked = heads()
    out = (graph.constants["wo"], 0)
    cut(graph, tracked, "heads", [1])
    cut(graph, tracked, "lanes", [0])
    left = remaining_positions(list(tracked.values()), out)
    assert left is not None
    assert left.tolist() == [1, 5]
    assert remaining_positions(list(tracked.values()), (graph.constants["wo"], 1)) is None


def test_links_are_those_of_the_cut_graph() -> None:
    """Criteria look at a group's links: they must fit what was cut by it and by others."""
    graph, tracked = heads()
    cut(graph, tracked, "lanes", [1])
    cut(graph, tracked, "heads", [0])
    now = {
        (link.node, link.size, tuple((e.axis, e.place, tuple(e.owner)) for e in link.ends))
        for link in links(graph)
    }
    for one in tracked.values():
        for link in one.group.links:
            own = tuple((e.axis, e.place, tuple(e.owner)) for e in link.ends)
            assert (link.node, link.size, own) in now


def test_renumbered_pinned_units_keep_their_reasons() -> None:
    graph = parse(HEADS, TABLE)
    group = next(g for g in axis_groups(graph) if g.free and g.units == 3)
    group.pinned = {2: "needed"}
    tracked = Tracked(group)
    gone = group.positions([0])
    slice_graph(graph, gone)
    tracked.follow(gone)
    assert group.pinned == {1: "needed"}
    assert group.free == [0]
    assert tracked.original.tolist() == [1, 2]


def test_a_cut_elsewhere_changes_nothing() -> None:
    _, tracked = heads()
    before = {axis: o.copy() for axis, o in tracked["meet"].group.axes.items()}
    only_values = {
        axis: at
        for axis, at in tracked["lanes"].group.positions([0]).items()
        if axis not in tracked["meet"].group.axes
    }
    tracked["meet"].follow(only_values)
    for axis, o in before.items():
        np.testing.assert_array_equal(tracked["meet"].group.axes[axis], o)


def test_a_new_vector_joins_the_groups_of_its_axis() -> None:
    graph, tracked = heads()
    bias = graph.constant(np.zeros(6, np.float32), "bias")
    value = next(v for v in graph.values() if v.name == "v")
    tie_vector(list(tracked.values()), bias, (value, 2))
    assert owner(tracked["heads"].group, "bias", 0) == [0, 0, 1, 1, 2, 2]
    assert (bias, 0) not in tracked["meet"].group.axes
    cut_at = tracked["lanes"].group.positions([0])
    assert cut_at[bias, 0].tolist() == [0, 2, 4]
    tracked["lanes"].follow(cut_at)
    assert tracked["lanes"].positions[bias, 0].tolist() == [1, 3, 5]


@pytest.mark.parametrize(
    ("units", "text"),
    [([], ""), ([4], "4"), ([0, 1, 2], "0-2"), ([5, 0, 2, 1, 7, 8], "0-2,5,7-8"), ([1, 3], "1,3")],
)
def test_spans(units: list[int], text: str) -> None:
    assert spans(units) == spans(np.array(units, np.int64)) == text
