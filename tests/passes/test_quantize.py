"""Quantization: bounds of round-off, exactness on hardware that saturates, and what is left in float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tersor.backends import ort
from tersor.ir import Affine, Dense, Graph, Node, parse, verify
from tersor.numerics.affine import (
    Granularity,
    fake_quantize_dynamic,
    quantize_rows,
    quantize_weight,
    relative_error,
)
from tersor.numerics.sums import FOURS
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.passes.quantize.quantize_dynamic import FASTER, QuantizeDynamic
from tersor.passes.quantize.quantize_embedding import QuantizeEmbedding
from tersor.passes.quantize.smooth_activations import SmoothActivations, smoothing_scale
from tersor.pipeline import Pass, Pipeline
from tersor.pipeline.report import PassReport, Remark
from tersor.target import Target

WEIGHTS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.integers(1, 5)),
    elements=st.floats(-1e3, 1e3, width=32) | st.sampled_from([0.0, 1e-45, -1e-40, 1e3]),
)
AVX2 = Target("cpu:avx2", "cpu", frozenset({"avx2", "fma"}), 1)
VNNI = Target("cpu:avx512_vnni", "cpu", frozenset({"avx2", "avx512f", "avx512_vnni"}), 1)


def columns(held: Affine) -> np.ndarray:
    """The scales as one row over W[k, n]'s columns."""
    return held.scale.reshape(1, -1).astype(np.float64)


# -- weights ---------------------------------------------------------------------------------------


@given(WEIGHTS, st.booleans())
def test_round_off_is_at_most_half_a_step(weight: np.ndarray, saturates: bool) -> None:
    held = quantize_weight(weight, 1, pair_axis=0 if saturates else None)
    assert held.values.dtype == np.int8
    assert held.is_symmetric
    assert np.isfinite(held.scale).all()
    assert (held.scale > 0).all()
    # Half a step; the scale and the quotient are f32, which moves the 127 steps by 127 * 2^-23 each.
    assert (np.abs(held.decode() - weight.astype(np.float64)) <= columns(held) * (0.5 + 1e-4)).all()


@given(WEIGHTS)
def test_the_largest_weight_of_a_channel_takes_the_last_step(weight: np.ndarray) -> None:
    held = quantize_weight(weight, 1)
    assert np.abs(held.values.astype(np.int32)).max() <= 127
    for column in range(weight.shape[1]):
        if np.abs(weight[:, column]).max() > 1e-30:
            assert np.abs(held.values[:, column].astype(np.int32)).max() == 127


def test_each_axis_has_its_scale() -> None:
    weight = np.array([[1.0, -2.0], [4.0, 8.0]], np.float32)
    for axis, scale in ((0, [2, 8]), (1, [4, 8])):
        held = quantize_weight(weight, axis)
        assert held.axis == axis
        np.testing.assert_allclose(held.scale, np.array(scale) / 127, rtol=2**-10)


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-40])
def test_nothing_becomes_nothing_and_not_nan(value: float) -> None:
    held = quantize_weight(np.full((4, 2), value, np.float32), 1, pair_axis=0)
    assert np.isfinite(held.decode()).all()
    assert np.abs(held.decode()).max() <= 2 * value


def test_the_scale_is_held_in_the_weights_dtype() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float16)
    held = quantize_weight(weight, 1)
    assert held.scale.dtype == np.float16
    # Values were rounded by the scale that is held; the product itself is rounded to f16 (2^-11).
    bound = columns(held) * 0.5 + np.abs(weight.astype(np.float64)) * 2**-10
    assert (np.abs(held.decode().astype(np.float64) - weight) <= bound).all()


def worst_pairs(values: np.ndarray) -> int:
    """Largest magnitude of the sum of two products of 255 with weights that lie in one aligned group
    of four along axis 0: whichever two of them a kernel pairs."""
    worst = 0
    for start in range(0, values.shape[0], 4):
        group = values[start : start + 4].astype(np.int64)
        for signed in (np.maximum(group, 0), np.maximum(-group, 0)):
            ordered = np.sort(signed, axis=0)[::-1][:2]
            worst = max(worst, int(255 * ordered.sum(axis=0).max()))
    return worst


@given(WEIGHTS)
def test_no_pair_of_products_overflows_16_bits(weight: np.ndarray) -> None:
    assert worst_pairs(quantize_weight(weight, 1, pair_axis=0).values) <= 32767


def test_weights_that_are_large_together_overflow_without_care() -> None:
    weight = np.ones((4, 1), np.float32)
    assert worst_pairs(quantize_weight(weight, 1).values) == 255 * 254
    assert worst_pairs(quantize_weight(weight, 1, pair_axis=0).values) == 255 * 128


def test_care_costs_less_than_the_seventh_bit() -> None:
    """On normal numbers the exact scale is finer than that of 7 bits, at most 64."""
    weight = np.random.default_rng(0).standard_normal((384, 64)).astype(np.float32)
    plain, safe = quantize_weight(weight, 1), quantize_weight(weight, 1, pair_axis=0)
    seven_bits = np.abs(weight).max(axis=0) / 64
    assert (plain.scale <= safe.scale).all()
    assert (safe.scale < seven_bits).all()
    errors = [relative_error(weight, held.decode()) for held in (plain, safe)]
    seven = relative_error(weight, np.rint(weight / seven_bits) * seven_bits)
    assert errors[0] <= errors[1] < seven


