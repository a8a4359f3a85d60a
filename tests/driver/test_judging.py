"""What is judged: outputs, the scores that decide them, and without padding; on samples of all batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest

import tersor
from tersor.backends.ort import Evaluator
from tersor.driver.judging import Judge
from tersor.errors import InvalidOption
from tersor.frontends.onnx.exporter import export_model
from tersor.ir import Dense, Graph, parse
from tersor.ops import TABLE
from tersor.statistics.scores import scores_of
from tersor.statistics.thinning import held_out, sample_count, thinned

# Labels of 5 classes at each place; the last place of a row of the mask is padding where it says so.
TAGGER = """graph main(%x: f32[b, s, 16], %mask: i64[b, s]) -> (labels = %labels) {
  @w1: f32[16, 64] = dense normal(0)
  @w2: f32[64, 96] = dense normal(1)
  @w3: f32[96, 5] = dense normal(2)
  %a: f32[b, s, 64] = MatMul(%x, @w1)
  %h: f32[b, s, 64] = Relu(%a)
  %c: f32[b, s, 96] = MatMul(%h, @w2)
  %g: f32[b, s, 96] = Relu(%c)
  %f: f32[b, s] = Cast(%mask) {to = 1}
  @last: i64[1] = dense [-1]
  %u: f32[b, s, 1] = Unsqueeze(%f, @last)
  %k: f32[b, s, 96] = Mul(%g, %u)
  %logits: f32[b, s, 5] = MatMul(%k, @w3)
  %found: i64[b, s] = ArgMax(%logits) {axis = -1, keepdims = 0}
  %labels: i32[b, s] = Cast(%found) {to = 6}
}"""


def tagger(padded: bool = False) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    mask = np.ones((4, 6), np.int64)
    mask[:, 3:] = not padded
    return [{"x": rng.standard_normal((4, 6, 16)).astype(np.float32), "mask": mask}] * 2


def changed(graph: Graph, name: str, by: float) -> Graph:
    """With noise in a constant, so large a part of it."""
    copy = graph.copy()
    constant = copy.constants[name]
    was = constant.numpy()
    noise = np.random.default_rng(99).standard_normal(was.shape) * by * was.std()
    copy.set_encoding(constant, Dense((was + noise).astype(was.dtype)))
    return copy


def test_scores_that_no_pass_changed_are_no_row_of_a_built_model() -> None:
    """The runtime's kernels may change them all the same, which the graph does not show."""
    graph, evaluate = parse(TAGGER, TABLE), Evaluator()
    judge = Judge(graph, tagger(), evaluate)
    other = changed(graph, "w3", 0.5)
    for passed, rows in ((graph.copy(), {"labels"}), (other, {"labels", "logits"})):
        built = judge.of_built(
            lambda feed: evaluate(graph, feed), lambda feed: evaluate(other, feed), judge(passed)
        )
        assert {o.name for o in built.outputs} == rows
        assert built.kept is not None and built.kept < 1


def test_labels_and_the_scores_before_them_are_judged() -> None:
    graph = parse(TAGGER, TABLE)
    judge = Judge(graph, tagger(), Evaluator())
    same = judge(graph.copy())
    assert [o.label for o in same.outputs] == ["labels", "logits (before ArgMax of labels)"]
    assert same.kept == 1 and same.samples == 8
    other = judge(changed(graph, "w3", 0.5))
    labels = next(o for o in other.outputs if o.name == "labels")
    scores = next(o for o in other.outputs if o.name == "logits")
    want = Evaluator()(graph, tagger()[0])["labels"]
    have = Evaluator()(changed(graph, "w3", 0.5), tagger()[0])["labels"]
    assert labels.agreement == pytest.approx((want == have).mean()) != 1
    assert scores.relative_error == pytest.approx(0.5, abs=0.15)
    assert labels.agreement != 1 and other.kept == min(labels.agreement or 0, scores.kept or 0)


def test_padding_is_left_out() -> None:
    graph = parse(TAGGER, TABLE)
    told = Judge(graph, tagger(padded=True), Evaluator())(graph.copy())
    assert {o.name: o.elements for o in told.outputs} == {"labels": 2 * 12, "logits": 2 * 60}


@pytest.mark.parametrize(
    ("tail", "found"),
    [
        ("%y: f32[n, 4] = Softmax(%s)", [("s", "Softmax")]),
        ("%p: f32[n, 4] = Softmax(%s)\n  %y: i64[n, 1] = ArgMax(%p)", [("p", "ArgMax"), ("s", "Softmax")]),
        ("@k: i64[1] = dense [2]\n  %v: f32[n, 2], %y: i64[n, 2] = TopK(%s, @k)", [("s", "TopK")]),
        ("@o: f32[] = dense [0.5]\n  %y: bool[n, 4] = Greater(%s, @o)", [("s", "Greater")]),
        ("%y: u8[n, 4] = Cast(%s) {to = 2}", [("s", "Cast")]),
        # Shapes are not made of values, and a sum is no choice.
        ("%y: i64[2] = Shape(%s)", []),
        ("%y: f32[n, 4] = Add(%s, %s)", []),
    ],
)  # fmt: skip
def test_scores_are_what_decides(tail: str, found: list[tuple[str, str]]) -> None:
    text = f"""graph main(%x: f32[n, 4]) -> (out = %y) {{
      @w: f32[4, 4] = dense normal(0)
      %s: f32[n, 4] = MatMul(%x, @w)
      {tail}
    }}"""
    told = scores_of(parse(text, TABLE))
    assert [(s.value.name, s.op) for s in told] == found


