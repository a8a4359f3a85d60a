"""Levels that keep tiles full, curves, and savings by a clock whose times are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from tersor.analysis.feeds import make_feed
from tersor.ir import Graph, Value, parse
from tersor.ops import TABLE
from tersor.pruning import budgets
from tersor.pruning.unit_order import Order
from tersor.structure import AxisGroup, axis_groups
from tersor.structure.costs import costs, macs, parameters


def group(units: int, each: int = 1, pinned: Sequence[int] = ()) -> AxisGroup:
    axis = (Value("w", TABLE_TYPE, Graph("g")), 0)
    return AxisGroup(
        "g", units, {axis: np.repeat(np.arange(units), each)}, dict.fromkeys(pinned, "needed")
    )


TABLE_TYPE = parse("graph main(%x: f32[2]) -> (y = %x) {\n}", TABLE).inputs[0].type


@pytest.mark.parametrize(
    ("units", "each", "found"),
    [
        (6, 1, [0, 1, 2, 3, 4, 5]),  # few units: one by one
        (4, 64, [0, 1, 2, 3]),  # heads
        (12, 32, list(range(12))),
        (32, 1, [0, 4, 8, 12, 16, 20, 24, 28]),  # lanes: what is left is a multiple of 4
        (30, 1, [0, 2, 6, 10, 14, 18, 22, 26]),
        (128, 1, [0, 16, 32, 48, 64, 80, 96, 112]),  # of long axes, of 16
        (1, 1, [0]),
    ],
)
def test_levels_leave_whole_tiles(units: int, each: int, found: list[int]) -> None:
    assert budgets.levels(group(units, each)) == found


@pytest.mark.parametrize("units", [100, 384, 1000, 1536, 5000])
def test_there_are_not_many_levels_and_all_leave_tiles_and_a_unit(units: int) -> None:
    found = budgets.levels(group(units))
    tile = 16 if units >= 128 else 4
    assert 4 < len(found) <= budgets.LEVELS + 1
    assert found == sorted(set(found))
    assert all((units - g) % tile == 0 and g < units for g in found[1:])


def test_units_that_must_stay_limit_the_levels() -> None:
    assert budgets.levels(group(8, pinned=[0, 1, 2, 3, 4])) == [0, 1, 2, 3]
    assert budgets.levels(group(8, pinned=range(8))) == [0]


def test_a_curve_has_the_levels_that_the_order_reaches() -> None:
    order = Order(np.array([3, 1, 2]), np.array([0.5, 1.0, 4.0]))
    found = budgets.curve(order, [0, 1, 3, 5], scale=2)
    assert list(found.levels) == [0, 1, 3]
    assert list(found.losses) == [0, 1, 8]


MLP = """graph main(%x: f32[n, 8]) -> (y = %y) {
  @w1: f32[8, 24] = dense normal(0)
  @w2: f32[24, 24] = dense normal(1)
  @w3: f32[24, 4] = dense normal(2)
  %a: f32[n, 24] = tersor.Linear(%x, @w1) {activation = "relu"}
  %b: f32[n, 24] = tersor.Linear(%a, @w2) {activation = "relu"}
  %y: f32[n, 4] = tersor.Linear(%b, @w3) {activation = "none"}
}"""


@dataclass
class Clock:
    """A millisecond for each hundred weights; ``wrong``: what is added at a number of weights."""

    sizes: Sequence[Mapping[str, int]] = ({"n": 1}, {"n": 9})
    wrong: Mapping[float, float] = field(default_factory=dict)
    feeds: list[tuple[int, ...]] = field(default_factory=list)

    def feed(self, graph: Graph, sizes: Mapping[str, int]) -> Mapping[str, np.ndarray]:
        return make_feed(graph, sizes)

    def __call__(self, graph: Graph, feed: Mapping[str, np.ndarray]) -> float:
        self.feeds.append(feed["x"].shape)
        held = sum(parameters(graph).values())
        return held / 100 + self.wrong.get(held, 0.0)


def measured(clock: Clock) -> tuple[list[list[int]], float, list[list[float]]]:
    graph = parse(MLP, TABLE)
    groups = [g for g in axis_groups(graph) if g.free]
    at = [budgets.levels(g) for g in groups]
    whole, savings = budgets.by_latency(graph, groups, at, clock, lambda done, total, what: None)
    return at, whole, savings


def test_savings_are_what_the_clock_says_at_the_largest_size() -> None:
    clock = Clock()
    at, whole, savings = measured(clock)
    assert at == [[0, 4, 8, 12, 16, 20]] * 2
    assert whole == pytest.approx((8 * 24 + 24 * 24 + 24 * 4) / 100)
    # Between levels that are measured the savings lie on lines, as these do.
    np.testing.assert_allclose(savings[0], [(8 + 24) * g / 100 for g in at[0]])
    np.testing.assert_allclose(savings[1], [(24 + 4) * g / 100 for g in at[1]])
    assert set(clock.feeds) == {(9, 8)}


def test_more_units_gone_never_save_less() -> None:
    weights = 8 * 24 + 24 * 24 + 24 * 4
    noise = {weights - 32 * 8: 2.0, weights - 32 * 16: 3.0, weights - 28 * 4: 99.0}
    at, _, savings = measured(Clock(wrong=noise))
    assert savings[0] == sorted(savings[0])
    assert savings[1][:2] == [0, 0]  # Slower than the whole: it saves nothing.
    assert savings[0][2] == savings[0][1]
    assert savings[0][-1] == pytest.approx(32 * at[0][-1] / 100)


def test_groups_that_are_alike_are_measured_once() -> None:
    text = MLP.replace("f32[8, 24]", "f32[24, 24]").replace("f32[n, 8]", "f32[n, 24]")
    text = text.replace("f32[24, 4]", "f32[24, 24]").replace("f32[n, 4]", "f32[n, 24]")
    graph = parse(text, TABLE)
    groups = [g for g in axis_groups(graph) if g.free]
    at = [budgets.levels(g) for g in groups]
    clock = Clock()
    _, savings = budgets.by_latency(graph, groups, at, clock, lambda done, total, what: None)
    assert len(clock.feeds) == 1 + len(at[0]) - 1
    assert savings[0] == savings[1]


def test_work_is_counted_at_the_largest_size() -> None:
    graph = parse(MLP, TABLE)
    assert budgets.largest_sizes(graph, Clock()) == {"n": 9}
    assert budgets.largest_sizes(graph, None) == {"n": 8}
    static = parse(MLP.replace("[n,", "[5,"), TABLE)
    assert budgets.largest_sizes(static, None) == {}


def test_counts_are_those_of_the_graph_that_is_cut() -> None:
    graph = parse(MLP, TABLE)
    groups = [g for g in axis_groups(graph) if g.free]
    for measure, each in ((macs({"n": 5}), 5), (parameters, 1)):
        cost = costs(graph, groups, measure).of
        for a, b in ((0, 0), (4, 0), (8, 20), (20, 12)):
            left = 8 * (24 - a) + (24 - a) * (24 - b) + (24 - b) * 4
            assert cost([a, b]) == pytest.approx(each * left)