def test_other_ranks_pair_along_the_axis_they_are_told() -> None:
    weight = np.random.default_rng(1).standard_normal((3, 8, 5)).astype(np.float32)
    held = quantize_weight(weight, 2, pair_axis=1)
    for first in range(3):
        assert worst_pairs(held.values[first]) <= 32767
    assert held.scale.shape == (5,)


# -- on this machine -------------------------------------------------------------------------------


def matmul_integer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A[m, k] B[k, n] in onnxruntime, B being a constant so that it is packed as in a real model."""
    import onnx
    import onnxruntime as ort

    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
            "product",
            [onnx.helper.make_tensor_value_info("a", onnx.TensorProto.UINT8, list(a.shape))],
            [
                onnx.helper.make_tensor_value_info(
                    "y", onnx.TensorProto.INT32, [a.shape[0], b.shape[1]]
                )
            ],
            [onnx.numpy_helper.from_array(b, "b")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=9,
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"a": a})[0])


def adversarial(k: int, n: int) -> list[np.ndarray]:
    """Weights that are large together, of one sign, of alternating signs, and at random."""
    rng = np.random.default_rng(k)
    ones = np.ones((k, n), np.float32)
    signs = np.where(np.arange(k) % 2, 1, -1)[:, None].astype(np.float32)
    pairs = np.where(np.arange(k) // 2 % 2, 1, -1)[:, None].astype(np.float32)
    drawn = rng.standard_normal((k, n)).astype(np.float32)
    sparse = np.where(rng.random((k, n)) < 0.1, 1, 0).astype(np.float32)
    return [ones, -ones, ones * signs, ones * pairs, drawn, np.abs(drawn), sparse, np.sign(drawn)]


@pytest.mark.parametrize(
    ("k", "n"), [(1, 1), (3, 2), (4, 16), (30, 17), (64, 8), (127, 33), (384, 64)]
)
def test_integer_products_in_onnxruntime_are_exact_under_the_safe_scale(k: int, n: int) -> None:
    rng = np.random.default_rng(0)
    full = np.full((7, k), 255, np.uint8)
    for weight in adversarial(k, n):
        b = quantize_weight(weight, 1, pair_axis=0).values
        for a in (full, rng.integers(0, 256, (7, k)).astype(np.uint8), full[:1]):
            np.testing.assert_array_equal(
                matmul_integer(a, b), a.astype(np.int32) @ b.astype(np.int32)
            )


def test_integer_products_saturate_here_under_a_plain_scale() -> None:
    if not Target.host().saturates_int8:
        pytest.skip(
            "this CPU sums int8 products in 32 bits (VNNI, AMX or not x86): nothing saturates"
        )
    a, b = np.full((7, 64), 255, np.uint8), quantize_weight(np.ones((64, 8), np.float32), 1).values
    exact = a.astype(np.int32) @ b.astype(np.int32)
    # The host facts are right about this machine: were they not, the safe scale would be for nothing.
    assert (matmul_integer(a, b) < exact).all()


# -- activations -----------------------------------------------------------------------------------


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 6)),
        elements=st.floats(-100, 100, width=32),
    )
)
def test_simulated_dynamic_quantization_is_what_the_ops_do(x: np.ndarray) -> None:
    graph = parse(
        """graph main(%x: f32[m, k]) -> (y = %y) {
          %q: u8[m, k], %s: f32[], %z: u8[] = DynamicQuantizeLinear(%x)
          %y: f32[m, k] = DequantizeLinear(%q, %s, %z)
        }""",
        TABLE,
    )
    got = evaluate(graph, {"x": x})["y"]
    low, high = float(x.min()), float(x.max())
    step = (max(high, 0) - min(low, 0)) / 255
    simulated = fake_quantize_dynamic(x, (low, high))
    # Half a step by rounding, half a step where the rounded zero point cuts the range off; 1% for f32.
    assert (np.abs(simulated - x) <= step * 1.01).all()
    # f32 here and f64 there agree to well under a hundredth of a step, unless what is rounded lies as
    # near to a tie: an element, or the zero point.
    if step > 0:
        near = np.abs(np.mod(np.append(x / step, low / step), 1) - 0.5) < 0.01
        differs = np.abs(simulated - got) > step * 0.01
        assert not differs[~near[:-1].reshape(x.shape)].any() or near[-1]


def test_relative_error_of_known_vectors() -> None:
    x = np.array([3.0, 4.0])
    assert relative_error(x, x) == 0
    assert relative_error(x, np.zeros(2)) == 1
    assert relative_error(x, x * 1.1) == pytest.approx(0.1)
    assert relative_error(np.zeros(2), np.zeros(2)) == 0
    assert relative_error(np.zeros(2), x) == 1


# -- QuantizeDynamic -------------------------------------------------------------------------------

LAYERS = """graph main(%x: f32[batch, 64]) -> (y = %y, z = %z) {
  @w: f32[64, 64] = dense normal(1)
  @v: f32[64, 64] = dense normal(2)
  @b: f32[64] = dense normal(3)
  @small: f32[64, 4] = dense normal(4)
  %h: f32[batch, 64] = tersor.Linear(%x, @w, @b) {activation = "relu"} scope "encoder.layer.0.query"
  %k: f32[batch, 64] = tersor.Linear(%x, @v) {activation = "none"} scope "encoder.layer.0.key"
  %a: f32[batch, 64] = Add(%h, %k)
  %y: f32[batch, 64] = tersor.Linear(%a, @w) {activation = "none"} scope "encoder.layer.1.query"
  %z: f32[batch, 4] = tersor.Linear(%a, @small) {activation = "none"} scope "classifier"
}"""


def feeds(rows: int = 32, outliers: float = 1.0) -> list[dict[str, np.ndarray]]:
    """Two batches of normal numbers, two channels of which are ``outliers`` times as large."""
    rng, found = np.random.default_rng(5), []
    for _ in range(2):
        x = rng.standard_normal((rows, 64)).astype(np.float32)
        x[:, [3, 40]] *= outliers
        found.append({"x": x})
    return found


def run(step: Pass, graph: Graph, **given: Any) -> tuple[Graph, PassReport]:
    pipeline = Pipeline([step], level="text", evaluate=evaluate, **given)
    return pipeline.run(graph), pipeline.reports[0]


def layer(graph: Graph, scope: str) -> Node:
    return next(n for n in graph.nodes if n.scope == scope and n.op == "tersor.Linear")


def error_of(before: Graph, after: Graph, feed: dict[str, np.ndarray], name: str = "y") -> float:
    return relative_error(evaluate(before, feed)[name], evaluate(after, feed)[name])


def test_linear_layers_read_quantized_activations_and_hold_int8() -> None:
    graph = parse(LAYERS, TABLE)
    after, report = run(QuantizeDynamic(), graph)
    assert [n.op for n in after.nodes].count("DynamicQuantizeLinear") == 2, (
        "one for each activation"
    )
    for scope in ("encoder.layer.0.query", "encoder.layer.0.key", "encoder.layer.1.query"):
        node = layer(after, scope)
        assert isinstance(node.inputs[1].encoding, Affine)  # type: ignore[union-attr]
        assert node.inputs[0].producer.op == "DequantizeLinear"  # type: ignore[union-attr]
    assert report.rewrites == 3
    # Rounding errors of 1/255 of the range and 1/254 of the weights, as root mean squares over layers.
    assert error_of(graph, after, feeds()[0]) < 0.03
    assert [n.reason for n in report.notes] == [
        "no calibration inputs: the layers' errors are unknown",
        "NaN in the input of an int8 layer becomes finite numbers",
    ]


def test_a_weight_that_two_layers_share_is_not_changed_for_a_third_reader() -> None:
    text = LAYERS.replace("(y = %y, z = %z)", "(y = %y, z = %z, w = @w)")
    graph = parse(text, TABLE)
    after, _ = run(QuantizeDynamic(), graph)
    assert not isinstance(after.constants["w"].encoding, Affine)
    np.testing.assert_array_equal(evaluate(after, feeds()[0])["w"], graph.constants["w"].numpy())


def _linear(made: str, reads: str, weight: str) -> str:
    return f'%{made}: f32[batch, 64] = tersor.Linear(%{reads}, @{weight}) {{activation = "none"}}'


def _if(made: str, then: str, other: str) -> str:
    return (
        f"%{made}: f32[batch, 64] = If(%c) {{else_branch = graph {made}_else() -> (r = %{made}_e) {{\n"
        f"{other}\n}}, then_branch = graph {made}_then() -> (r = %{made}_t) {{\n{then}\n}}}}"
    )


def _loop(made: str, body: str) -> str:
    return (
        f"%{made}: f32[batch, 64] = Loop(%n, _, %x) {{body = graph {made}_body(%i: i64[], %go: bool[], "
        f"%s: f32[batch, 64]) -> (go = %go, s = %{made}_s) {{\n{body}\n}}}}"
    )


# Readers of one value in graphs beside, within and around each other -> quantizers in all, and of them
# in the outermost graph.
PLACES = {
    "both branches": (_if("y", _linear("y_t", "x", "w"), _linear("y_e", "x", "v")), (1, 1)),
    "one branch": (_if("y", _linear("y_t", "x", "w"), "%y_e: f32[batch, 64] = Relu(%x)"), (1, 0)),
    "a branch, then outside": (
        _if("p", _linear("p_t", "x", "w"), "%p_e: f32[batch, 64] = Relu(%x)")
        + f"\n{_linear('q', 'x', 'v')}\n%y: f32[batch, 64] = Add(%p, %q)",
        (1, 1),
    ),
    "branches in a branch": (
        _if("y", _if("y_t", _linear("y_t_t", "x", "w"), _linear("y_t_e", "x", "v")),
            "%y_e: f32[batch, 64] = Relu(%x)"),
        (1, 0),
    ),
    "a body, then outside": (
        _loop("p", f"{_linear('m', 'x', 'w')}\n%p_s: f32[batch, 64] = Add(%m, %s)")
        + f"\n{_linear('q', 'x', 'v')}\n%y: f32[batch, 64] = Add(%p, %q)",
        (1, 1),
    ),
    "a body alone": (
        _loop("y", f"{_linear('m', 'x', 'w')}\n{_linear('k', 's', 'v')}\n"
              "%y_s: f32[batch, 64] = Add(%m, %k)"),
        (2, 1),
    ),
    "a branch in a body": (
        _loop("y", f"{_if('m', _linear('m_t', 'x', 'w'), _linear('m_e', 's', 'v'))}\n"
              "%y_s: f32[batch, 64] = Add(%m, %s)"),
        (2, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_readers_in_subgraphs_share_a_quantizer_where_all_see_it(name: str) -> None:
    body, (in_all, outermost) = PLACES[name]
    graph = parse(
        f"""graph main(%x: f32[batch, 64], %c: bool[], %n: i64[]) -> (y = %y) {{
          @w: f32[64, 64] = dense normal(1)
          @v: f32[64, 64] = dense normal(2)
          {body}
        }}""",
        TABLE,
    )
    after, _ = run(QuantizeDynamic(), graph)  # Which verifies that all is made before it is read.
    quantizers = [n.graph for n in after.walk() if n.op == "DynamicQuantizeLinear"]
    assert (len(quantizers), quantizers.count(after)) == (in_all, outermost)
    for taken in (True, False):
        feed = {"x": feeds()[0]["x"], "c": np.array(taken), "n": np.array(2)}
        assert error_of(graph, after, feed) < 0.03


@pytest.mark.parametrize(
    ("step", "change", "scope", "reason"),
    [
        (QuantizeDynamic(), {}, "classifier", "@small has fewer than 4096 elements"),
        (QuantizeDynamic(min_elements=1, ignored_scopes=("class*",)), {}, "classifier", "its scope is in ignored_scopes"),
        (QuantizeDynamic(ignored_scopes=("encoder.layer.0.*",)), {}, "encoder.layer.0.key", "its scope is in ignored_scopes"),
        (QuantizeDynamic(), {"%x: f32[batch, 64])": "%x: f32[batch, 64], %v: f32[64, 64])", "  @v: f32[64, 64] = dense normal(2)\n": "", "@v)": "%v)"}, "encoder.layer.0.key", "%v is not a constant"),
        (QuantizeDynamic(max_error=1e-6), {}, "encoder.layer.0.key", "above max_error 1e-06"),
    ],
    ids=["small", "one scope", "scopes", "not a constant", "max_error"],
)  # fmt: skip
def test_layers_that_stay_in_float_say_why(
    step: QuantizeDynamic, change: dict[str, str], scope: str, reason: str
) -> None:
    text = LAYERS
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new)
    calibration = feeds() if not change else ()
    after, report = run(step, parse(text, TABLE), calibration=calibration)
    node = layer(after, scope)
    assert not isinstance(node.inputs[1].encoding, Affine)  # type: ignore[union-attr]
    assert any(s.layer == node.label and s.reason.startswith(reason) for s in report.skips)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_stays(bad: float) -> None:
    graph = parse(LAYERS, TABLE)
    data = graph.constants["v"].numpy().copy()
    data[1, 2] = bad
    graph.replace(graph.constants["v"], graph.constant(data, "bad"))
    after, report = run(QuantizeDynamic(), graph)
    assert [s.reason for s in report.skips if "key" in s.layer] == ["@bad contains NaN or infinity"]
    assert after.constants["bad"].encoding is graph.constants["bad"].encoding


def test_other_float_types_stay() -> None:
    graph = parse(LAYERS.replace("f32", "f64"), TABLE)
    _, report = run(QuantizeDynamic(), graph)
    assert report.rewrites == 0
    assert {skip.reason for skip in report.skips} == {
        "@w is f64, not f32", "@v is f64, not f32",
        "@small has fewer than 4096 elements",
    }  # fmt: skip


def test_a_second_run_changes_nothing() -> None:
    once, _ = run(QuantizeDynamic(), parse(LAYERS, TABLE))
    _, report = run(QuantizeDynamic(), once)
    assert report.rewrites == 0
    assert "@w is affine(i8, axis=1)" in {skip.reason for skip in report.skips}


def test_weights_are_safe_where_the_target_saturates_and_only_there() -> None:
    graph = parse(LAYERS, TABLE)
    held = [
        layer(run(QuantizeDynamic(), graph, target=target)[0], "encoder.layer.0.key")
        .inputs[1]
        .encoding  # type: ignore[union-attr]
        for target in (AVX2, VNNI)
    ]
    assert isinstance(held[0], Affine)
    assert isinstance(held[1], Affine)
    assert worst_pairs(held[0].values) <= 32767 < worst_pairs(held[1].values)


@pytest.mark.parametrize("granularity", ["tensor", "token"])
def test_the_reported_error_is_that_of_the_layer(granularity: Granularity) -> None:
    text = LAYERS.replace(
        "%y: f32[batch, 64] = tersor.Linear(%a",
        "%y: f32[batch, 64] = Tanh(%a)\n%q: f32[batch, 64] = tersor.Linear(%a",
    )
    text = text.replace("(y = %y, z = %z)", "(y = %k, z = %z)")
    graph = parse(text, TABLE)
    only_key = QuantizeDynamic(ignored_scopes=("*query",), granularity=granularity)
    one_batch = [{"x": np.concatenate([f["x"] for f in feeds()])}]
    after, report = run(only_key, graph, calibration=one_batch)
    told = report.notes[0].error
    # Told to four digits; ties of the simulation apart, it is the very same computation.
    assert error_of(graph, after, one_batch[0]) == pytest.approx(told, rel=0.02, abs=1e-4)


# -- SmoothActivations -----------------------------------------------------------------------------

CHAIN = """graph main(%x: f32[batch, 64]) -> (y = %y{more}) {{
  @w: f32[64, 64] = dense normal(1)
  @b: f32[64] = dense normal(3)
  @v: f32[64, 64] = dense normal(2)
  %h: f32[batch, 64] = tersor.Linear(%x, @w, @b) {{activation = "{activation}"}} scope "first"
  %y: f32[batch, 64] = tersor.Linear(%h, @v) {{activation = "none"}} scope "second"
}}"""


def chain(activation: str = "relu", more: str = "", outliers: float = 50.0) -> Graph:
    """Its hidden value has outlier channels: two columns of the first weight are large."""
    graph = parse(CHAIN.format(activation=activation, more=more), TABLE)
    w = graph.constants["w"].numpy().copy()
    w[:, [3, 40]] *= outliers
    graph.replace(graph.constants["w"], graph.constant(w, "w_outliers"))
    graph.erase_constant(graph.constants["w"])
    verify(graph)
    return graph


def assert_same_function(before: Graph, after: Graph, feed: dict[str, np.ndarray]) -> None:
    expected, got = evaluate(before, feed), evaluate(after, feed)
    for name in expected:
        scale = np.abs(expected[name]).max()
        # Sums of 64 products, each factor rounded once more in f32: 64 * 2^-23 at the very most.
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_smoothing_folds_into_the_layer_before_and_keeps_the_function(activation: str) -> None:
    graph = chain(activation)
    after, report = run(SmoothActivations(), graph, calibration=feeds())
    assert_same_function(graph, after, feeds(rows=7)[1])
    assert any(note.layer == "second" and note.method.startswith("alpha") for note in report.notes)
    # What the first layer reads has no outliers, and no layer before it: nothing, or a Mul, for it;
    # between the layers there is none.
    assert layer(after, "second").inputs[0].producer is layer(after, "first")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("activation", "more"), [("gelu", ""), ("relu", ", h = %h"), ("relu", ", t = %t")]
)
def test_smoothing_leaves_a_mul_where_it_cannot_fold(activation: str, more: str) -> None:
    text = CHAIN.format(activation=activation, more=more)
    graph = chain(activation, "" if "%t" in more else more)
    if "%t" in more:
        hidden = next(v for v in graph.values() if v.name == "h")
        graph.set_outputs([*graph.outputs, graph.emit("Tanh", [hidden])], ["y", "t"])
    assert text
    after, _ = run(SmoothActivations(), graph, calibration=feeds())
    assert_same_function(graph, after, feeds(rows=7)[1])
    assert layer(after, "second").inputs[0].producer.op == "Mul"  # type: ignore[union-attr]


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_smoothing_lowers_the_error_of_int8_on_inputs_with_outliers(activation: str) -> None:
    graph, fresh = chain(activation), feeds(rows=64)[1]
    fresh = {"x": fresh["x"][::-1] * 0.9}  # Not the very rows that it was calibrated on.
    plain = Pipeline([QuantizeDynamic()]).run(graph)
    steps = [SmoothActivations(), QuantizeDynamic()]
    smooth = Pipeline(steps, calibration=feeds(), evaluate=evaluate).run(graph)
    errors = [error_of(graph, g, fresh) for g in (plain, smooth)]
    assert errors[1] < errors[0] * 0.8


def test_smoothing_without_outliers_is_not_worth_a_mul() -> None:
    graph = chain("gelu", outliers=1.0)
    after, report = run(SmoothActivations(), graph, calibration=feeds())
    assert [n.op for n in after.nodes] == ["tersor.Linear", "tersor.Linear"]
    assert report.rewrites == 0
    assert len(report.skips) == 2
    for skip in report.skips:
        assert skip.error is not None
        if skip.reason != "no exponent lowers its error":
            assert skip.reason == "a Mul has to divide its error by 1.25"
            assert skip.before is not None and skip.error < skip.before < 1.25 * skip.error


def test_smoothing_without_calibration_says_so() -> None:
    graph = chain()
    _, report = run(SmoothActivations(), graph)
    assert (report.rewrites, report.notes) == (
        0,
        [Remark("no calibration inputs: nothing was smoothed")],
    )


HEADS = """graph main(%x: f32[batch, seq, 8]) -> (y = %y{more}) {{
  @wq: f32[8, 8] = dense normal(1)
  @wk: f32[8, 8] = dense normal(2)
  @wv: f32[8, {kv}] = dense normal(3)
  @bv: f32[{kv}] = dense normal(4)
  @wo: f32[8, 8] = dense normal(5)
  @wk4: f32[8, {kv}] = dense normal(6)
  %q: f32[batch, seq, 8] = tersor.Linear(%x, @wq) {{activation = "none"}} scope "query"
  %k: f32[batch, seq, {kv}] = tersor.Linear(%x, @wk4) {{activation = "none"}} scope "key"
  %v: f32[batch, seq, {kv}] = tersor.Linear(%x, @wv, @bv) {{activation = "none"}} scope "value"
  %a: f32[batch, seq, 8] = Attention(%q, %k, %v) {{q_num_heads = 2, kv_num_heads = {heads}}}
  %y: f32[batch, seq, 8] = tersor.Linear(%a, @wo) {{activation = "none"}} scope "out"
}}"""


@pytest.mark.parametrize(
    ("kv", "heads", "more", "folds"),
    [(8, 2, "", True), (4, 1, "", False), (8, 2, ", v = %v", False)],
    ids=["into the values", "shared heads", "values read elsewhere"],
)
def test_smoothing_goes_through_attention_into_its_values(
    kv: int, heads: int, more: str, folds: bool
) -> None:
    graph = parse(HEADS.format(kv=kv, heads=heads, more=more), TABLE)
    wv = graph.constants["wv"].numpy().copy()
    wv[:, 1] *= 100
    graph.replace(graph.constants["wv"], graph.constant(wv, "wide"))
    x = np.random.default_rng(0).standard_normal((4, 6, 8)).astype(np.float32)
    after, report = run(SmoothActivations(min_gain=1.0), graph, calibration=[{"x": x}])
    assert_same_function(graph, after, {"x": x[:, ::-1] * 1.1})
    assert any(note.layer == "out" and note.method.startswith("alpha") for note in report.notes)
    reads = layer(after, "out").inputs[0].producer.op  # type: ignore[union-attr]
    assert reads == ("Attention" if folds else "Mul")


def test_the_smoothing_scale_follows_its_formula() -> None:
    amax = np.array([1.0, 8.0, 2.0], np.float32)
    weight = np.array([[1.0, -2.0], [0.5, 0.25], [4.0, 0.0]], np.float32)
    s = smoothing_scale(amax, weight, 0.5)
    expected = np.sqrt(amax / np.array([2.0, 0.5, 4.0]))
    np.testing.assert_allclose(s, expected / expected.mean(), rtol=1e-6)
    assert (smoothing_scale(np.zeros(3, np.float32), np.zeros((3, 2), np.float32), 0.5) > 0).all()


# -- QuantizeEmbedding -----------------------------------------------------------------------------

TABLES = """graph main(%ids: i64[batch, seq]) -> (y = %y{more}) {{
  @words: f32[300, 256] = dense normal(1)
  @places: f32[10, 256] = dense normal(2)
  @scale: f32[256] = dense normal(3)
  @bias: f32[256] = dense normal(4)
  %y: f32[batch, seq, 256] = {op}
}}"""
GATHER = "Gather(@words, %ids) {axis = 0}"
FUSED = "tersor.EmbeddingLayerNormalization(@scale, @bias, %ids, @words, %ids, @places)"


def tables(op: str = GATHER, more: str = "") -> Graph:
    return parse(TABLES.format(op=op, more=more), TABLE)


@pytest.mark.parametrize("op", [GATHER, FUSED], ids=["Gather", "fused"])
def test_a_large_table_is_held_in_int8_row_by_row(op: str) -> None:
    graph = tables(op)
    after, report = run(QuantizeEmbedding(), graph)
    held = after.constants["words"].encoding
    assert isinstance(held, Affine)
    assert (held.axis, held.scale.shape) == (0, (300,))
    assert not isinstance(after.constants["places"].encoding, Affine), (
        "it is too small to be worth it"
    )
    assert report.rewrites == 1
    assert report.weight_bytes is not None
    assert report.weight_bytes < sum(c.encoding.nbytes for c in graph.constants.values()) * 0.35  # type: ignore[union-attr]
    feed = {"ids": np.arange(9).reshape(3, 3)}
    # Half a step of 1/127 of the row's largest of 256 normal numbers, about 3: 0.7% as a mean square.
    assert error_of(graph, after, feed) < 0.01


def test_rows_are_scaled_each_by_its_own() -> None:
    table = np.array([[1.0, -0.5], [100.0, 50.0], [0.0, 0.0]], np.float32)
    held = quantize_rows(table)
    # Each as float16 holds it, rounded up: 11 bits.
    np.testing.assert_allclose(held.scale, [1 / 127, 100 / 127, 1], rtol=2**-10)
    assert (held.scale >= np.array([1 / 127, 100 / 127, 0], np.float32)).all()
    np.testing.assert_allclose(held.decode(), table, rtol=0.01)


def with_nan(graph: Graph) -> None:
    data = graph.constants["words"].numpy().copy()
    data[0, 0] = np.nan
    graph.replace(graph.constants["words"], graph.constant(data, "words"))
    graph.erase_constant(graph.constants["words"])


def with_outliers(graph: Graph) -> None:
    data = graph.constants["words"].numpy().copy()
    data[:, 0] *= 2000
    graph.replace(graph.constants["words"], graph.constant(data, "words"))
    graph.erase_constant(graph.constants["words"])


def another_reader(graph: Graph) -> None:
    table = graph.constants["words"]
    graph.set_outputs([*graph.outputs, graph.emit("Tanh", [table])], ["y", "t"])


@pytest.mark.parametrize(
    ("change", "step", "reason"),
    [
        (with_nan, QuantizeEmbedding(), "contains NaN or infinity"),
        (lambda g: None, QuantizeEmbedding(max_error=0.001), "above max_error 0.001"),
        (
            another_reader,
            QuantizeEmbedding(),
            "@words has other uses, which would not change",
        ),
    ],
    ids=["NaN", "max_error", "another reader"],
)
def test_a_table_that_stays_in_float_says_why(
    change: Callable[[Graph], None], step: QuantizeEmbedding, reason: str
) -> None:
    graph = tables()
    change(graph)
    after, report = run(step, graph)
    assert not any(isinstance(c.encoding, Affine) for c in after.constants.values())
    assert [reason in skip.reason for skip in report.skips] == [True]


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        ("Gather(@words, %ids) {axis = 1}", "300, batch, seq"),
        ("Expand(@words, @size)", "300, 256"),
    ],
)
def test_what_is_no_lookup_of_rows_is_left_alone(op: str, shape: str) -> None:
    text = TABLES.format(op=op, more="").replace(
        "%y: f32[batch, seq, 256]", f"@size: i64[1] = dense [1]\n%y: f32[{shape}]"
    )
    after, report = run(QuantizeEmbedding(), parse(text, TABLE))
    assert (report.rewrites, report.skips) == (0, [])
    assert not isinstance(after.constants["words"].encoding, Affine)


def test_small_tables_are_taken_on_request() -> None:
    after, report = run(QuantizeEmbedding(min_elements=1), tables(FUSED))
    assert report.rewrites == 2
    assert isinstance(after.constants["places"].encoding, Affine)


def test_a_layer_and_a_constant_of_more_axes_keep_them() -> None:
    """Found by random graphs: ONNX Runtime took the constant for the bias of the product it fuses."""
    graph = parse(
        """
        graph main(%x: f32[2, 8]) -> (y = %y) {
          @w: f32[8, 4] = dense normal(1)
          @b: f32[1, 1, 4] = dense normal(2)
          %m: f32[2, 4] = tersor.Linear(%x, @w)
          %y: f32[1, 2, 4] = Add(@b, %m)
        }
        """,
        TABLE,
    )
    after = Pipeline([QuantizeDynamic(min_elements=0)], target=AVX2).run(graph)
    feed = {"x": np.ones((2, 8), np.float32)}
    for portable in (False, True):
        choice = ort.Choice(ort.LowerOptions(portable=portable))
        made = ort.open_session(ort.build(after, choice)).run(feed)["y"]
        assert made.shape == (1, 2, 4)
        # int8 of a few normal numbers: a hundredth of the largest, at most.
        np.testing.assert_allclose(made, evaluate(graph, feed)["y"], atol=0.1)


def test_a_layer_whose_input_is_no_number_is_not_quantized() -> None:
    """Found by random graphs: an error that is NaN passed for none."""
    graph = parse(
        "graph main(%x: f32[2, 8]) -> (y = %y) {\n @w: f32[8, 4] = dense normal(1)\n"
        " %y: f32[2, 4] = tersor.Linear(%x, @w)\n}",
        TABLE,
    )
    calibration = [{"x": np.full((2, 8), np.nan, np.float32)}]
    pipeline = Pipeline(
        [QuantizeDynamic(min_elements=0)], calibration=calibration, evaluate=evaluate
    )
    after = pipeline.run(graph)
    assert [n.op for n in after.nodes] == ["tersor.Linear"]
    (skip,) = pipeline.reports[0].skips
    assert (skip.reason, skip.error) == ("above max_error 0.1", np.inf)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("granularity", ["tensor", "token"])
def test_one_scale_of_rows_that_are_no_numbers_would_spoil_all_others(
    granularity: Any, bad: float
) -> None:
    """Found by random graphs: the error was told of the other rows alone, as if they had kept theirs."""
    graph = parse(
        "graph main(%x: f32[n, 8]) -> (y = %y) {\n @w: f32[8, 4] = dense normal(1)\n"
        " %y: f32[n, 4] = tersor.Linear(%x, @w)\n}",
        TABLE,
    )
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    x[1, 3] = bad
    pipeline = Pipeline(
        [QuantizeDynamic(min_elements=0, granularity=granularity)],
        calibration=[{"x": x}],
        evaluate=evaluate,
    )
    after = pipeline.run(graph)
    if granularity == "tensor":
        assert [n.op for n in after.nodes] == ["tersor.Linear"]
        (skip,) = pipeline.reports[0].skips
        assert "one scale per tensor spreads them" in skip.reason
    made = ort.open_session(ort.build(after)).run({"x": x})["y"]
    others = [0, 2, 3]
    # Of 8 bits, or none at all.
    assert relative_error(evaluate(graph, {"x": x})["y"][others], made[others]) < 0.02


def test_a_weight_that_is_not_finite_does_not_keep_its_neighbours_from_being_smoothed() -> None:
    text = """graph main(%x: f32[n, 16]) -> (y = %y, z = %z) {
      @v: f32[16, 8] = dense normal(0)
      @w: f32[16, 8] = dense normal(1)
      %y: f32[n, 8] = tersor.Linear(%x, @v) scope "bad"
      %z: f32[n, 8] = tersor.Linear(%x, @w) scope "good"
    }"""
    graph = parse(text, TABLE)
    data = graph.constants["v"].numpy().copy()
    data[0, 0] = np.nan
    graph.replace(graph.constants["v"], graph.constant(data, "bad"))
    x = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    x[:, 3] *= 100
    pipeline = Pipeline([SmoothActivations()], calibration=[{"x": x}], evaluate=evaluate)
    pipeline.run(graph)
    (report,) = pipeline.reports
    assert report.rewrites == 1
    assert [skip.reason for skip in report.skips] == ["@bad contains NaN or infinity"]
    assert report.notes[0].layer == "good"


def test_a_layer_that_calibration_never_reaches_is_quantized_and_its_error_is_unknown() -> None:
    text = """graph main(%x: f32[n, 8]) -> (y = %y) {
      @w: f32[8, 4] = dense normal(0)
      %y: f32[n, 4] = tersor.Linear(%x, @w) {activation = "none"} scope "net"
    }"""
    empty = [{"x": np.zeros((0, 8), np.float32)}]
    steps = [SmoothActivations(), QuantizeDynamic(min_elements=0)]
    pipeline = Pipeline(steps, calibration=empty, evaluate=evaluate)
    after = pipeline.run(parse(text, TABLE))
    ops = [node.op for node in after.walk()]
    assert ops == ["DynamicQuantizeLinear", "DequantizeLinear", "tersor.Linear"]
    smooth, quantize = pipeline.reports
    assert [skip.reason for skip in smooth.skips] == ["no calibration rows reach it"]
    assert quantize.notes[0].reason == (
        "no calibration rows reach 1 layers: their errors are unknown"
    )


def test_layers_that_calibration_reaches_are_not_said_to_be_unseen() -> None:
    text = """graph main(%x: f32[n, 8]) -> (y = %y) {
      @w: f32[8, 4] = dense normal(0)
      %y: f32[n, 4] = tersor.Linear(%x, @w) {activation = "none"} scope "net"
    }"""
    feeds = [{"x": np.ones((2, 8), np.float32)}]
    pipeline = Pipeline([QuantizeDynamic(min_elements=0)], calibration=feeds, evaluate=evaluate)
    pipeline.run(parse(text, TABLE))
    assert not any("unknown" in note.reason for note in pipeline.reports[0].notes)


# -- rounding by calibration -----------------------------------------------------------------------


def _alike(rows: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Rows of 64 numbers that 16 make up."""
    mix = np.random.default_rng(11).standard_normal((16, 64))
    x = np.random.default_rng(seed).standard_normal((rows, 16)) @ mix
    return [{"x": x.astype(np.float32)}]


