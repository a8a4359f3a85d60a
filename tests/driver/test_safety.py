"""The net: passes that change what a model computes, and what is built otherwise than its graph says."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pytest

import tersor
from tersor.backends.ort import Evaluator
from tersor.driver.safety import check_lossless
from tersor.errors import PassFailed
from tersor.frontends.onnx.exporter import export_model
from tersor.ir import Dense, Graph, parse
from tersor.ops import TABLE
from tersor.pipeline import EXACT, Context, Pass, Pipeline, registry

NET = """graph main(%x: f32[n, 8]) -> (y = %y, z = %z) {
  @w1: f32[8, 8] = dense normal(1)
  @w2: f32[8, 8] = dense normal(2)
  %a: f32[n, 8] = MatMul(%x, @w1)
  %b: f32[n, 8] = Abs(%a)
  %y: f32[n, 8] = MatMul(%b, @w2)
  %z: i64[n] = ArgMax(%y) {axis = -1, keepdims = 0}
}"""


def feeds() -> list[dict[str, np.ndarray]]:
    return [{"x": np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)}]


@dataclass(frozen=True)
class Harmless(Pass):
    keeps = EXACT

    def run(self, graph: Graph, context: Context) -> None:
        return None


@dataclass(frozen=True)
class Wrong(Pass):
    """Claims to keep values, and scales a weight."""

    keeps = EXACT
    by: float = 3.0

    def run(self, graph: Graph, context: Context) -> None:
        weight = graph.constants["w1"]
        graph.set_encoding(weight, Dense(weight.numpy() * np.float32(self.by)))


def checked(steps: list[Pass], run: Any = None) -> None:
    graph = parse(NET, TABLE)
    after = Pipeline(steps).run(graph)
    check_lossless(steps, graph, after, feeds(), run or Evaluator())


@pytest.mark.parametrize("place", [0, 2, 4])
def test_the_pass_that_changes_what_a_model_computes_is_found(place: int) -> None:
    steps: list[Pass] = [Harmless()] * 4
    steps.insert(place, Wrong())
    with pytest.raises(PassFailed) as caught:
        checked(steps)
    assert str(caught.value) == (
        f"wrong (pass {place + 1} of 5) changes what the model computes: output y has a relative error of "
        "2; this is a bug in Tersor, please report it; nothing is written"
    )
    with pytest.raises(PassFailed, match="elements of output y became NaN or infinite"):
        checked([Wrong(by=np.inf)])


def test_where_rounding_alone_changes_everything_no_pass_is_blamed() -> None:
    """As in a model that quantizes what it computes, on inputs that mean nothing."""
    angle = "%b: f32[n, 8] = Mul(%a, @much)\n  %c: f32[n, 8] = Sin(%b)"
    text = NET.replace("%b: f32[n, 8] = Abs(%a)", angle).replace("MatMul(%b,", "MatMul(%c,")
    graph = parse(text.replace("  @w1", "  @much: f32[] = dense [1e6]\n  @w1", 1), TABLE)
    after = Pipeline([Wrong(by=1.00001)]).run(graph)
    (said,) = check_lossless([Wrong(by=1.00001)], graph, after, feeds(), Evaluator())
    assert said.endswith("whether lossless passes are exact is unknown")
    assert check_lossless([Harmless()], graph, graph, feeds(), Evaluator()) == []


def test_rounding_is_let_through_and_so_is_what_cannot_be_run() -> None:
    checked([Wrong(by=1 + 1e-5)])

    def refuses(graph: Graph, feed: Any) -> Any:
        raise tersor.errors.InvalidModel("not this one")

    checked([Wrong()], refuses)


def test_a_compilation_with_such_a_pass_is_refused_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    usual = registry.optimization()
    monkeypatch.setattr(registry, "optimization", lambda: [Wrong(), *usual])
    model = export_model(parse(NET, TABLE))
    with pytest.raises(PassFailed, match=r"^wrong \(pass 1 of \d+\) changes what"):
        tersor.compile(model, recipe="fp32", calibration=feeds(), measure=False)


@pytest.mark.parametrize("convert", [False, True])
def test_what_is_built_otherwise_than_the_graph_says_is_refused(
    monkeypatch: pytest.MonkeyPatch, convert: bool
) -> None:
    """A rule of lowering that is wrong: the node is named."""

    def wrong(graph: Graph, node: Any, lowering: Any) -> Any:
        if lowering.options.portable:
            return None  # The reference runtime's own graphs are as they were.
        return [graph.emit("Sigmoid", [node.inputs[0]])]

    monkeypatch.setitem(import_module("tersor.backends.ort.lower").RULES, "Abs", wrong)
    model = export_model(parse(NET, TABLE))
    with pytest.raises(PassFailed) as caught:
        if convert:
            tersor.convert(model, [Harmless()], calibration=feeds())
        else:
            own = {"passes": [{"name": "dead-code"}]}
            tersor.compile(model, recipe=own, calibration=feeds(), measure=False)
    told = str(caught.value)
    assert told.startswith(
        "the model built for runtime ort does not compute what its graph says, first at Abs"
    )
