"""Weights stored in int8 and decoded to floats: which, with which scales, at what loss, in which files."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tersor.backends import ort
from tersor.ir import Affine, Graph, parse
from tersor.numerics.affine import is_short, quantize_outputs, relative_error, short_steps
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.passes.quantize.quantize_weights import QuantizeWeights
from tersor.pipeline import Pipeline
from tersor.pipeline.report import PassReport

# Each layer with the axis of its scales, and how many of them there are.
LAYERS: dict[str, tuple[str, int, int]] = {
    "Conv": (
        "%x: f32[n, 8, 9, 9] | @w: f32[16, 8, 3, 3] | f32[n, 16, 7, 7] = Conv(%x, @w)", 0, 16,
    ),
    "Conv of groups": (
        "%x: f32[n, 32, 9] | @w: f32[32, 1, 5] | f32[n, 32, 5] = Conv(%x, @w) {group = 32}", 0, 32,
    ),
    "ConvTranspose": (
        "%x: f32[n, 8, 5] | @w: f32[8, 16, 3] | f32[n, 16, 7] = ConvTranspose(%x, @w)", 1, 16,
    ),
    "Linear": ("%x: f32[n, 16] | @w: f32[16, 24] | f32[n, 24] = tersor.Linear(%x, @w)", 1, 24),
    "Gemm": ("%x: f32[n, 16] | @w: f32[24, 16] | f32[n, 24] = Gemm(%x, @w) {transB = 1}", 0, 24),
    "MatMul, a stack": (
        "%x: f32[n, 3, 2, 16] | @w: f32[3, 16, 8] | f32[n, 3, 2, 8] = MatMul(%x, @w)", 1, 24,
    ),
    "LSTM": (
        "%x: f32[5, n, 16] | @w: f32[1, 32, 16]; @r: f32[1, 32, 8] | "
        "f32[5, 1, n, 8] = LSTM(%x, @w, @r) {hidden_size = 8}", 1, 32,
    ),
    "LSTM, both ways": (
        "%x: f32[5, n, 16] | @w: f32[2, 32, 16]; @r: f32[2, 32, 8] | "
        "f32[5, 2, n, 8] = LSTM(%x, @w, @r) {hidden_size = 8, direction = \"bidirectional\"}", 2, 64,
    ),
    "GRU": (
        "%x: f32[5, n, 16] | @w: f32[1, 24, 16]; @r: f32[1, 24, 8] | "
        "f32[5, 1, n, 8] = GRU(%x, @w, @r) {hidden_size = 8}", 1, 24,
    ),
}  # fmt: skip


def graph_of(layer: str) -> Graph:
    inputs, constants, node = (part.strip() for part in layer.split("|"))
    held = "\n".join(f"{c} = dense normal({i})" for i, c in enumerate(constants.split("; ")))
    return parse(f"graph main({inputs}) -> (y = %y) {{\n{held}\n%y: {node}\n}}", TABLE)


def run(graph: Graph, **options: Any) -> tuple[Graph, PassReport]:
    pipeline = Pipeline([QuantizeWeights(**{"min_elements": 1, **options})], level="text")
    return pipeline.run(graph), pipeline.reports[0]


def feed_of(graph: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        v.name: rng.standard_normal([d if isinstance(d, int) else 2 for d in v.tensor.dims or ()])
        .astype(np.float32)
        for v in graph.inputs
    }  # fmt: skip


@pytest.mark.parametrize(("layer", "axis", "scales"), LAYERS.values(), ids=LAYERS)
def test_an_output_has_a_scale_of_its_own(layer: str, axis: int, scales: int) -> None:
    graph = graph_of(layer)
    after, report = run(graph)
    held = after.constants["w"].encoding
    assert isinstance(held, Affine)
    assert (held.storage.value, held.axis, held.scale.size) == ("i8", axis, scales)
    assert held.is_symmetric
    # Half a step of 1/127 of the largest of a few normal numbers: under 1% of them.
    assert relative_error(graph.constants["w"].numpy(), held.decode()) < 0.01
    assert report.rewrites == len(report.changed) == len(graph.constants)
    assert all(error is not None and error < 0.01 for _, error in report.changed.values())
    feed = feed_of(graph)
    assert relative_error(evaluate(graph, feed)["y"], evaluate(after, feed)["y"]) < 0.03


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize(("layer", "axis", "scales"), LAYERS.values(), ids=LAYERS)
def test_onnx_runtime_reads_the_floats_that_are_meant(
    layer: str, axis: int, scales: int, portable: bool
) -> None:
    after, _ = run(graph_of(layer))
    choice = ort.Choice(ort.LowerOptions(portable=portable))
    model = ort.build(after, choice)
    feed = feed_of(after)
    made = ort.open_session(model, choice).run(feed)["y"]
    # Sums of at most 72 products in another order.
    np.testing.assert_allclose(made, evaluate(after, feed)["y"], rtol=1e-4, atol=1e-4)
    stored = {t.name: t for t in onnx.load_from_string(ort_bytes(model)).graph.initializer}
    largest = max(stored.values(), key=lambda t: int(np.prod(t.dims)))
    assert largest.data_type == onnx.TensorProto.INT8


def ort_bytes(model: Any) -> bytes:
    return model if isinstance(model, bytes) else bytes(model.data)


def test_a_direction_that_is_small_keeps_its_steps() -> None:
    weight = np.random.default_rng(0).standard_normal((2, 32, 16)).astype(np.float32)
    weight[1] /= 1000
    held = quantize_outputs(weight, (2,))
    assert relative_error(weight[1], held.decode()[1]) < 0.01


def test_what_is_pruned_stays_zero_and_dead_outputs_have_scale_one() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 4, 3)).astype(np.float32)
    weight[:, ::2] = 0
    weight[5] = 0
    held = quantize_outputs(weight, (1, 2))
    assert (held.decode()[weight == 0] == 0).all()
    assert held.scale[5] == 1


@pytest.mark.parametrize(("layer", "axis", "scales"), LAYERS.values(), ids=LAYERS)
def test_with_calibration_the_error_is_that_of_the_layer_output(
    layer: str, axis: int, scales: int
) -> None:
    graph = graph_of(layer)
    feeds = [feed_of(graph), {k: 2 * v for k, v in feed_of(graph).items()}]
    pipeline = Pipeline([QuantizeWeights(min_elements=1)], calibration=feeds, evaluate=evaluate)
    after = pipeline.run(graph)
    (report,) = pipeline.reports
    assert set(report.changed) == set(graph.constants)
    for name, (_, stated) in report.changed.items():
        one = graph.copy()
        encoding = after.constants[name].encoding
        assert encoding is not None
        one.set_encoding(one.constants[name], encoding)
        want, got = (
            np.concatenate([evaluate(g, feed)["y"].reshape(-1) for feed in feeds])
            for g in (graph, one)
        )
        assert stated == pytest.approx(relative_error(want, got), rel=1e-6)
    assert (
        report.notes[1].of == "a layer's output on calibration" and 0 < report.notes[1].error < 0.1
    )


OUTLIERS = """graph main(%x: f32[n, 16, 9]) -> (y = %y) {
  @w: f32[8, 16, 3] = dense normal(0)
  %y: f32[n, 8, 7] = Conv(%x, @w) scope "conv"
}"""


@pytest.mark.parametrize("seen", [True, False])
def test_what_the_weight_loses_says_little_of_what_the_layer_does(seen: bool) -> None:
    """A channel's weights are a thousand times the others', and its inputs next to nothing: the weight as a
    whole loses 0.3%, and the layer's output nearly everything."""
    graph = parse(OUTLIERS, TABLE)
    data = graph.constants["w"].numpy().copy()
    data[:, 5] *= 1000
    graph.replace(graph.constants["w"], graph.constant(data, "weight"))
    feed = feed_of(graph)
    feed["x"][:, 5] *= 1e-6
    options: dict[str, Any] = {"calibration": [feed], "evaluate": evaluate} if seen else {}
    pipeline = Pipeline([QuantizeWeights(min_elements=1)], **options)
    pipeline.run(graph)
    (report,) = pipeline.reports
    assert report.rewrites == (not seen)
    if seen:
        (skip,) = report.skips
        assert (skip.reason, skip.of) == ("above max_error 0.1", "its output on calibration")
        assert skip.error is not None and skip.error > 0.1
    else:
        assert report.notes[1].of == "a weight (its layer's output is unknown)"


