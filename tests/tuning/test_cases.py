"""Which inputs a compilation is measured on: real ones, or such as the model runs on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tersor.analysis.feeds import make_feed, stretched
from tersor.analysis.roles import END
from tersor.errors import InvalidModel, InvalidOption
from tersor.ir import parse
from tersor.ops import TABLE
from tersor.pipeline import registry
from tersor.tuning.cases import ADVICE, Cases, example_feed, find_cases
from tersor.tuning.measure import Trial


def cases(text: str, **given: Any) -> Cases:
    """Of a graph, which is run."""
    graph, evaluate = parse(text, TABLE), registry.backend("ort").Evaluator()

    def run(feed: Mapping[str, np.ndarray]) -> None:
        try:
            evaluate(graph, feed)
        except InvalidOption as error:
            raise InvalidModel(str(error)) from None

    return find_cases(graph, run, **given)


def labels(found: Cases) -> list[str]:
    return [case.label for case in found.cases]


MASKED = """graph main(%ids: i64[batch, new], %mask: f32[batch, total], %past: f32[batch, past, 4]) -> (y = %y) {
  @table: f32[50, 4] = dense normal(0)
  %e: f32[batch, new, 4] = Gather(@table, %ids) {axis = 0}
  %all: f32[batch, past + new, 4] = Concat(%past, %e) {axis = 1}
  @last: i64[1] = dense [-1]
  %sums: f32[batch, past + new] = ReduceSum(%all, @last) {keepdims = 0}
  %y: f32[batch, total] = Add(%sums, %mask)
}"""
REMARK = "measured at the nearest sizes at which the model runs"


def test_a_mask_over_past_and_new_keys_gets_the_length_of_both() -> None:
    found = cases(MASKED)
    assert labels(found) == [
        "batch=1 new=32 total=64 past=32",
        "batch=1 new=128 total=256 past=128",
        "batch=8 new=128 total=256 past=128",
    ]
    assert [r.startswith(REMARK) and ADVICE in r for r in found.remarks] == [True]


def test_integers_are_what_their_readers_take() -> None:
    text = """graph main(%x: f32[n, 12], %shape: i64[2], %parts: i64[3], %at: i64[k], %rate: i64[], %begin: i64[1], %end: i64[1]) -> (r = %r, s = %s, g = %g, b = %b, c = %c) {
      @known: i64[] = dense [16000]
      %r: f32[?, ?] = Reshape(%x, %shape)
      %s: f32[n, ?], %s2: f32[n, ?], %s3: f32[n, ?] = Split(%x, %parts) {axis = 1}
      %g: f32[k, 12] = Gather(%x, %at) {axis = 0}
      %b: bool[] = Equal(%rate, @known)
      %c: f32[?, 12] = Slice(%x, %begin, %end)
    }"""
    feed = make_feed(parse(text, TABLE), {"n": 2, "k": 3})
    assert feed["shape"].tolist() == [-1, 1]
    assert feed["parts"].tolist() == [4, 4, 4]
    assert feed["at"].tolist() == [0, 0, 0]
    assert feed["rate"] == 16000 and feed["rate"].shape == ()
    assert feed["begin"].tolist() == [0] and feed["end"].tolist() == [END]
    found = cases(text)
    assert labels(found) == ["n=1 k=1", "n=8 k=8"] and not found.remarks


def test_ids_of_a_table_that_is_picked_from_along_another_axis_lie_in_it() -> None:
    text = """graph main(%i: i64[n]) -> (y = %y) {
      @table: f32[500, 3] = dense normal(0)
      %y: f32[500, n] = Gather(@table, %i) {axis = 1}
    }"""
    assert set(make_feed(parse(text, TABLE), {"n": 99})["i"]) == {0, 1, 2}


def test_where_nothing_is_known_of_integers_zeros_are_tried_last() -> None:
    text = """graph main(%i: i64[n]) -> (y = %y) {
      @table: f32[1, 3] = dense normal(0)
      @two: i64[] = dense [2]
      %j: i64[n] = Mul(%i, @two)
      %y: f32[n, 3] = Gather(@table, %j) {axis = 0}
    }"""
    found = cases(text)
    assert labels(found) == ["n=1", "n=8"]
    assert not found.cases[1].feed["i"].any()


LINE = """graph main(%x: f32[n, k, 4]) -> (y = %y) {
  @w: f32[4, 3] = dense normal(0)
  %y: f32[n, k, 3] = MatMul(%x, @w)
}"""


def batch(n: int, k: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((n, k, 4)).astype(np.float32)}


def test_real_batches_are_measured_as_they_are_and_one_sample_of_the_largest() -> None:
    given = [batch(3, 5), batch(3, 9), batch(3, 7), batch(2, 5), batch(3, 7, 1)]
    found = cases(LINE, batches=given)
    assert labels(found) == ["n=1 k=9", "n=3 k=7", "n=3 k=9"]
    assert [c.sizes for c in found.cases] == [{"n": 1, "k": 9}, {"n": 3, "k": 7}, {"n": 3, "k": 9}]
    np.testing.assert_array_equal(found.cases[0].feed["x"], given[1]["x"][:1])
    assert found.cases[2].feed["x"] is given[1]["x"]


def test_batches_without_samples_are_not_measured() -> None:
    assert labels(cases(LINE, batches=[batch(0, 3), batch(2, 3)])) == ["n=1 k=3", "n=2 k=3"]
    assert labels(cases(LINE, batches=[batch(0, 3)]))[0] == "n=1 k=32"


def test_at_sizes_that_the_user_gives_real_batches_lend_their_numbers() -> None:
    found = cases(LINE, batches=[batch(2, 3)], sizes=[{"n": 3, "k": 2}])
    assert labels(found) == ["n=3 k=2"]
    real = batch(2, 3)["x"]
    np.testing.assert_array_equal(found.cases[0].feed["x"], real[[0, 1, 0]][:, :2])


def test_an_example_of_a_rank_that_the_model_leaves_open() -> None:
    text = """graph main(%x: f32[*]) -> (y = %y) {
      %y: f32[*] = Relu(%x)
    }"""
    refused = cases(text)
    assert not refused.cases and "f32[*]" in refused.refusal
    assert labels(cases(text, example=batch(2, 3))) == ["x=2x3x4"]


def test_sizes_that_the_model_does_not_run_at_are_told() -> None:
    text = """graph main(%x: f32[n], %z: f32[m]) -> (y = %y) {
      %y: f32[?] = Add(%x, %z)
    }"""
    found = cases(text, sizes=[{"n": 2, "m": 3}, {"n": 3, "m": 3}])
    assert labels(found) == ["n=3 m=3"]
    assert found.remarks[0].startswith(
        "not measured at n=2 m=3: the model does not take these inputs (x 2, z 3): "
    )


def test_examples_are_taken_by_name_or_in_order_where_they_fit() -> None:
    graph = parse(LINE, TABLE)
    x = batch(2, 3)["x"]
    for example in ({"x": x}, (x,), [x]):
        found = example_feed(graph, example)
        assert found is not None
        np.testing.assert_array_equal(found["x"], x)
    for example in ({"y": x}, (x, x), x, {"x": x.astype(np.int64)}, {"x": x[0]}, {"x": object()}):
        assert example_feed(graph, example) is None


def test_arrays_are_repeated_or_cut_from_their_beginning() -> None:
    x = np.arange(6).reshape(2, 3)
    assert stretched(x, (3, 2)).tolist() == [[0, 1], [3, 4], [0, 1]]
    assert stretched(np.zeros((0, 3)), (2, 3)).shape == (0, 3)


def test_a_process_that_inputs_end_is_started_again() -> None:
    graph = parse(LINE, TABLE)
    backend = registry.backend("ort")
    with Trial("ort", backend.build(graph), backend.Choice().to_json()) as trial:
        trial(batch(1, 1))
        first = trial._worker
        assert first is not None
        first.stop()
        trial(batch(2, 2))
        assert trial._worker is not first
