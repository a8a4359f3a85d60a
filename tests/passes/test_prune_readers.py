"""Structured pruning of what convolutions and recurrent layers read: what the fit makes up for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersor.backends import ort
from tersor.frontends import load_model
from tersor.ir import Dense, Graph, parse, verify
from tersor.models import zoo
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.passes.prune.prune_structure import PruneStructure
from tersor.pipeline import Feeds, Pipeline, registry
from tersor.pipeline.report import PassReport, Remark
from tersor.pruning.pruned_outputs import output_loss
from tersor.pruning.reconstruction import moments
from tersor.pruning.unit_order import readers
from tersor.statistics.products import matrices
from tersor.structure import axis_groups

EXACT = {"rtol": 1e-4, "atol": 1e-4}  # the ridge of 1e-7 and f32 weights, of numbers up to 10

# Eight channels of an image of three; the convolution that reads them has all that there is.
IMAGE = """graph main(%x: f32[n, 3, 9, 8]) -> (y = %y) {
  @w: f32[8, 3, 3, 3] = dense normal(0)
  @c: f32[8] = dense normal(1)
  @v: f32[5, 8, 3, 2] = dense normal(2)
  @b: f32[5] = dense normal(3)
  %h: f32[n, 8, 9, 8] = Conv(%x, @w, @c) {pads = [1, 1, 1, 1]} scope "made"
  %y: f32[n, 5, 4, 4] = Conv(%h, @v, @b) {dilations = [2, 1], pads = [1, 0, 1, 1], strides = [2, 2]} scope "read"
}"""
# Channels that go through a depthwise convolution and an activation; no bias where they are read.
DEPTHWISE = """graph main(%x: f32[n, 3, 8, 8]) -> (y = %y) {
  @w: f32[12, 3, 1, 1] = dense normal(0)
  @c: f32[12] = dense normal(1)
  @d: f32[12, 1, 3, 3] = dense normal(2)
  @v: f32[4, 12, 1, 1] = dense normal(3)
  %h: f32[n, 12, 8, 8] = Conv(%x, @w, @c) scope "made"
  %a: f32[n, 12, 8, 8] = Relu(%h)
  %e: f32[n, 12, 8, 8] = Conv(%a, @d) {group = 12, pads = [1, 1, 1, 1]} scope "each"
  %y: f32[n, 4, 8, 8] = Conv(%e, @v) scope "read"
}"""
# What is read is added to what the convolution makes.
RESIDUAL = """graph main(%x: f32[n, 3, 7]) -> (y = %y) {
  @w: f32[10, 3, 3] = dense normal(0)
  @v: f32[10, 10, 3] = dense normal(1)
  @u: f32[4, 10, 1] = dense normal(2)
  %h: f32[n, 10, 7] = Conv(%x, @w) {pads = [1, 1]} scope "made"
  %a: f32[n, 10, 7] = Relu(%h)
  %k: f32[n, 10, 7] = Conv(%a, @v) {pads = [1, 1]} scope "beside"
  %r: f32[n, 10, 7] = Add(%a, %k)
  %y: f32[n, 4, 7] = Conv(%r, @u) scope "read"
}"""
SEQUENCE = """graph main(%x: f32[s, n, 5]) -> (y = %y) {{
  @e: f32[5, 8] = dense normal(0)
  @w: f32[{directions}, {rows}, 8] = dense normal(1)
  @r: f32[{directions}, {rows}, 4] = dense normal(2)
  {bias_line}%h: f32[s, n, 8] = tersor.Linear(%x, @e) {{activation = "none"}} scope "made"
  %y: f32[s, {directions}, n, 4] = {op}(%h, @w, @r{bias}) {{direction = "{direction}", hidden_size = 4}} scope "read"
}}"""
STACKED = """graph main(%x: f32[s, n, 5]) -> (y = %y) {
  @w: f32[1, 48, 5] = dense normal(0)
  @r: f32[1, 48, 12] = dense normal(1)
  @w2: f32[1, 30, 12] = dense normal(2)
  @r2: f32[1, 30, 10] = dense normal(3)
  @o: f32[10, 3] = dense normal(4)
  @one: i64[1] = dense [1]
  %h: f32[s, 1, n, 12] = LSTM(%x, @w, @r) {hidden_size = 12} scope "first"
  %k: f32[s, n, 12] = Squeeze(%h, @one)
  %g: f32[s, 1, n, 10] = GRU(%k, @w2, @r2) {hidden_size = 10} scope "second"
  %l: f32[s, n, 10] = Squeeze(%g, @one)
  %y: f32[s, n, 3] = tersor.Linear(%l, @o) {activation = "none"} scope "head"
}"""


def sequence(op: str, directions: int, biased: bool) -> Graph:
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * 4
    line = f"@b: f32[{directions}, {2 * rows}] = dense normal(3)\n  " if biased else ""
    text = SEQUENCE.format(
        op=op, directions=directions, rows=rows, bias_line=line, bias=", @b" if biased else "",
        direction="bidirectional" if directions == 2 else "forward",
    )  # fmt: skip
    return parse(text, TABLE)


def feeds(graph: Graph, count: int = 4, batch: int = 6, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    dims = graph.inputs[0].tensor.dims
    assert dims is not None
    shape = [d if isinstance(d, int) else batch for d in dims]
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def prune(graph: Graph, given: Feeds, **options: Any) -> tuple[Graph, PassReport]:
    pipeline = Pipeline([PruneStructure(**options)], "text", calibration=given, evaluate=evaluate)
    after = pipeline.run(graph)
    verify(after)
    assert after.signature() == graph.signature()
    return after, pipeline.reports[0]


def depend(graph: Graph, name: str, axis: int, bias: str = "") -> None:
    """Unit 2 of a layer becomes a combination of others and a constant, and unit 5 a constant."""
    array = np.moveaxis(graph.constants[name].numpy().copy(), axis, 0)
    array[2], array[5] = 0.5 * array[0] - 0.8 * array[3] + 0.3 * array[7], 0
    graph.set_encoding(graph.constants[name], Dense(np.ascontiguousarray(np.moveaxis(array, 0, axis))))  # fmt: skip
    if bias:
        held = graph.constants[bias].numpy().copy()
        held[2] = 0.5 * held[0] - 0.8 * held[3] + 0.3 * held[7]
        graph.set_encoding(graph.constants[bias], Dense(held))


def loss(before: Graph, after: Graph, given: Feeds, run: Any = evaluate) -> float:
    return output_loss([run(before, f) for f in given], [run(after, f) for f in given])


# -- nothing is lost where nothing need be ---------------------------------------------------------


def test_channels_that_follow_from_others_go_and_the_convolution_is_what_it_was() -> None:
    graph = parse(IMAGE, TABLE)
    depend(graph, "w", 0, "c")
    # A constant channel is none where padding begins: its bias goes with it.
    held = graph.constants["c"].numpy().copy()
    held[5] = 0
    graph.set_encoding(graph.constants["c"], Dense(held))
    given = feeds(graph)
    after, report = prune(graph, given, ratio=0.25, damping=1e-7)
    # Which of 0, 2, 3 and 7 goes is free: each follows from the other three.
    gone = set(range(8)) - {u for part in report.kept["made#2"].split(",") for u in _span(part)}
    assert 5 in gone
    assert len(gone) == 2 and gone - {5} <= {0, 2, 3, 7}
    fresh = feeds(graph, 1, seed=9)[0]
    want = evaluate(graph, fresh)["y"]
    np.testing.assert_allclose(evaluate(after, fresh)["y"], want, **EXACT)
    session = ort.open_session(ort.build(after))
    np.testing.assert_allclose(session.run(fresh)["y"], want, **EXACT)
    for criterion in ("obs", "l2"):
        bare, _ = prune(graph, given, ratio=0.25, criterion=criterion, reconstruct=False)
        assert loss(graph, bare, [fresh]) > 0.01


def _span(text: str) -> range:
    low, _, high = text.partition("-")
    return range(int(low), int(high or low) + 1)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("biased", [True, False])
def test_features_that_follow_from_others_go_and_the_recurrent_layer_is_what_it_was(
    op: str, directions: int, biased: bool
) -> None:
    graph = sequence(op, directions, biased)
    depend(graph, "e", 1)
    after, report = prune(graph, feeds(graph), ratio=0.25, damping=1e-7, scopes=("made#2",))
    # Of 5 numbers 8 are made, so that others follow from each other, too.
    assert len(_units(report.kept["made#2"])) == 6
    fresh = feeds(graph, 1, seed=9)[0]
    want = evaluate(graph, fresh)["y"]
    np.testing.assert_allclose(evaluate(after, fresh)["y"], want, **EXACT)
    session = ort.open_session(ort.build(after))
    np.testing.assert_allclose(session.run(fresh)["y"], want, **EXACT)


STATES = """graph main(%x: f32[s, n, 5]) -> (y = %y) {{
  @w: f32[{directions}, {rows}, 5] = dense normal(0)
  @r: f32[{directions}, {rows}, 6] = dense normal(1)
  @b: f32[{directions}, {both}] = dense normal(2)
  @o: f32[{width}, 3] = dense normal(3)
  @flat: i64[3] = dense [0, 0, {width}]
  %h: f32[s, {directions}, n, 6] = {op}(%x, @w, @r, @b) {{direction = "{direction}", hidden_size = 6{more}}} scope "cell"
  %t: f32[s, n, {directions}, 6] = Transpose(%h) {{perm = [0, 2, 1, 3]}}
  %f: f32[s, n, {width}] = Reshape(%t, @flat)
  %y: f32[s, n, 3] = tersor.Linear(%f, @o) {{activation = "none"}} scope "head"
}}"""


@pytest.mark.parametrize(
    ("op", "gates", "more"),
    [
        ("LSTM", 4, ""),
        ("GRU", 3, ""),
        ("GRU", 3, ", linear_before_reset = 1"),
        ("RNN", 1, ""),
    ],
)
@pytest.mark.parametrize("directions", [1, 2])
def test_a_hidden_unit_that_is_like_another_goes_and_the_others_read_that_one_twice(
    op: str, gates: int, more: str, directions: int
) -> None:
    """Unit 4 is read by other weights than unit 1, by the layer itself and by the one behind it."""
    rows = gates * 6
    text = STATES.format(
        op=op, rows=rows, both=2 * rows, directions=directions, width=6 * directions, more=more,
        direction="bidirectional" if directions == 2 else "forward",
    )  # fmt: skip
    graph = parse(text, TABLE)
    for name in ("w", "r", "b"):
        held = graph.constants[name].numpy().copy() / 2
        own = held.reshape(directions, -1, 6, *held.shape[2:])
        own[:, :, 4] = own[:, :, 1]
        graph.set_encoding(graph.constants[name], Dense(held))
    given = feeds(graph, 8, batch=12)
    after, report = prune(graph, given, ratio=1 / 6, damping=1e-9)
    assert report.kept["cell#2"] in ("0,2-5", "0-3,5")
    fresh = feeds(graph, 1, seed=9)[0]
    want = evaluate(graph, fresh)["y"]
    # States of less than 1 in size, of which 6 that hang together by no more than f32 tells.
    np.testing.assert_allclose(evaluate(after, fresh)["y"], want, rtol=1e-3, atol=1e-3)
    session = ort.open_session(ort.build(after))
    np.testing.assert_allclose(session.run(fresh)["y"], want, rtol=1e-3, atol=1e-3)
    bare, _ = prune(graph, given, ratio=1 / 6, damping=1e-9, reconstruct=False)
    assert np.abs(evaluate(bare, fresh)["y"] - want).max() > 0.1


def _units(text: str) -> list[int]:
    return [u for part in text.split(",") for u in _span(part)]


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_the_mean_of_what_went_is_in_the_inputs_half_of_the_bias(op: str) -> None:
    """A feature that is always 1 goes: all that is left of it is a bias."""
    graph = sequence(op, 1, False)
    table = graph.constants["e"].numpy().copy()
    table[:, 3] = 0
    graph.set_encoding(graph.constants["e"], Dense(table))
    ones = graph.constant(np.eye(8, dtype=np.float32)[3], "ones")
    graph.set_input(next(n for n in graph.nodes if n.op == "tersor.Linear"), 2, ones)
    after, report = prune(graph, feeds(graph), ratio=0.125, damping=1e-7, scopes=("made#2",))
    assert report.kept["made#2"] == "0-2,4-7"
    made = next(n for n in after.nodes if n.op == op).inputs[3]
    assert made is not None
    width = graph.constants["w"].tensor.shape[1]
    want = graph.constants["w"].numpy()[:, :, 3]
    np.testing.assert_allclose(made.numpy()[:, :width], want, **EXACT)
    np.testing.assert_array_equal(made.numpy()[:, width:], 0)


# -- and never more is lost than without a fit -----------------------------------------------------

CASES = {
    "image": IMAGE,
    "depthwise": DEPTHWISE,
    "residual": RESIDUAL,
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ratio", [0.25, 0.5])
@pytest.mark.parametrize("criterion", ["l2", "obs"])
def test_a_fitted_convolution_loses_less_on_calibration(
    name: str, ratio: float, criterion: str
) -> None:
    """By construction where the last layer alone reads the group: the same units go."""
    graph = parse(CASES[name], TABLE)
    given = feeds(graph)
    options = {"ratio": ratio, "criterion": criterion}
    fitted, report = prune(graph, given, **options)
    bare, _ = prune(graph, given, reconstruct=False, **options)
    assert report.rewrites > 0
    assert 0 < loss(graph, fitted, given) < loss(graph, bare, given)
    assert all(np.isfinite(v.numpy()).all() for v in fitted.constants.values())


@pytest.mark.parametrize("text", [IMAGE, DEPTHWISE, sequence])
@pytest.mark.parametrize("damping", [1e-6, 0.01, 10.0])
def test_what_a_layer_makes_of_the_inputs_left_is_no_farther_from_its_targets(
    text: Any, damping: float
) -> None:
    """With any ridge: |x V + c - t|^2 + r |V - W|^2 is at most what it is for V = W."""
    graph = parse(text, TABLE) if isinstance(text, str) else sequence("LSTM", 2, True)
    group = next(g for g in axis_groups(graph) if g.free and readers(g) and g.units in (8, 12))
    (reader,) = readers(group)
    seen = moments(graph, graph, reader.node.output.name, feeds(graph), evaluate)
    assert seen is not None
    before, bias = matrices(reader.node, reader.weight)
    kept = np.setdiff1d(np.arange(len(before)), reader.inputs([1, 4]))
    weight, shift = seen.solve(before, kept, damping, biased=True)

    def error(matrix: np.ndarray, constant: np.ndarray) -> float:
        """Up to |t|^2."""
        at = [*kept, len(before)]
        full = np.concatenate([matrix, constant[None]])
        own = seen.xtx[np.ix_(at, at)]
        return float(np.sum(full * (own @ full)) - 2 * np.sum(full * seen.xtt[at]))

    was = np.zeros(before.shape[1]) if bias is None else bias
    assert error(weight, shift) < error(before[kept], was)


# -- budgets, with biases that are new -------------------------------------------------------------


@pytest.mark.parametrize("options", [{"ratio": 0.25}, {"macs": 0.6}, {"parameters": 0.6}, {"macs": 0.6, "allocation": "evolutionary"}])  # fmt: skip
@pytest.mark.parametrize("text", [STACKED, DEPTHWISE, RESIDUAL])
def test_layers_that_get_a_bias_are_cut_with_it_in_trials_and_in_the_end(
    text: str, options: Any
) -> None:
    graph = parse(text, TABLE)
    after, report = prune(graph, feeds(graph), **options)
    assert report.rewrites > 0
    fresh = feeds(graph, 1, seed=7)[0]
    session = ort.open_session(ort.build(after))
    got, same = session.run(fresh)["y"], evaluate(after, fresh)["y"]
    np.testing.assert_allclose(got, same, rtol=1e-3, atol=1e-3)  # f32 over ten steps
    biases = [n.input({"Conv": 2}.get(n.op, 3)) for n in after.nodes if n.op in ("Conv", "LSTM", "GRU")]  # fmt: skip
    assert sum(b is not None for b in biases) >= 1
    assert not any(skip.method == "not refitted" for skip in report.skips)


def test_what_is_not_fitted_is_told() -> None:
    text = IMAGE.replace("f32[5, 8, 3, 2]", "f32[5, 4, 3, 2]").replace("[5]", "[6]")
    text = text.replace("f32[5, 4, 3, 2]", "f32[6, 4, 3, 2]").replace("n, 5, 4, 4", "n, 6, 4, 4")
    graph = parse(text.replace("{dilations", "{group = 2, dilations"), TABLE)
    after, report = prune(graph, feeds(graph), ratio=0.5)
    assert report.rewrites == 1
    why = "Conv does not multiply rows of an operand by @v as one matrix"
    assert Remark(why, layer="Conv %y (read)", method="not refitted") in report.skips
    assert np.isfinite(evaluate(after, feeds(graph, 1)[0])["y"]).all()


# -- workloads -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "share"),
    # Seen: 0.30, 0.05, 0.68, 0.29
    [
        pytest.param("text_cnn", 0.5, marks=pytest.mark.sweep),
        ("mobilenet_digits", 0.15),
        ("gru_classifier", 0.9),
        pytest.param("bilstm_tagger", 0.5, marks=pytest.mark.sweep),
    ],
)
def test_a_quarter_of_all_units_of_a_trained_workload(name: str, share: float) -> None:
    """Inputs of the test are none of calibration's."""
    workload, run = zoo.find(name), ort.Evaluator()
    graph = load_model(workload.build(), **workload.torch_arguments()).graph
    graph = Pipeline(registry.optimization()).run(graph)
    lost = {}
    for fitted in (True, False):
        step = PruneStructure(ratio=0.25, reconstruct=fitted)
        pipeline = Pipeline([step], "text", calibration=workload.calibration(), evaluate=run)
        lost[fitted] = loss(graph, pipeline.run(graph), workload.test(), run)
    assert lost[True] < share * lost[False]