def test_a_weight_of_two_layers_is_judged_by_the_one_that_loses_more() -> None:
    text = OUTLIERS.replace("%x: f32[n, 16, 9]", "%x: f32[n, 16, 9], %z: f32[n, 16, 9]").replace(
        "(y = %y)", "(y = %y, v = %v)"
    )
    graph = parse(text.replace("\n}", "\n  %v: f32[n, 8, 7] = Conv(%z, @w)\n}"), TABLE)
    data = graph.constants["w"].numpy().copy()
    data[:, 5] *= 1000
    graph.replace(graph.constants["w"], graph.constant(data, "weight"))
    feed = feed_of(graph)
    feed["z"][:, 5] *= 1e-6
    pipeline = Pipeline([QuantizeWeights(min_elements=1)], calibration=[feed], evaluate=evaluate)
    pipeline.run(graph)
    (skip,) = pipeline.reports[0].skips
    assert skip.reason == "above max_error 0.1"
    assert skip.error is not None and skip.error > 0.1


OF_A_TABLE = """graph main(%x: f32[n, 16], %ids: i64[n]) -> (y = %y) {
  @w: f32[16, 64] = dense normal(0)
  %h: f32[n, 64] = tersor.Linear(%x, @w)
  MORE
}"""


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("%y: f32[n, 64] = Relu(%h)", {"min_elements": 1025}, "@w has fewer than 1025 elements"),
        ("%y: f32[n, 64] = Relu(%h)", {"ignored_scopes": ("*",)}, "its scope is in ignored_scopes"),
        ("%y: f32[n, 64] = Relu(%h)", {"max_error": 1e-4}, "above max_error 0.0001"),
        ("%g: f32[n, 64] = Gather(@w, %ids)\n%y: f32[n, 64] = Add(%g, %h)", {}, "@w has other uses, which would not change"),
        ("%m: f32[16, 64] = Tanh(@w)\n%i: f32[n, 64] = MatMul(%x, %m)\n%y: f32[n, 64] = Add(%i, %h)", {}, "@w has other uses, which would not change"),
    ],
    ids=["small", "scope", "error", "a lookup", "another reader"],
)  # fmt: skip
def test_a_weight_that_stays_says_why(text: str, options: dict[str, Any], reason: str) -> None:
    graph = parse(OF_A_TABLE.replace("MORE", text), TABLE)
    after, report = run(graph, **options)
    assert not isinstance(after.constants["w"].encoding, Affine)
    assert report.rewrites == 0
    assert [reason in skip.reason for skip in report.skips] == [True]


