"""compile(), convert() and artifacts on small models: what is kept, what is refused, what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import tersor
from tersor.analysis.feeds import check_sizes, default_sizes, make_feed
from tersor.errors import InvalidModel, InvalidOption, Unsupported
from tersor.frontends.onnx import import_model
from tersor.ir import parse
from tersor.ops import TABLE as OPS
from tersor.pipeline.report import BEST, INPUT, Decision
from tersor.tuning import search
from tersor.tuning.cases import ADVICE
from tersor.tuning.measure import Bench, Paired, compare

RNG = np.random.default_rng(7)
TABLE = RNG.standard_normal((500, 160)).astype(np.float32)
WEIGHT = RNG.standard_normal((160, 96)).astype(np.float32)
BIAS = RNG.standard_normal(96).astype(np.float32)


def model() -> onnx.ModelProto:
    """ids i64[batch, length] -> Gelu(Embedding(ids) W + b): y f32[batch, length, 96]."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], name="embed"),
        helper.make_node("MatMul", ["x", "weight"], ["p"], name="product"),
        helper.make_node("Add", ["p", "bias"], ["s"], name="sum"),
        helper.make_node("Gelu", ["s"], ["y"], name="gelu"),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", 96])
    held = {"table": TABLE, "weight": WEIGHT, "bias": BIAS}
    constants = [numpy_helper.from_array(v, k) for k, v in held.items()]
    graph = helper.make_graph(nodes, "small", [ids], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "small.onnx"
    onnx.save(model(), found)
    return found


def batches(count: int = 3) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [{"ids": rng.integers(0, 500, (2, 9))} for _ in range(count)]


def reference(feed: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(model().SerializeToString())
    return np.asarray(session.run(None, feed)[0])


def test_fp32_gives_the_models_numbers_and_int8_nearly() -> None:
    feed = batches(1)[0]
    exact = tersor.compile(model(), recipe="fp32", measure=False)
    # Sums of 160 products in another order.
    np.testing.assert_allclose(exact.run(feed)["y"], reference(feed), rtol=0, atol=2e-5)
    small = tersor.compile(model(), recipe="int8", calibration=batches(), measure=False)
    got, expected = small.run(feed)["y"].ravel(), reference(feed).ravel()
    cosine = got @ expected / np.linalg.norm(got) / np.linalg.norm(expected)
    assert 0.999 < cosine < 1  # 8 bits of weights, activations and embeddings: about 1e-4 lost
    # int8 and its scales in place of f32.
    assert len(small.model) < 0.3 * len(model().SerializeToString())
    assert small.report.size_before == len(model().SerializeToString())
    assert small.report.size_after == len(small.model)


def test_what_was_not_measured_is_said_to_be_unknown() -> None:
    report = tersor.compile(model(), measure=False).report
    assert report.measured == [] and report.fidelity is None
    assert report.decisions == [Decision("measure", "measuring was turned off", "unmeasured")]
    other = tersor.compile(model(), target="cpu:neon").report
    why = "cpu:neon is not this machine"
    assert other.decisions[0] == Decision("measure", why, "unmeasured")
    assert report.kept is other.kept is None


def kept(candidate: str, why: str = "") -> Decision:
    return Decision("choose", why, "kept", candidate)


def slower(candidate: str, speedup: float) -> Decision:
    return Decision("choose", "", "slower", candidate, "batch=1 length=4", speedup)


def speedup(value: float) -> Paired:
    return Paired(1.0, 1.0 / value, value, value, value, 5)


def test_what_is_slower_than_the_input_is_not_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tersor.driver.choosing.compare", lambda *_: speedup(0.9))
    monkeypatch.setattr("tersor.tuning.search.duel", lambda *_: [speedup(1.0)])
    artifact = tersor.compile(path, recipe="int8", sizes=[{"batch": 1, "length": 4}])
    assert artifact.model == path.read_bytes()
    assert artifact.report.decisions == [
        slower("int8", 0.9),
        slower("fp32", 0.9),
        kept(INPUT, "no candidate is faster"),
    ]


@pytest.mark.parametrize(("ratio", "high"), [(0.94, 1.2), (0.979, 1.1), (0.985, 0.988)])
def test_what_is_told_as_slower_is_not_kept_however_wide_its_quartiles(
    path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, high: float
) -> None:
    result = Paired(1.0, 1 / ratio, ratio, 0.9, high, 20)
    monkeypatch.setattr("tersor.driver.choosing.compare", lambda *_: result)
    monkeypatch.setattr("tersor.tuning.search.duel", lambda *_: [speedup(1.0)])
    report = tersor.compile(path, recipe="fp32", sizes=[{"batch": 1, "length": 4}]).report
    assert report.decisions[-1] == kept(INPUT, "no candidate is faster")


def test_what_is_kept_below_1_is_said_to_be_as_fast_and_waits_are_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = Paired(1.0, 1 / 0.99, 0.99, 0.98, 1.01, 20)
    monkeypatch.setattr("tersor.driver.choosing.compare", lambda *_: result)
    monkeypatch.setattr("tersor.tuning.search.duel", lambda *_: [speedup(1.0)])
    told: list[str] = []
    report = tersor.compile(
        path,
        recipe="fp32",
        sizes=[{"batch": 1, "length": 4}],
        progress=lambda done, total, what: told.append(what),
    ).report
    even = Decision("choose", "", "even", "fp32", "batch=1 length=4", 0.99)
    assert report.decisions[-2:] == [even, kept("fp32")]
    for wait in (
        "importing",
        "selecting inputs to measure with",
        "checking that outputs are unchanged",
        "building fp32 for runtime ort",
        "measuring fp32 against the input at batch=1 length=4 (about 4 s)",
        "checking the built model",
        "comparing outputs",
    ):
        assert wait in told


def test_a_slower_int8_leaves_fp32(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = iter([speedup(0.8), speedup(1.2)])
    monkeypatch.setattr("tersor.driver.choosing.compare", lambda *_: next(results))
    monkeypatch.setattr("tersor.tuning.search.duel", lambda *_: [speedup(1.0)])
    artifact = tersor.compile(path, recipe="int8", sizes=[{"batch": 1, "length": 4}])
    assert artifact.report.kept == "fp32"
    feed = batches(1)[0]
    np.testing.assert_allclose(artifact.run(feed)["y"], reference(feed), rtol=0, atol=2e-5)


def test_a_recipe_that_compresses_nothing_says_so_and_is_measured_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tersor.driver.choosing.compare", lambda *_: speedup(0.8))
    monkeypatch.setattr("tersor.tuning.search.duel", lambda *_: [speedup(1.0)])
    nothing = {
        f"quantize-{kind}.min_elements": 10**9 for kind in ("dynamic", "embedding", "weights")
    }
    sizes = [{"batch": 1, "length": 4}]
    report = tersor.compile(path, recipe="int8", sizes=sizes, settings=nothing).report
    assert report.decisions == [
        Decision("recipe", "only lossless passes changed the graph", "unchanged", "int8"),
        slower("int8", 0.8),
        kept(INPUT, "no candidate is faster"),
    ]


def test_a_model_that_is_quantized_already_is_said_to_be(path: Path, tmp_path: Path) -> None:
    once = tersor.compile(path, recipe="int8", measure=False).save(tmp_path / "once.onnx")
    report = tersor.compile(once, recipe="int8", measure=False).report
    (said,) = [d for d in report.decisions if d.outcome == "unchanged"]
    assert said.reason.startswith("1 of 2 weights are quantized already; ")  # The other is small.


def test_measuring_is_real_and_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "SEARCH_PAIRS", 3)
    monkeypatch.setattr("tersor.driver.choosing.FINAL_PAIRS", 3)
    report = tersor.compile(path, "cpu", "fp32", sizes=[{"batch": 2, "length": 8}]).report
    ((row, timing),) = report.against_input
    assert row.sizes == "batch=2 length=8"
    assert timing.before_ms > 0 and timing.pairs == 3
    if report.kept != INPUT:
        assert report.fidelity is not None
        assert report.fidelity.min_cosine is not None and report.fidelity.min_cosine > 0.999999


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that say that everything new is faster, but a challenger is not."""
    monkeypatch.setattr("tersor.driver.choosing.compare", lambda *_: speedup(1.2))
    monkeypatch.setattr("tersor.tuning.search.duel", lambda *_: [speedup(1.0)])


def test_calibration_is_what_is_measured(path: Path, quick: None) -> None:
    report = tersor.compile(path, recipe="int8", calibration=batches()).report
    assert [row.sizes for row, _ in report.against_input] == [
        "batch=1 length=9",
        "batch=2 length=9",
    ]
    assert report.decisions == [kept("int8")]


@pytest.mark.parametrize("form", ["by name", "in order"])
def test_example_inputs_of_an_onnx_file_are_measured(path: Path, quick: None, form: str) -> None:
    (feed,) = batches(1)
    example = feed if form == "by name" else (feed["ids"],)
    report = tersor.compile(path, recipe="fp32", example_inputs=example).report
    told = [row.sizes for row, _ in report.against_input]
    assert told == ["batch=1 length=9", "batch=2 length=9"]


def needy() -> onnx.ModelProto:
    """x f32[n, 160] W, and row ``at`` + 900 of a table of 1,000: no id that is made up is right."""
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["p"]),
        helper.make_node("Sub", ["at", "first"], ["row"]),
        helper.make_node("Gather", ["table", "row"], ["e"]),
        helper.make_node("Add", ["p", "e"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 160]),
        helper.make_tensor_value_info("at", TensorProto.INT64, ["n"]),
    ]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 96])
    held = {"table": np.zeros((8, 96), np.float32), "weight": WEIGHT, "first": np.int64(900)}
    constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in held.items()]
    graph = helper.make_graph(nodes, "needy", inputs, [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_what_cannot_be_measured_is_built_as_it_was_asked_for(quick: None) -> None:
    made = tersor.compile(needy(), recipe="int8")
    (decision,) = made.report.decisions
    assert decision.outcome == "unmeasured"
    assert decision.reason.startswith(
        "the model does not run on made-up inputs (the model does not take these inputs (x "
    )
    assert "indices element out of data bounds, idx=-899" in decision.reason
    assert decision.reason.endswith(ADVICE)
    assert made.report.measured == [] and made.report.fidelity is None
    assert any(n.op_type.endswith("MatMul") for n in onnx.load_from_string(made.model).graph.node)
    assert len(made.model) < 0.5 * len(needy().SerializeToString())
    feed = {"x": RNG.standard_normal((3, 160)).astype(np.float32), "at": np.array([900, 907, 903])}
    real = tersor.compile(needy(), recipe="int8", calibration=[feed]).report
    assert real.decisions == [kept("int8")]


def test_strings_are_measured_too(quick: None) -> None:
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["s"],
            ["i"],
            domain="ai.onnx.ml",
            keys_strings=["a", "b"],
            values_int64s=[0, 1],
        ),
        helper.make_node("Gather", ["table", "i"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "texts",
        [helper.make_tensor_value_info("s", TensorProto.STRING, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 160])],
        [numpy_helper.from_array(TABLE[:2], "table")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    texts = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    report = tersor.compile(texts, recipe="fp32").report
    assert [row.sizes for row, _ in report.against_input] == ["n=1", "n=8"]


def test_where_no_candidate_runs_nothing_is_said_of_speed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InvalidModel("it has no form here")

    monkeypatch.setattr("tersor.driver.choosing.Search", refuse)
    report = tersor.compile(path, recipe="fp32", sizes=[{"batch": 1, "length": 4}]).report
    assert report.decisions == [
        Decision("choose", "it has no form here", "refused", "fp32"),
        kept(INPUT, "no candidate can be run"),
    ]


def test_a_challenger_with_other_outputs_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tersor.tuning.search.AGREEMENT", 1.1)  # which no two outputs reach
    monkeypatch.setattr("tersor.driver.choosing.FINAL_PAIRS", 3)
    report = tersor.compile(path, recipe="fp32", sizes=[{"batch": 1, "length": 4}]).report
    refused = [row for row in report.measured if row.timing is None]
    assert refused and all(r.refused.startswith("its outputs differ") for r in refused)


def test_a_challenger_that_is_hopeless_on_one_feed_is_not_timed_on_the_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        pairs, result = 5, speedup(0.5)

        def __init__(self, *_: object) -> None: ...

        def add(self) -> None: ...

    monkeypatch.setattr("tersor.tuning.duel.Comparison", Slow)
    monkeypatch.setattr("tersor.driver.choosing.compare", lambda *_: speedup(1.2))
    sizes = [{"batch": 1, "length": 4}, {"batch": 2, "length": 4}]
    report = tersor.compile(path, recipe="fp32", sizes=sizes).report
    assert report.kept == "fp32"
    tried = [row for row in report.measured if row.against == BEST]
    assert {row.sizes for row in tried} == {"batch=1 length=4"}
    assert "fp32 spinning=False" in [row.candidate for row in tried]


def test_an_interrupt_ends_the_search_and_keeps_the_best_so_far(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interrupted(*arguments: object) -> list[Paired]:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return [speedup(1.5)]

    monkeypatch.setattr("tersor.tuning.search.duel", interrupted)
    monkeypatch.setattr("tersor.driver.choosing.compare", lambda *_: speedup(1.2))
    artifact = tersor.compile(path, recipe="fp32", sizes=[{"batch": 1, "length": 4}])
    assert artifact.report.kept == "fp32 linear=gemm"  # the first challenger
    assert artifact.report.measured[1].refused == "interrupted: the best so far is kept"
    feed = batches(1)[0]
    np.testing.assert_allclose(artifact.run(feed)["y"], reference(feed), rtol=0, atol=2e-5)


def test_portable_files_hold_standard_ops_only() -> None:
    artifact = tersor.compile(model(), recipe="int8", portable=True, measure=False)
    built = onnx.load_from_string(artifact.model)
    assert {n.domain for n in built.graph.node} <= {""}
    assert {o.domain for o in built.opset_import} == {""}


def test_names_of_the_users_choosing_even_those_of_inner_values() -> None:
    artifact = tersor.compile(
        model(), recipe="fp32", measure=False, input_names=["weight"], output_names=["p"]
    )
    feed = batches(1)[0]
    got = artifact.run({"weight": feed["ids"]})
    np.testing.assert_allclose(got["p"], reference(feed), rtol=0, atol=2e-5)


def test_equal_inputs_give_equal_bytes() -> None:
    one, two = (tersor.compile(model(), measure=False, calibration=batches()) for _ in range(2))
    assert one.model == two.model


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"target": "cuda:sm_90"}, Unsupported, "runtime ort builds for cpu, not for cuda:sm_90"),
        ({"target": "gpu"}, InvalidOption, "no target 'gpu', did you mean 'cpu'?"),
        ({"recipe": "int9"}, InvalidOption, "no recipe 'int9', did you mean 'int8'?"),
        ({"runtime": "tf"}, InvalidOption, "no runtime 'tf'"),
        ({"calibration": []}, InvalidOption, "calibration has no batches"),
        ({"calibration": [[1]]}, InvalidOption, "calibration batch 0 is a list"),
        ({"calibration": {"ids": [[1]]}}, InvalidOption, "calibration is one batch: give a list of batches"),
        ({"calibration": [{"ids": np.ones((2, 3))}]}, InvalidOption, "calibration batch 0: 'ids' is f64[2, 3], the model takes i64[batch, length]"),
        ({"calibration": [{"ids": [1, 2]}]}, InvalidOption, "calibration batch 0: 'ids' is i64[2], the model takes i64[batch, length]"),
        ({"calibration": [{"ids": [[object()]]}]}, InvalidOption, "calibration batch 0: 'ids' is "),
        ({"calibration": [{"x": 1}]}, InvalidOption, "calibration batch 0 has x; the model takes ids"),
        ({"sizes": [{"batch": 1}]}, InvalidOption, "do not set dim 'length'"),
        ({"sizes": [{"batch": 1, "lenght": 2}]}, InvalidOption, "did you mean 'length'?"),
        ({"sizes": [{"batch": 0, "length": 2}]}, InvalidOption, "dim 'batch' cannot be 0"),
        ({"example_inputs": {"x": 1}}, InvalidOption, "do not match the model's inputs: ids i64[batch, length]"),
        ({"example_inputs": [1.5]}, InvalidOption, "the example inputs do not match the model's inputs"),
        ({"input_names": ["a", "b"]}, InvalidOption, "2 input names for 1 inputs"),
        ({"settings": {"max_eror": 1}}, InvalidOption, "has no option 'max_eror'"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(
    arguments: dict[str, object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        tersor.compile(model(), **arguments)  # type: ignore[arg-type]
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [3, None, object()])
def test_what_is_no_model_is_refused(model: object) -> None:
    with pytest.raises(InvalidOption, match="is not a model: give an ONNX file, a torch module"):
        tersor.compile(model)


def test_wrong_inputs_at_run_time_are_named() -> None:
    artifact = tersor.compile(model(), recipe="fp32", measure=False)
    with pytest.raises(InvalidOption, match="input 'ids' is missing"):
        artifact.run({})
    with pytest.raises(InvalidOption, match="no input 'mask'; the model takes ids"):
        artifact.run({"ids": np.zeros((1, 2), np.int64), "mask": np.zeros(1)})


def test_made_up_inputs_lie_in_the_table_they_index() -> None:
    graph = import_model(model())
    assert default_sizes(graph) == [
        {"batch": 1, "length": 32}, {"batch": 1, "length": 128}, {"batch": 8, "length": 128},
    ]  # fmt: skip
    (size,) = check_sizes(graph, [{"batch": 4, "length": 1000}])
    ids = make_feed(graph, size)["ids"]
    assert ids.shape == (4, 1000) and ids.dtype == np.int64
    assert ids.min() >= 0 and 400 < ids.max() < 500


def test_a_past_may_be_empty_and_nothing_else() -> None:
    text = """graph main(%past: f32[batch, past, 4], %x: f32[batch, new, 4]) -> (y = %y) {
      %y: f32[batch, past + new, 4] = Concat(%past, %x) {axis = 1}
    }"""
    graph = parse(text, OPS)
    (size,) = check_sizes(graph, [{"batch": 1, "past": 0, "new": 3}])
    assert make_feed(graph, size)["past"].shape == (1, 0, 4)
    lone = parse(text.replace("Concat(%past, %x) {axis = 1}", "Add(%past, %x)"), OPS)
    for dims in (("batch", graph), ("past", lone)):
        sizes = {"batch": 1, "past": 1, "new": 1, dims[0]: 0}
        with pytest.raises(InvalidOption, match=f"dim '{dims[0]}' cannot be 0"):
            check_sizes(dims[1], [sizes])


def test_a_model_compared_with_itself_is_as_fast(path: Path) -> None:
    feed = {"ids": np.zeros((2, 8), np.int64)}
    with Bench([feed]) as bench:
        a, b = (bench.start("ort", path, {}) for _ in range(2))
        result = compare(a, b, 0, 5)
        np.testing.assert_array_equal(a.outputs(0)["y"], b.outputs(0)["y"])
    assert result.low <= result.speedup <= result.high
    assert 0.05 < result.speedup < 20  # the same work; the machine may stutter
    assert not speedup(0.995).slower and speedup(0.9).slower


def test_a_worker_that_cannot_load_its_model_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with Bench([]) as bench, pytest.raises(InvalidModel, match="ONNX Runtime refuses the model"):
        bench.start("ort", broken, {})
