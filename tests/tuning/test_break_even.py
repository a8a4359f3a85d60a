"""Whether parts pay: measured at the sizes that count, else by count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tersor.errors import InvalidModel
from tersor.ir import Graph, Value, parse
from tersor.ops import TABLE
from tersor.tuning.break_even import concrete_types, weigh

TEXT = "graph main(%x: f32[batch, {dim}]) -> (y = %y) {{\n  %y: f32[batch, {dim}] = Relu(%x)\n}}"
SIZES = ({"batch": 2}, {"batch": 8}, {"batch": 8}, {"batch": 0})


class Timed:
    """Milliseconds of Relu and of Neg, an element each."""

    def __init__(self, relu: float, neg: float, sizes: Any = SIZES) -> None:
        self.of, self.sizes = {"Relu": relu, "Neg": neg}, sizes

    def __call__(self, graph: Graph, feed: Mapping[str, np.ndarray]) -> float:
        [node] = graph.nodes
        return self.of[node.op] * feed["x"].size


def reads(dim: object = 3) -> Value:
    return parse(TEXT.format(dim=dim), TABLE).inputs[0]


def relu(graph: Graph, x: Value) -> Value:
    return graph.emit("Relu", [x])


def neg(graph: Graph, x: Value) -> Value:
    return graph.emit("Neg", [x])


def test_each_size_that_has_elements_is_measured_once_the_largest_first() -> None:
    assert [t.shape for t in concrete_types(reads(), Timed(1, 1))] == [(8, 3), (2, 3)]


def test_what_is_measured_decides() -> None:
    verdict = weigh(Timed(1, 0.5), reads(), relu, neg, (10, 9))
    assert verdict.pays
    assert (
        verdict.numbers == "12.000 ms against 24.000 ms measured for the dense layer on f32[8, 3]"
    )
    assert not weigh(Timed(1, 1), reads(), relu, neg, (10, 9)).pays
    assert weigh(Timed(1, 0.85), reads(), relu, neg, (10, 8), share=0.9).pays
    assert not weigh(Timed(1, 0.95), reads(), relu, neg, (10, 8), share=0.9).pays


@pytest.mark.parametrize(
    ("latency", "dim"),
    [(None, 3), (Timed(1, 9, ()), 3), (Timed(1, 9), "other"), (Timed(1, 9), "?")],
)
def test_by_count_where_nothing_can_be_measured(latency: Any, dim: object) -> None:
    verdict = weigh(latency, reads(dim), relu, neg, (10, 9))
    assert verdict.pays
    assert verdict.numbers == "9 multiplications per row against 10 (counted, not measured)"


def test_more_multiplications_are_not_measured() -> None:
    assert not weigh(Timed(1, 0), reads(), relu, neg, (10, 10)).pays


def test_what_the_runtime_refuses_does_not_pay() -> None:
    class Refuses(Timed):
        def __call__(self, graph: Graph, feed: Mapping[str, np.ndarray]) -> float:
            raise InvalidModel("no kernel for Neg")

    verdict = weigh(Refuses(1, 1), reads(), relu, neg, (10, 9))
    assert (verdict.pays, verdict.numbers) == (False, "they cannot be measured: no kernel for Neg")