def test_the_order_of_the_best_says_nothing_and_rounded_numbers_go_by_what_they_round() -> None:
    text = """graph main(%x: f32[n, 40]) -> (best = %i, pixels = %p) {
      @k: i64[1] = dense [4]
      @w: f32[40, 40] = dense normal(0)
      %s: f32[n, 40] = MatMul(%x, @w)
      %v: f32[n, 4], %i: i64[n, 4] = TopK(%s, @k)
      %p: i32[n, 40] = Cast(%s) {to = 6}
    }"""
    graph = parse(text, TABLE)
    feeds = [{"x": np.random.default_rng(0).standard_normal((64, 40)).astype(np.float32)}]
    noisy = changed(graph, "w", 0.1)
    told = {o.name: o for o in Judge(graph, feeds, Evaluator())(noisy).outputs}
    want, have = (Evaluator()(g, feeds[0])["best"] for g in (graph, noisy))
    overlap = [len(set(a) & set(b)) / 4 for a, b in zip(want.tolist(), have.tolist(), strict=True)]
    assert told["best"].agreement == pytest.approx(np.mean(overlap))
    assert np.mean(overlap) > (want == have).mean()
    assert not told["pixels"].counts and told["best"].counts


def onnx_tagger() -> onnx.ModelProto:
    return export_model(parse(TAGGER, TABLE))


def test_fidelity_is_told_without_measuring() -> None:
    made = tersor.compile(
        onnx_tagger(),
        recipe="int8",
        calibration=tagger(),
        settings={"quantize-dynamic.min_elements": 16},
        measure=False,
    )
    told = made.report.fidelity
    assert told is not None and told.on == "calibration inputs not used for fitting"
    names = {o.label for o in told.outputs}
    assert names == {"labels", "logits (before ArgMax of labels)"}
    session = tersor.compile(onnx_tagger(), recipe="fp32", measure=False)
    _, apart = held_out(parse(TAGGER, TABLE), tagger(), Evaluator())
    same = [(session.run(f)["labels"] == made.run(f)["labels"]).mean() for f in apart]
    assert told.agreement == pytest.approx(np.mean(same))
    assert told.relative_error is None  # Of scores, and no output's.


def test_without_calibration_and_measuring_nothing_is_told() -> None:
    assert tersor.compile(onnx_tagger(), recipe="fp32", measure=False).report.fidelity is None


def test_it_is_told_of_passes_that_are_named_too() -> None:
    made = tersor.convert(onnx_tagger(), calibration=tagger())
    assert made.report.fidelity is not None and made.report.fidelity.kept == 1


def test_outputs_without_numbers_are_unknown_and_no_fault() -> None:
    text = """graph main(%x: f32[n, 4]) -> (y = %y) {
      @w: f32[4, 4] = dense normal(0)
      %y: f32[n, 4] = MatMul(%x, @w)
    }"""
    feeds = [{"x": np.full((2, 4), np.inf, np.float32)}]  # Infinity less infinity.
    made = tersor.compile(
        export_model(parse(text, TABLE)), recipe="int8", calibration=feeds, measure=False
    )
    assert made.report.fidelity is not None and made.report.fidelity.min_cosine is None


# -- samples -------------------------------------------------------------------------------------


def counted(sizes: Sequence[int]) -> list[dict[str, np.ndarray]]:
    return [
        {"x": np.full((n, 3, 16), i, np.float32), "mask": np.ones((n, 3), np.int64)}
        for i, n in enumerate(sizes)
    ]


def test_fewer_samples_are_some_of_every_batch() -> None:
    graph = parse(TAGGER, TABLE)
    feeds = counted([8, 1, 40, 3])
    assert sample_count(graph, feeds) == 52
    found = thinned(graph, feeds, 13, Evaluator())
    assert [len(f["x"]) for f in found] == [2, 1, 10, 1]
    assert [f["x"][0, 0, 0] for f in found] == [0, 1, 2, 3]
    assert all(len(f["mask"]) == len(f["x"]) for f in found)
    assert thinned(graph, feeds, 52, Evaluator()) is feeds


def test_batches_that_do_not_come_apart_stay_whole() -> None:
    fixed = parse(TAGGER.replace("b, s", "4, s"), TABLE)
    feeds = counted([4, 4])
    assert thinned(fixed, feeds, 2, Evaluator()) is feeds
    graph = parse(TAGGER, TABLE)

    def refuses(graph: Graph, feed: Any) -> Any:
        raise InvalidOption("its batch is fixed inside")

    assert thinned(graph, feeds, 2, refuses) is feeds


def test_a_graph_without_hidden_scores_is_evaluated_as_it_is() -> None:
    plain = parse("graph main(%x: f32[b, 4]) -> (y = %y) {\n  %y: f32[b, 4] = Relu(%x)\n}", TABLE)
    seen: list[Graph] = []

    def evaluate(graph: Graph, feed: Any) -> dict[str, np.ndarray]:
        seen.append(
            graph
        )  # Its session is open, if it was the last one: a copy would open another.
        return {"y": feed["x"]}

    found = Judge(plain, [{"x": np.ones((2, 4), np.float32)}], evaluate)(plain)
    assert found.kept == 1 and all(graph is plain for graph in seen) and len(seen) == 2