def test_a_weight_with_nan_stays() -> None:
    graph = graph_of(LAYERS["Conv"][0])
    broken = graph.constants["w"].numpy().copy()
    broken[0, 0, 0, 0] = np.nan
    graph.replace(graph.constants["w"], graph.constant(broken, "w"))
    _, report = run(graph)
    assert (report.rewrites, len(report.skips)) == (0, 1)
    assert "contains NaN or infinity" in report.skips[0].reason


def test_scales_as_large_as_what_they_scale_are_not_worth_it() -> None:
    _, report = run(
        graph_of("%x: f32[n, 32, 9] | @w: f32[32, 1, 1] | f32[n, 32, 9] = Conv(%x, @w) {group = 32}")
    )  # fmt: skip
    assert (report.rewrites, len(report.skips)) == (0, 1)
    assert "would be no smaller" in report.skips[0].reason


def test_weights_of_branches_and_of_what_they_read_from_outside() -> None:
    text = """graph main(%c: bool[], %x: f32[n, 8, 9]) -> (y = %y) {
      @w: f32[8, 8, 3] = dense normal(0)
      %y: f32[n, 8, 7] = If(%c) {then_branch = graph then() -> (a = %a) {
        %a: f32[n, 8, 7] = Conv(%x, @w)
      }, else_branch = graph else() -> (b = %b) {
        @v: f32[8, 8, 3] = dense normal(1)
        %b: f32[n, 8, 7] = Conv(%x, @v)
      }}
    }"""
    graph = parse(text, TABLE)
    pipeline = Pipeline(
        [QuantizeWeights(min_elements=1)],
        calibration=[{**feed_of_x(graph), "c": np.array(True)}], evaluate=evaluate,
    )  # fmt: skip
    after, report = pipeline.run(graph), pipeline.reports[0]
    assert report.rewrites == 2
    # Calibration sees nothing in a branch: what is told is what the weights lose.
    assert "its layer's output is unknown" in report.notes[1].of
    session = ort.open_session(ort.build(after))
    for branch in (True, False):
        feed = {**feed_of_x(graph), "c": np.array(branch)}
        np.testing.assert_allclose(
            session.run(feed)["y"], evaluate(after, feed)["y"], rtol=1e-4, atol=1e-4
        )