KEY = "encoder.layer.0.key"  # A layer whose weight and input nobody else changes.


def _key_values(text: str = LAYERS, **given: Any) -> tuple[np.ndarray, PassReport]:
    after, report = run(QuantizeDynamic(), parse(text, TABLE), **given)
    held = layer(after, KEY).inputs[1].encoding  # type: ignore[union-attr]
    assert isinstance(held, Affine)
    return held.values, report


@pytest.mark.parametrize("target", [VNNI, AVX2])
def test_with_calibration_weights_make_up_for_each_other(target: Target) -> None:
    nearest, _ = _key_values(target=target)
    values, report = _key_values(target=target, calibration=_alike(256, 0))
    weight = layer(parse(LAYERS, TABLE), KEY).inputs[1].numpy()  # type: ignore[union-attr]
    step = quantize_weight(weight, 1, pair_axis=0 if target is AVX2 else None).scale
    x = _alike(64, 1)[0]["x"]
    errors = [relative_error(x @ weight, x @ (held * step)) for held in (values, nearest)]
    assert errors[0] < 0.7 * errors[1]
    if target is AVX2:
        assert worst_pairs(values) <= 32767
    assert any(
        "layers are rounded so that their errors compensate" in n.reason for n in report.notes
    )


def _key_error(report: PassReport) -> float:
    (error,) = (e for label, e in report.changed.values() if label == KEY or KEY in str(label))
    assert error is not None
    return error


