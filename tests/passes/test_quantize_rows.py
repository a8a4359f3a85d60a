"""Activations with one scale a row: what the op computes, what the passes make of layers, and that ONNX
Runtime computes the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import tersor
from tersor.backends import ort
from tersor.driver.recipe import build_pass
from tersor.errors import InvalidGraph, InvalidOption
from tersor.frontends.onnx.exporter import export_model
from tersor.ir import DType, Encoding, Graph, parse, print_graph, weights_of
from tersor.numerics.affine import ActivationForm, Granularity, fake_quantize_dynamic
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.passes.canonicalize import canonicalization
from tersor.passes.canonicalize.common_subexpressions import CommonSubexpressions
from tersor.passes.canonicalize.dead_code import DeadCode
from tersor.passes.quantize import quantize_dynamic
from tersor.passes.quantize.quantize_dynamic import QuantizeDynamic
from tersor.passes.quantize.smooth_activations import SmoothActivations
from tersor.pipeline import Pipeline
from tersor.pipeline.report import PassReport

NORMAL = st.floats(2.0**-100, 100, width=32)  # Steps of smaller ranges have fewer bits than 24.
ROWS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(0, 4), st.integers(1, 6)),
    elements=NORMAL | NORMAL.map(lambda number: -number) | st.sampled_from([0.0, 1e37, -1e37]),
)

QUANTIZER = """graph main(%x: f32[n, k]) -> (q = %q, scale = %s, zero_point = %z) {
  %q: u8[n, k], %s: f32[n, 1], %z: u8[n, 1] = tersor.DynamicQuantizeRows(%x)
}"""
OF_A_TENSOR = """graph main(%x: f32[k]) -> (q = %q, scale = %s, zero_point = %z) {
  %q: u8[k], %s: f32[], %z: u8[] = DynamicQuantizeLinear(%x)
}"""
ROUND_TRIP = """graph main(%x: f32[n, 6]) -> (y = %y) {
  %q: u8[n, 6], %s: f32[n, 1], %z: u8[n, 1] = tersor.DynamicQuantizeRows(%x)
  %y: f32[n, 6] = DequantizeLinear(%q, %s, %z) {axis = -1, block_size = 6}
}"""


@cache
def session(text: str, portable: bool = False) -> Any:
    choice = ort.Choice(ort.LowerOptions(portable=portable))
    return ort.open_session(ort.build(parse(text, TABLE), choice), choice)


# -- the op ----------------------------------------------------------------------------------------


@given(ROWS)
def test_each_row_is_quantized_as_the_runtime_quantizes_a_tensor(x: np.ndarray) -> None:
    got = evaluate(parse(QUANTIZER, TABLE), {"x": x})
    for i, row in enumerate(x):
        for name, expected in session(OF_A_TENSOR).run({"x": row}).items():
            np.testing.assert_array_equal(got[name][i].reshape(expected.shape), expected, name)


@given(ROWS)
def test_the_runtime_computes_what_the_table_says(x: np.ndarray) -> None:
    expected = evaluate(parse(QUANTIZER, TABLE), {"x": x})
    for name, got in session(QUANTIZER).run({"x": x}).items():
        np.testing.assert_array_equal(got, expected[name], name)


def test_a_row_of_zeros_has_scale_one_and_zero_point_zero() -> None:
    x = np.array([[0, 0, 0], [-0.0, 0, 0], [1e-45, 0, 0], [0, -1, 4.1]], np.float32)
    for run in (
        evaluate(parse(QUANTIZER, TABLE), {"x": x}),
        session(QUANTIZER).run({"x": x}),
    ):
        np.testing.assert_array_equal(run["q"], [[0, 0, 0], [0, 0, 0], [0, 0, 0], [50, 0, 255]])
        np.testing.assert_array_equal(run["zero_point"], [[0], [0], [0], [50]])
        np.testing.assert_array_equal(run["scale"][:3], np.ones((3, 1), np.float32))
        assert run["scale"][3, 0] == pytest.approx(5.1 / 255, rel=1e-6)


def test_zero_points_halfway_are_rounded_to_even() -> None:
    # Steps of one: -0.5 and -1.5 lie halfway between two zero points.
    x = np.array([[-0.5, 254.5], [-1.5, 253.5], [-2.5, 252.5]], np.float32)
    made = evaluate(parse(QUANTIZER, TABLE), {"x": x})
    assert (made["scale"] == 1).all()
    assert made["zero_point"].reshape(-1).tolist() == [0, 2, 2]
    assert made["q"].tolist() == [[0, 254], [0, 255], [0, 254]]


@pytest.mark.parametrize("type", ["f16[n, 4]", "f32[]", "i32[2, 4]"])
def test_what_has_no_rows_of_f32_is_refused(type: str) -> None:
    graph = parse(f"graph main(%x: {type}) -> (y = %x) {{\n}}", TABLE)
    with pytest.raises(InvalidGraph, match=r"takes f32|has no rows"):
        graph.emit_node("tersor.DynamicQuantizeRows", [graph.inputs[0]], names=["", "", ""])


def test_an_unknown_rank_stays_unknown() -> None:
    graph = parse("graph main(%x: f32[*]) -> (y = %x) {\n}", TABLE)
    node = graph.emit_node("tersor.DynamicQuantizeRows", [graph.inputs[0]], names=["", "", ""])
    assert [str(v.type) for v in node.outputs] == ["u8[*]", "f32[*]", "u8[*]"]


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(6)), elements=st.floats(-100, 100, width=32)))  # fmt: skip
def test_the_simulation_is_what_the_ops_do(x: np.ndarray) -> None:
    got = evaluate(parse(ROUND_TRIP, TABLE), {"x": x})["y"]
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    simulated = fake_quantize_dynamic(x, (low, high))
    step = (np.maximum(high, 0) - np.minimum(low, 0)) / 255
    # Half a step by rounding, half a step where the rounded zero point cuts the range off; 1% for f32.
    assert (np.abs(got - x) <= step * 1.01 + 1e-44).all()
    # f32 there and f64 here agree unless what is rounded lies near to a tie.
    with np.errstate(divide="ignore", invalid="ignore"):
        near = [np.abs(np.mod(v / step, 1) - 0.5) < 0.01 for v in (x, np.minimum(low, 0))]
    clear = ~near[0] & ~near[1] & (step > 1e-36)
    assert (np.abs(simulated - got) <= step * 0.01)[clear].all()


# -- quantize-dynamic ------------------------------------------------------------------------------

LAYERS = """graph main(%x: f32[batch, seq, 64]) -> (q = %q, k = %k, v = %v) {
  @wq: f32[64, 64] = dense normal(1)
  @wk: f32[64, 32] = dense normal(2)
  @wv: f32[64, 64] = dense normal(3)
  @b: f32[64] = dense normal(4)
  %q: f32[batch, seq, 64] = tersor.Linear(%x, @wq, @b) scope "query"
  %k: f32[batch, seq, 32] = tersor.Linear(%x, @wk) scope "key"
  %v: f32[batch, seq, 64] = tersor.Linear(%x, @wv) scope "value"
}"""
QUANTIZED = """graph main(%x: f32[batch, seq, 64]) -> (q = %q, k = %k, v = %v) {{
{constants}
  %i: u8[batch, seq, 64], %s: f32[batch, seq, 1], %z: u8[batch, seq, 1] = tersor.DynamicQuantizeRows(%x) scope "query"
  %r: f32[batch, seq, 64] = DequantizeLinear(%i, %s, %z) {{axis = -1, block_size = 64}} scope "query"
  %q: f32[batch, seq, 64] = tersor.Linear(%r, @wq, @b) scope "query"
  %k: f32[batch, seq, 32] = tersor.Linear(%r, @wk) scope "key"
  %v: f32[batch, seq, 64] = tersor.Linear(%r, @wv) scope "value"
}}"""
APART = """graph main(%x: f32[batch, seq, 64]) -> (q = %q, k = %k, v = %v) {{
{constants}
  %i: u8[batch, seq, 64], %s: f32[batch, seq, 1], %z: u8[batch, seq, 1] = tersor.DynamicQuantizeRows(%x) scope "query"
  %r: f32[batch, seq, 64] = DequantizeLinear(%i, %s, %z) {{axis = -1, block_size = 64}} scope "query"
  %i1: u8[batch, seq, 64], %s1: f32[batch, seq, 1], %z1: u8[batch, seq, 1] = tersor.DynamicQuantizeRows(%x) scope "key"
  %r1: f32[batch, seq, 64] = DequantizeLinear(%i1, %s1, %z1) {{axis = -1, block_size = 64}} scope "key"
  %i2: u8[batch, seq, 64], %s2: f32[batch, seq, 1], %z2: u8[batch, seq, 1] = tersor.DynamicQuantizeRows(%x) scope "value"
  %r2: f32[batch, seq, 64] = DequantizeLinear(%i2, %s2, %z2) {{axis = -1, block_size = 64}} scope "value"
  %q: f32[batch, seq, 64] = tersor.Linear(%r, @wq, @b) scope "query"
  %k: f32[batch, seq, 32] = tersor.Linear(%r1, @wk) scope "key"
  %v: f32[batch, seq, 64] = tersor.Linear(%r2, @wv) scope "value"
}}"""


def quantized(granularity: Granularity = "token", **given: Any) -> Graph:
    step = QuantizeDynamic(min_elements=0, granularity=granularity)
    return Pipeline([step], level="text", **given).run(parse(LAYERS, TABLE))


def on_constants_of(graph: Graph, text: str) -> Graph:
    """``text`` with the constants that ``graph`` has."""
    constants = "\n".join(line for line in print_graph(graph).splitlines() if line[:3] == "  @")
    return parse(text.format(constants=constants), TABLE, weights_of(graph))


def lines(graph: Graph) -> list[str]:
    """As printed, with values called by their order."""
    names: dict[str, str] = {}
    text = re.sub(r"%\w+", lambda m: names.setdefault(m[0], f"%{len(names)}"), print_graph(graph))
    return [line.strip() for line in text.splitlines()]


def feed(rows: int = 24) -> dict[str, np.ndarray]:
    """Normal numbers, rows of which are up to a thousand times as large as others; one is zero."""
    x = np.random.default_rng(5).standard_normal((3, rows // 3, 64)).astype(np.float32)
    x *= np.logspace(0, 3, rows, dtype=np.float32).reshape(3, -1, 1)
    x[1, 1] = 0
    return {"x": x}


def test_layers_that_read_one_activation_share_a_quantizer_of_its_rows() -> None:
    after = quantized()
    assert lines(after) == lines(on_constants_of(after, QUANTIZED))


@pytest.mark.parametrize("refused", ["no kernel", None])
def test_auto_is_what_the_backend_has_kernels_for(refused: str | None) -> None:
    asked = []

    def supports(op: str, encodings: Sequence[Encoding], activations: ActivationForm) -> str | None:
        (weight,) = encodings
        asked.append((op, weight.storage, activations))
        return refused

    wanted = quantized("tensor" if refused else "token")
    assert lines(quantized("auto", supports=supports)) == lines(wanted)
    assert asked == [("tersor.Linear", DType.I8, ActivationForm.INT8_ROWS)]
    other = quantized("token" if refused else "tensor")
    assert lines(other) != lines(wanted)


def test_another_granularity_is_refused() -> None:
    with pytest.raises(InvalidOption, match=r"granularity.*'tensor', 'token' or 'auto'"):
        build_pass("quantize-dynamic", {"granularity": "channel"})


def test_equal_quantizers_become_one() -> None:
    one = quantized()
    steps = [CommonSubexpressions(), DeadCode()]
    together = Pipeline(steps, level="text").run(on_constants_of(one, APART))
    assert lines(together) == lines(one)


def test_canonicalization_leaves_the_pattern_alone() -> None:
    after = quantized()
    assert lines(Pipeline([canonicalization()], level="text").run(after)) == lines(after)


@pytest.mark.parametrize("portable", [False, True])
def test_layers_run_in_onnx_runtime_as_the_table_says(portable: bool) -> None:
    """Its optimizer would make of dequantizers and a product a kernel that refuses many zero points."""
    after = quantized()
    choice = ort.Choice(ort.LowerOptions(portable=portable))
    made = ort.open_session(ort.build(after, choice), choice).run(feed())
    for name, expected in evaluate(after, feed()).items():
        # The same integers; sums of 64 products in f32, in another order: 64 * 2^-24 of the largest.
        largest = np.abs(expected).max(axis=-1, keepdims=True)
        assert (np.abs(made[name] - expected) <= 4e-6 * largest).all()
    if portable:
        model = export_model(ort.lower(after, choice.lower))
        assert {n.domain for n in model.graph.node} == {""}


def test_a_row_loses_nothing_to_larger_rows() -> None:
    """Per tensor, the smallest of these rows is less than a step of the largest."""
    exact = evaluate(parse(LAYERS, TABLE), feed())["k"].astype(np.float64)
    errors = {}
    for granularity in ("tensor", "token"):
        got = evaluate(quantized(granularity), feed())["k"]
        lost = np.linalg.norm(got - exact, axis=-1)
        errors[granularity] = (lost / np.maximum(np.linalg.norm(exact, axis=-1), 1e-30)).max()
    # Steps of 1/255 and 1/254 of ranges of 64 normal numbers, as root mean squares.
    assert errors["token"] < 0.02
    assert errors["tensor"] > 0.5


def test_the_driver_says_what_the_backend_has(monkeypatch: pytest.MonkeyPatch) -> None:
    model = export_model(ort.lower(parse(LAYERS, TABLE))).SerializeToString()
    steps = [canonicalization(), QuantizeDynamic(min_elements=0)]
    for refused in ("no kernel", None):
        monkeypatch.setattr(ort, "supports", lambda *asked, refused=refused: refused)
        artifact = tersor.convert(model, steps)
        summary = tersor.inspect(artifact.model)
        assert ("ReduceMax" in summary.ops) is (refused is None)


# -- smooth-activations ----------------------------------------------------------------------------


def told(step: Any, graph: Graph, calibration: Any) -> PassReport:
    pipeline = Pipeline([step], level="text", evaluate=evaluate, calibration=calibration)
    pipeline.run(graph)
    return pipeline.reports[0]


@pytest.mark.parametrize("granularity", ["tensor", "token"])
def test_exponents_are_searched_by_the_error_that_quantization_makes(
    granularity: Granularity, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nearest(weights: Any, xtx: np.ndarray, sums: Any) -> Any:
        return [held for _, held in weights]

    monkeypatch.setattr(quantize_dynamic, "round_in_order", nearest)
    text = re.sub(r"  %[qv]: .*\n", "", LAYERS).replace("q = %q, k = %k, v = %v", "k = %k")
    graph, x = parse(text, TABLE), feed()["x"]
    x[..., [3, 40]] *= 20
    smooth = SmoothActivations(granularity=granularity, min_gain=1.0)
    quantize = QuantizeDynamic(min_elements=0, max_error=1.0, granularity=granularity)
    pipeline = Pipeline([smooth, quantize], evaluate=evaluate, calibration=[{"x": x}])
    pipeline.run(graph)
    without = told(quantize, graph, [{"x": x}])
    said = pipeline.reports[0].notes[0]
    measured = [r.notes[0].error for r in (without, pipeline.reports[1])]
    # Smoothing sums in f32 where quantization does in f64.
    assert [said.before, said.error] == pytest.approx(measured, abs=2e-4)


def test_rows_of_one_size_a_channel_need_no_smoothing() -> None:
    """Rows that differ as wholes are no outliers where each has its own scale."""
    report = told(SmoothActivations(granularity="token"), parse(LAYERS, TABLE), [feed()])
    assert report.rewrites == 0
    assert len(report.skips) == 1
