"""The cost model against measuring graphs that were cut, several groups at once."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from architectures import ARCHITECTURES, traced
from cutting import chosen, prepared

from tersor.frontends import load_model
from tersor.ir import Graph, parse
from tersor.models import zoo
from tersor.ops import TABLE
from tersor.structure import axis_groups, slice_graph, union
from tersor.structure.costs import Measure, costs, cut_of_copy, macs, parameters

SIZES = {"batch": 3, "length": 7, "sequence": 7}


@cache
def model(name: str) -> Graph:
    if name in ARCHITECTURES:
        return prepared(traced(ARCHITECTURES[name], ARCHITECTURES[name].build("sdpa")))
    workload = zoo.find(name)
    return prepared(load_model(workload.module(), **workload.torch_arguments()).graph)


def check(graph: Graph, measure: Measure, draws: int = 4) -> None:
    """All groups at once, by different shares of each."""
    groups = [g for g in axis_groups(graph) if g.free]
    model = costs(graph, groups, measure)
    assert model.total == sum(measure(graph).values()) > 0
    assert model.of([0] * len(groups)) == model.total
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        gone = [chosen(g, rng.uniform(0, 0.9), rng) for g in groups]
        copy = graph.copy()
        cut = union(*(g.positions(u) for g, u in zip(groups, gone, strict=True)))
        slice_graph(copy, cut_of_copy(cut, copy))
        real = sum(measure(copy).values())
        assert real < model.total
        # Products of a few shares in float64.
        assert model.of([len(u) for u in gone]) == pytest.approx(real, rel=1e-9)


MEASURES: dict[str, Measure] = {"macs": macs(SIZES), "parameters": parameters}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    "name",
    ["bert", "gpt2-lm", "llama", "albert", "lstm", "gru", "resnet", "grouped",
     "bert_tiny", "mobilenet_digits", "text_cnn"],
)  # fmt: skip
def test_the_model_predicts_the_cost_of_cut_graphs(name: str, measure: str) -> None:
    check(model(name), MEASURES[measure])


# c sums over a and b side by side, d over c.
BESIDE = """graph main(%x: f32[n, 3]) -> (y = %y) {
  @a: f32[3, 4] = dense normal(1)
  @b: f32[3, 6] = dense normal(2)
  @c: f32[10, 8] = dense normal(3)
  @d: f32[8, 2] = dense normal(4)
  %p: f32[n, 4] = MatMul(%x, @a)
  %q: f32[n, 6] = MatMul(%x, @b)
  %j: f32[n, 10] = Concat(%p, %q) {axis = 1}
  %k: f32[n, 8] = MatMul(%j, @c)
  %y: f32[n, 2] = MatMul(%k, @d)
}"""


def test_groups_on_one_axis_add_up_and_on_two_axes_multiply() -> None:
    graph = parse(BESIDE, TABLE)
    groups = [g for g in axis_groups(graph) if g.free]
    assert [g.units for g in groups] == [4, 6, 8]
    model = costs(graph, groups, macs({"n": 5}))
    assert model.total == 5 * (3 * 4 + 3 * 6 + 10 * 8 + 8 * 2)
    assert model.of([1, 2, 4]) == pytest.approx(5 * (3 * 3 + 3 * 4 + 7 * 4 + 4 * 2))
    assert model.of([3, 5, 7]) == pytest.approx(5 * (3 * 1 + 3 * 1 + 2 * 1 + 1 * 2))


def test_units_on_two_axes_of_a_weight_cost_quadratically() -> None:
    text = """graph main(%x: f32[s, n, 3]) -> (y = %h) {
  @w: f32[1, 16, 3] = dense normal(1)
  @r: f32[1, 16, 4] = dense normal(2)
  @o: f32[4, 2] = dense normal(3)
  @one: i64[1] = dense [1]
  %y: f32[s, 1, n, 4] = LSTM(%x, @w, @r) {hidden_size = 4}
  %z: f32[s, n, 4] = Squeeze(%y, @one)
  %h: f32[s, n, 2] = MatMul(%z, @o)
}"""
    graph = parse(text, TABLE)
    groups = [g for g in axis_groups(graph) if g.free]
    assert [g.units for g in groups] == [4]
    model = costs(graph, groups, parameters)
    left = [4 * (4 - k) * 3 + 4 * (4 - k) ** 2 + (4 - k) * 2 for k in range(4)]
    assert [model.of([k]) for k in range(4)] == pytest.approx(left)
    assert costs(graph, groups, macs({"s": 2, "n": 5})).of([3]) == pytest.approx(10 * left[3])
