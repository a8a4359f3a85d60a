"""A floor under what a recipe costs: where it stops, what it refuses, and what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import tersor
from tersor.backends.ort import Evaluator
from tersor.driver.recipe import Recipe
from tersor.errors import InvalidOption
from tersor.frontends.onnx.exporter import export_model
from tersor.ir import Dense, parse
from tersor.numerics.fidelity import fidelity
from tersor.ops import TABLE
from tersor.pipeline.report import FEW_ROWS, Remark
from tersor.statistics.thinning import held_out

# Hidden neurons that all matter: random weights, and inputs that fill their space.
MLP = """graph main(%x: f32[n, 16]) -> (y = %y) {
  @w1: f32[16, 64] = dense normal(0)
  @w2: f32[64, 64] = dense normal(2)
  @w3: f32[64, 8] = dense normal(3)
  %a: f32[n, 64] = MatMul(%x, @w1)
  %h: f32[n, 64] = Relu(%a)
  %b: f32[n, 64] = MatMul(%h, @w2)
  %g: f32[n, 64] = Relu(%b)
  %y: f32[n, 8] = MatMul(%g, @w3)
}"""


def mlp(text: str = MLP, **given: np.ndarray) -> onnx.ModelProto:
    graph = parse(text, TABLE)
    for name, array in given.items():
        graph.set_encoding(graph.constants[name], Dense(array.astype(np.float32)))
    return export_model(graph)


def rows(count: int = 4, size: int = 64) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((size, 16)).astype(np.float32)} for _ in range(count)]


def compiled(recipe: Any = "prune", model: onnx.ModelProto | None = None, **more: Any) -> Any:
    given = {"calibration": rows(), "measure": False, **more}
    return tersor.compile(model or mlp(), recipe=recipe, **given)


def notes(artifact: Any) -> list[Remark]:
    return [note for step in artifact.report.passes for note in step.notes]


def test_a_shipped_recipe_stops_where_the_floor_is() -> None:
    free = compiled(settings={"floor": 0})
    keeps = free.report.fidelity.kept  # What pruning to 0.75 does.
    assert 0.95 < keeps < 0.998
    made = compiled(settings={"floor": 0.998})
    assert made.report.fidelity.kept >= 0.998
    (told,) = [note for note in notes(made) if "stopped at" in note.reason]
    assert told.reason.startswith(
        f"at full strength it keeps {keeps:.4g} of the outputs; the floor is 0.998: "
    )
    assert len(free.model) < len(made.model) < len(compiled("fp32").model)  # It did not give up.
    assert made.manifest["recipe"]["floor"] == 0.998
    assert compiled().model == free.model and compiled().manifest["recipe"]["floor"] == 0.95


def test_where_nothing_keeps_it_nothing_goes() -> None:
    made = compiled(settings={"floor": 1})
    assert any(
        note.reason.startswith("left out: at full strength it keeps 0.") for note in notes(made)
    )
    assert made.report.fidelity.kept > 1 - 1e-6
    feed = rows(1)[0]
    np.testing.assert_allclose(
        made.run(feed)["y"], compiled("fp32").run(feed)["y"], rtol=1e-4, atol=1e-3
    )


def test_a_budget_that_was_asked_for_is_refused_with_the_nearest_point() -> None:
    with pytest.raises(InvalidOption) as caught:
        compiled(settings={"macs": 0.3})
    told = str(caught.value)
    assert told.startswith("prune-structure{macs=0.3} keeps 0.") and "the floor is 0.95" in told
    nearest = told.partition("prune-structure{macs=")[2].partition("prune-structure{macs=")[2]
    share = float(nearest.partition("}")[0])
    lower = float(told.rpartition("floor=")[2].rstrip(")"))
    assert compiled(settings={"macs": share}).report.fidelity.kept >= 0.95
    assert compiled(settings={"macs": 0.3, "floor": lower}).report.fidelity.kept >= lower


def test_a_budget_out_of_reach_is_refused_with_what_is_least() -> None:
    text = MLP.replace("-> (y = %y)", "-> (y = %y, g = %g)")  # The second neurons are an output.
    settings = {"macs": 0.05, "floor": 0}
    with pytest.raises(
        InvalidOption, match=r"the budget is not met: 0\.\d+ is the least that can be left"
    ):
        compiled(model=mlp(text), settings=settings)


def test_layers_that_cost_most_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantizing so coarsely that the floor is missed, by the second layer most of all."""
    from tersor.passes.quantize import quantize_dynamic

    exact = quantize_dynamic.quantize_weight

    def coarse(weight: np.ndarray, axis: int, **more: Any) -> Any:
        held = exact(weight, axis, **more)
        if weight.shape != (64, 64):
            return held
        rough = np.round(held.values / 64.0).clip(-1, 1) * 64
        return tersor.ir.Affine(rough.astype(np.int8), held.scale, held.zero_point, axis=held.axis)

    def nearest(weights: Any, xtx: np.ndarray, sums: Any) -> Any:
        return [held for _, held in weights]

    monkeypatch.setattr(quantize_dynamic, "quantize_weight", coarse)
    monkeypatch.setattr(quantize_dynamic, "round_in_order", nearest)
    more = {"quantize-dynamic.min_elements": 16, "quantize-dynamic.max_error": 10}
    free = compiled("int8", settings={**more, "floor": 0})
    assert free.report.fidelity.kept < 0.97
    made = compiled("int8", settings={**more, "floor": 0.98})
    (told,) = [note for note in notes(made) if "stopped at" in note.reason]
    assert "1 of 3 layers unchanged (g" in told.reason
    assert made.report.fidelity.kept >= 0.98


