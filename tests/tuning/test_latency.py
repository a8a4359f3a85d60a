"""Measuring small graphs: a time a shape, whatever the weights."""

import numpy as np
import pytest

from tersor import compile
from tersor.ir import Graph, parse
from tersor.ops import TABLE
from tersor.pipeline import Context, Pass, registry
from tersor.tuning.latency import Stopwatch

LAYER = """graph main(%x: f32[rows, 16]) -> (y = %y) {
  @w: f32[16, 8] = dense normal(1)
  %y: f32[rows, 8] = tersor.Linear(%x, @w)
}"""


def feed(rows: int) -> dict[str, np.ndarray]:
    return {"x": np.zeros((rows, 16), np.float32)}


def test_what_was_measured_is_known_by_shape() -> None:
    backend = registry.backend("ort")
    watch = Stopwatch(backend, "ort", backend.Choice(), [])
    first = watch(parse(LAYER, TABLE), feed(4))
    assert 0 < first < 1000
    assert watch(parse(LAYER.replace("normal(1)", "normal(2)"), TABLE), feed(4)) == first
    assert len(watch._known) == 1
    watch(parse(LAYER, TABLE), feed(5))
    watch(parse(LAYER.replace("8]", "9]"), TABLE), feed(4))
    assert len(watch._known) == 3


@pytest.mark.parametrize("measure", [True, False])
def test_passes_of_a_compilation_may_measure(
    measure: bool, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    seen: list[object] = []

    def run(self: Pass, graph: Graph, context: Context) -> None:
        seen.append(context.latency and list(context.latency.sizes))

    monkeypatch.setattr(registry.find_pass("dead-code"), "run", run)
    backend = registry.backend("ort")
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    path.write_bytes(backend.build(parse(LAYER, TABLE)))
    recipe = {"passes": [{"name": "dead-code"}]}
    compile(path, recipe=recipe, measure=measure, sizes=[{"rows": 3}])
    # The last is the recipe's; before it the lossless passes ran, which have nothing to measure.
    assert seen[-1] == ([{"rows": 3}] if measure else None)
