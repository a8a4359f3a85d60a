"""Statistics over pieces against those over the whole, by numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tersor.ir import parse
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.statistics import observing
from tersor.statistics.activations import Activations
from tersor.statistics.frequencies import add_counts
from tersor.statistics.gram import SecondMoments
from tersor.statistics.observers import Histogram, MinMax, Moments, Observer, Reservoir
from tersor.statistics.observing import Rows, observe

MAKERS: dict[str, Callable[[], Observer[Any]]] = {
    "channel extremes": lambda: MinMax("channel"),
    "tensor extremes": lambda: MinMax("tensor"),
    "token extremes": lambda: MinMax("token"),
    "tensor histogram": lambda: Histogram("tensor", 64),
    "channel histogram": lambda: Histogram("channel", 64),
    "token histogram": lambda: Histogram("token", 64),
    "moments": Moments,
    "second moments": SecondMoments,
    "reservoir": lambda: Reservoir(5, seed=1),
    "activations": Activations,
}
EXACT = {name for name in MAKERS if "moments" not in name}  # Those are sums in float64.


def numbers(result: Any) -> list[np.ndarray]:
    """All arrays of a result, in order."""
    fields = result if isinstance(result, tuple) else vars(result).values() if hasattr(result, "__dict__") else [result]  # fmt: skip
    return [np.asarray(field) for field in fields]


matrices = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 30), st.integers(1, 4)),
    elements=st.one_of(st.just(0.0), st.floats(-1e6, 1e6, width=32)),
)


@pytest.mark.parametrize("name", MAKERS)
@given(rows=matrices, cuts=st.lists(st.integers(0, 30), max_size=5))
def test_pieces_count_as_the_whole(name: str, rows: np.ndarray, cuts: list[int]) -> None:
    whole, pieces = MAKERS[name](), MAKERS[name]()
    whole.update(rows)
    for piece in np.split(rows, sorted(min(cut, len(rows)) for cut in cuts)):
        pieces.update(piece)
    assert pieces.result is not None
    for want, have in zip(numbers(whole.result), numbers(pieces.result), strict=True):
        if name in EXACT:
            np.testing.assert_array_equal(have, want)
        else:  # Sums in another order: 30 roundings of float64, of terms that may cancel.
            np.testing.assert_allclose(
                have, want, rtol=1e-12, atol=1e-13 * float(np.abs(rows).max())
            )


@given(rows=matrices, percent=st.floats(0, 100))
def test_a_percentile_by_histogram_is_within_half_a_bin(rows: np.ndarray, percent: float) -> None:
    seen = Histogram("channel", 2048)
    seen.update(rows)
    assert seen.result is not None
    want = np.percentile(rows.astype(np.float64), percent, axis=0, method="inverted_cdf")
    bound = np.abs(rows.astype(np.float64)).max(axis=0) / 1024
    assert (np.abs(seen.result.percentile(percent) - want) <= bound).all()


def test_a_histogram_of_outliers_and_what_is_no_number() -> None:
    seen = Histogram("tensor")
    seen.update(np.full((3, 2), np.nan, np.float32))
    assert seen.result is not None and np.isnan(seen.result.percentile(50)).all()
    seen.update(np.zeros((5, 2), np.float32))
    np.testing.assert_array_equal(seen.result.percentile(50), [0])
    seen.update(np.array([[np.inf, 1e30], [-1e-30, 3.0]], np.float32))
    (top,) = seen.result.percentile(100)
    assert top == np.float32(1e30) and seen.result.counts.sum() == 13
    (middle,) = seen.result.percentile(50)
    assert abs(middle) <= 1e30 / 1024


def test_extremes_moments_and_rows_are_those_of_numpy() -> None:
    rows = np.random.default_rng(0).normal(3, 2, (500, 4)).astype(np.float32)
    low, high = MinMax("token"), Moments()
    sample, everything = Reservoir(50, seed=3), Reservoir(500)
    for observer in (low, high, sample, everything):
        observer.update(rows.reshape(5, 100, 4))
    assert low.result is not None and high.result is not None and sample.result is not None
    np.testing.assert_array_equal(low.result[0], [rows.min(), rows.max(axis=1).min()])
    np.testing.assert_array_equal(low.result[1], [rows.min(axis=1).max(), rows.max()])
    np.testing.assert_allclose(high.result.mean, rows.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(
        high.result.variance, rows.astype(np.float64).var(axis=0), rtol=1e-10
    )
    np.testing.assert_array_equal(everything.result, rows)
    places = [int(np.flatnonzero((rows == row).all(axis=1))[0]) for row in sample.result]
    assert len(set(places)) == 50 and places == sorted(places)
    # Not the first ones alone: the chance of a mean so low among even draws is below 1e-6.
    assert np.mean(places) > 150


def test_every_row_is_as_likely_to_stay() -> None:
    hits = np.zeros(40)
    for seed in range(400):
        kept = Reservoir(10, seed)
        for piece in np.split(np.arange(40, dtype=np.float32)[:, None], [7, 8, 30]):
            kept.update(piece)
        assert kept.result is not None
        hits[kept.result[:, 0].astype(int)] += 1
    # Each a binomial of 400 draws at 1/4: mean 100, deviation 8.7; five of them.
    assert np.abs(hits - 100).max() < 44


def test_padding_is_left_out_and_a_mask_of_another_size_says_nothing() -> None:
    array = np.array([[[1.0], [2.0]], [[3.0], [100.0]]], np.float32)
    seen, whole, counts = MinMax(), MinMax(), np.zeros(4)
    seen.update(array, np.array([[1, 1], [1, 0]]))
    whole.update(array, np.array([1, 0]))
    add_counts(counts, np.array([[0, 3], [3, 2]]), np.array([[1, 1], [1, 0]]))
    assert seen.result is not None and whole.result is not None
    assert (seen.result[1].item(), whole.result[1].item()) == (3, 100)
    assert counts.tolist() == [1, 0, 0, 2]


def test_rows_that_are_no_numbers_are_left_out_where_there_are_others() -> None:
    seen = Activations()
    seen.update(np.array([[np.nan, 1]], np.float32))
    assert seen.result is not None and np.isnan(seen.result.channel_amax[0])
    seen.update(np.array([[np.inf, 1], [2, -7]], np.float32))
    assert seen.result.channel_amax.tolist() == [2, 7] and seen.result.rows.tolist() == [[2, -7]]


def test_a_graph_runs_once_a_batch_for_all_observers(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = parse(
        """graph main(%x: f32[n, 3]) -> (y = %y) {
          %h: f32[n, 3] = Relu(%x)
          %y: f32[n, 3] = Neg(%h)
        }""",
        TABLE,
    )
    h, y = (node.output for node in graph.nodes)
    feeds = [{"x": np.random.default_rng(i).normal(size=(4, 3)).astype(np.float32)} for i in range(3)]  # fmt: skip
    runs: list[object] = []

    def run(tapped: Any, feed: Any) -> Any:
        runs.append(feed)
        return evaluate(tapped, feed)

    extremes, moments, gram = MinMax(), Moments(), SecondMoments()
    observe(graph, {Rows(h): [extremes, moments], Rows(y): [gram]}, feeds, run)
    assert len(runs) == 3
    rows = np.maximum(np.concatenate([f["x"] for f in feeds]), 0)
    assert extremes.result is not None and moments.result is not None and gram.result is not None
    np.testing.assert_array_equal(extremes.result[1], rows.max(axis=0))
    np.testing.assert_allclose(moments.result.total, rows.sum(axis=0, dtype=np.float64))
    np.testing.assert_allclose(gram.result.xtx, rows.T.astype(np.float64) @ rows)
    monkeypatch.setattr(observing, "TAPS", 1)
    observe(graph, {Rows(h): [extremes], Rows(y): [gram]}, feeds, run)
    assert len(runs) == 9