def test_what_judges_is_not_fitted_on() -> None:
    made = compiled(calibration=rows(10, 8), settings={"floor": 0})
    told = made.report.fidelity
    assert told.on == "calibration inputs not used for fitting" and told.samples == 16
    # Of fewer batches, samples of each; what fits nothing is judged by all.
    few = {"calibration": rows(3, 8), "settings": {"floor": 0}}
    assert compiled(**few).report.fidelity.samples == 6
    assert compiled("int8", **few).report.fidelity.samples == 6
    assert compiled("fp32", **few).report.fidelity.samples == 24
    apart = held_out(parse(MLP, TABLE), rows(3, 8), Evaluator())
    for whole, fitted, kept in zip(rows(3, 8), *apart, strict=True):
        np.testing.assert_array_equal(kept["x"], whole["x"][3::4])
        assert len(fitted["x"]) == 6
    assert [len(part) for part in held_out(parse(MLP, TABLE), rows(3, 1), Evaluator())] == [3, 0]


def test_batches_that_do_not_come_apart_are_kept_apart_as_a_whole() -> None:
    """The states' batch has another name: samples of one input alone do not go with all states."""
    text = """graph main(%x: f32[n, 16], %state: f32[m, 16]) -> (y = %y) {
      %y: f32[n, 16] = Add(%x, %state)
    }"""
    feeds = [{**feed, "state": feed["x"]} for feed in rows(5, 8)]
    fitted, apart = held_out(parse(text, TABLE), feeds, Evaluator())
    assert [len(part) for part in (fitted, apart)] == [4, 1] and next(iter(apart)) is feeds[3]


def test_what_was_fitted_to_a_few_rows_is_not_taken_for_what_it_does_to_others() -> None:
    """32 rows of 64 neurons: whatever is left makes them up, and no others."""
    few = {"calibration": rows(1, 32)}
    with pytest.raises(InvalidOption, match="give more calibration inputs"):
        compiled(settings={"macs": 0.5}, **few)
    made = compiled(settings={"macs": 0.5, "floor": 0}, **few)
    new = {"x": np.random.default_rng(9).standard_normal((256, 16)).astype(np.float32)}
    exact = compiled("fp32")
    truth = fidelity([exact.run(new)], [made.run(new)]).kept
    assert truth is not None and truth < 0.95 and made.report.fidelity.kept < 0.95
    (told,) = [note for note in notes(made) if note.method == FEW_ROWS]
    assert told.reason.startswith("24 for a layer of 64 inputs, where 128 would do, 5.3 times")
    enough = compiled(settings={"floor": 0})
    assert not any(note.method == FEW_ROWS for note in notes(enough))


def test_a_shipped_budget_out_of_reach_takes_half_of_what_can_go() -> None:
    """A wide layer that nothing may be cut from holds most of the work."""
    text = """graph main(%x: f32[n, 16]) -> (y = %y, z = %z) {
      @w1: f32[16, 64] = dense normal(0)
      @w2: f32[64, 8] = dense normal(3)
      @w3: f32[16, 500] = dense normal(4)
      %a: f32[n, 64] = MatMul(%x, @w1)
      %h: f32[n, 64] = Relu(%a)
      %y: f32[n, 8] = MatMul(%h, @w2)
      %z: f32[n, 500] = MatMul(%x, @w3)
    }"""
    made = compiled(model=mlp(text), settings={"floor": 0})
    (told,) = [note for note in notes(made) if "half of what can be removed" in note.reason]
    least = float(told.reason.split(" is the least")[0].rpartition(" ")[2])
    assert (
        told.reason.endswith(f"prune-structure{{macs={round(1 - (1 - least) / 2, 3):g}}}")
        or least > 0.8
    )
    with pytest.raises(InvalidOption, match="is the least that can be left; ask for that, or more"):
        compiled(model=mlp(text), settings={"macs": 0.5, "floor": 0})


def test_random_outputs_are_not_held_to_a_floor() -> None:
    text = MLP.replace(
        "%y: f32[n, 8] = MatMul(%g, @w3)",
        "%p: f32[n, 8] = MatMul(%g, @w3)\n  %r: f32[n, 8] = RandomNormalLike(%p)\n"
        "  %y: f32[n, 8] = Add(%p, %r)",
    )
    made = compiled("int8", mlp(text), settings={"quantize-dynamic.min_elements": 16})
    assert any(step.rewrites for step in made.report.passes if step.name.startswith("quantize"))


def test_the_floor_is_the_recipes_own_option() -> None:
    assert (
        Recipe.of("int8").floor == 0.95
        and Recipe.of("int8").override({"floor": "0.9"}).floor == 0.9
    )
    assert Recipe.of({"floor": 0.5}).floor == 0.5
    for wrong in (1.5, -1, "high"):
        with pytest.raises(InvalidOption, match="floor"):
            Recipe.of("int8").override({"floor": wrong})


def test_shipped_recipes_do_not_insist_and_settings_do() -> None:
    assert Recipe.of("prune").explicit_budgets == [False, False]
    assert Recipe.of("prune").override({"macs": 0.5}).explicit_budgets == [False, True]
    assert Recipe.of("prune").override({"damping": 0.1}).explicit_budgets == [False, False]
    own = {
        "name": "own",
        "passes": [{"name": "prune-structure", "macs": 0.75}, {"name": "quantize-dynamic"}],
    }
    assert Recipe.of(own).explicit_budgets == [True, False]