def feed_of_x(graph: Graph) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((2, 8, 9)).astype(np.float32)}


# -- short scales ----------------------------------------------------------------------------------


def test_steps_are_rounded_up_to_what_half_the_room_holds() -> None:
    scale = np.random.default_rng(0).uniform(2e-5, 3, 5000).astype(np.float32)
    made = short_steps(scale)
    assert is_short(made)
    assert (made >= scale).all(), "the largest weight has to fit"
    assert (made <= scale * (1 + 1 / 256)).all()


@pytest.mark.parametrize("least", [1e-7, 1e-30, 1e5])
def test_steps_that_float16_cannot_hold_stay(least: float) -> None:
    scale = np.array([0.25, least], np.float32)
    np.testing.assert_array_equal(short_steps(scale), scale)


def test_a_file_holds_short_scales_and_the_numbers_are_the_same() -> None:
    text = """graph main(%ids: i64[n]) -> (y = %y) {
      @words: f32[3000, 16] = dense normal(0)
      %y: f32[n, 16] = Gather(@words, %ids)
    }"""
    graph = parse(text, TABLE)
    held = quantize_outputs(graph.constants["words"].numpy(), (1,))
    graph.set_encoding(graph.constants["words"], held)
    model = ort.build(graph)
    # A byte an element and two a row; the nodes are a few hundred.
    assert len(ort_bytes(model)) < 3000 * 16 + 2 * 3000 + 2000
    feed = {"ids": np.array([0, 7, 2999, -1])}
    made = ort.open_session(model).run(feed)["y"]
    np.testing.assert_array_equal(made, held.decode()[feed["ids"]])


def test_a_table_that_no_layer_reads_is_named() -> None:
    graph = parse(
        """graph main(%x: f32[n, 8, 64]) -> (y = %y) {
@positions: f32[1, 32, 64] = dense normal(0)
@bias: f32[1, 1, 64] = dense normal(1)
@from: i64[1] = dense [0]
@to: i64[1] = dense [8]
@axis: i64[1] = dense [1]
%p: f32[1, 8, 64] = Slice(@positions, @from, @to, @axis)
%s: f32[n, 8, 64] = Add(%x, %p)
%y: f32[n, 8, 64] = Add(%s, @bias)
}""",
        TABLE,
    )
    _, report = run(graph)
    assert [str(skip) for skip in report.skips] == ["Slice %p: @positions is no weight of a layer"]