def test_weights_fit_larger_sums_where_kernels_are_faster_for_them() -> None:
    before, first = _key_values(target=AVX2, calibration=_alike(256, 0))
    values, report = _key_values(target=AVX2, calibration=_alike(256, 0), faster_sums=(FOURS,))
    assert FOURS.holds(values)
    assert not FOURS.holds(before)
    assert _key_error(first) < _key_error(report) < FASTER * _key_error(first)
    assert any("so that sums of more products fit" in n.reason for n in report.notes)


def test_larger_sums_are_for_targets_that_add_up_in_16_bits_and_for_calibration() -> None:
    for options in ({"target": VNNI, "calibration": _alike(256, 0)}, {"target": AVX2}):
        before, _ = _key_values(**options)
        values, report = _key_values(**options, faster_sums=(FOURS,))
        np.testing.assert_array_equal(values, before)
        assert not any("at once" in n.reason for n in report.notes)


def test_layers_that_larger_sums_cost_too_much_do_without() -> None:
    """All weights of a column are large and of one sign: steps would be twice as coarse; and inputs of 0 and 1
    lose nothing."""
    held, rng = [], np.random.default_rng(0)
    calibration = [{"x": rng.integers(0, 2, (256, 64)).astype(np.float32)}]
    large = rng.uniform(0.8, 1, (64, 64)).astype(np.float32)
    for faster in ((), (FOURS,)):
        graph = parse(LAYERS, TABLE)
        weight = graph.constants["v"]
        graph.set_encoding(weight, Dense(large))
        after, _ = run(
            QuantizeDynamic(), graph, target=AVX2, calibration=calibration, faster_sums=faster
        )
        encoding = layer(after, KEY).inputs[1].encoding  # type: ignore[union-attr]
        assert isinstance(encoding, Affine)
        held.append(encoding.values)
    np.testing.assert_array_equal(*held)


def test_too_few_rows_round_to_the_nearest_and_say_so() -> None:
    nearest, _ = _key_values()
    values, report = _key_values(calibration=_alike(12, 0))
    np.testing.assert_array_equal(values, nearest)
    assert any(
        "rounded to nearest: calibration has 12 rows for 64 inputs" in n.reason
        for n in report.notes
    )


def test_a_weight_that_others_read_is_rounded_to_the_nearest() -> None:
    text = LAYERS.replace("(y = %y, z = %z)", "(y = %y, z = %z, v = @v)")
    nearest, _ = _key_values()
    values, _ = _key_values(text, calibration=_alike(256, 0))
    np.testing.assert_array_equal(values, nearest)
