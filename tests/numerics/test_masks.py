"""Masks against sorting all scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.errors import InvalidOption
from tersor.ir import Affine, Dense, DType, Masked, TensorType
from tersor.numerics.affine import quantize_weight
from tersor.numerics.masks import (
    Pattern,
    by_sparsity,
    by_threshold,
    lowest,
    n_of_m,
    share,
)
from tersor.ops import TABLE
from tersor.transforms.masks import drop_masks

SEEDS = st.integers(0, 10_000)


def scores(seed: int, *shape: int, levels: int = 4) -> np.ndarray:
    """Of few levels: most of them are ties."""
    return np.random.default_rng(seed).integers(0, levels, shape).astype(np.float64)


@given(SEEDS, st.integers(1, 4), st.integers(1, 30), st.data())
def test_the_lowest_are_the_first_of_a_stable_sort(
    seed: int, rows: int, n: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, n))
    have = scores(seed, rows, n)
    wanted = np.zeros((rows, n), bool)
    for row in range(rows):
        wanted[row, np.argsort(have[row], kind="stable")[:count]] = True
    np.testing.assert_array_equal(lowest(have, count), wanted)


@pytest.mark.parametrize(
    ("size", "sparsity", "count"),
    [(10, 0.3, 3), (10, 0.29, 2), (100, 0.29, 29), (3, 0.99, 2), (1, 0.9, 0), (0, 0.5, 0), (5, 0.0, 0)],
)  # fmt: skip
def test_a_share_is_rounded_down_and_never_everything(
    size: int, sparsity: float, count: int
) -> None:
    assert share(size, sparsity) == count


@given(SEEDS, st.sampled_from([(2, 4), (1, 2), (1, 4), (3, 8), (4, 8)]))
def test_n_of_m_keeps_the_best_of_every_group(seed: int, pattern: tuple[int, int]) -> None:
    n, m = pattern
    have = scores(seed, 3, 2 * m, levels=m)
    kept = n_of_m(have, Pattern.parse(f"{n}:{m}"))
    for row in range(3):
        for start in (0, m):
            group, stays = have[row, start : start + m], kept[row, start : start + m]
            assert stays.sum() == n
            best = np.argsort(group, kind="stable")[m - n :]
            assert set(np.flatnonzero(stays)) == set(best)


@given(SEEDS, st.sampled_from([(1, 1), (1, 4), (4, 1), (2, 3)]), st.floats(0, 0.999))
def test_blocks_are_pruned_whole_by_their_mean(
    seed: int, block: tuple[int, int], sparsity: float
) -> None:
    r, c = block
    have = scores(seed, 8, 12)
    (kept,) = by_sparsity([have], Pattern.parse(f"{r}x{c}"), sparsity)
    means = [
        (have[i : i + r, j : j + c].mean(), i, j) for i in range(0, 8, r) for j in range(0, 12, c)
    ]
    gone = sorted(means, key=lambda block: block[0])[: int(len(means) * sparsity + 1e-9)]
    wanted = np.ones((8, 12), bool)
    for _, i, j in gone:
        wanted[i : i + r, j : j + c] = False
    np.testing.assert_array_equal(kept, wanted)


def test_per_output_prunes_equally_many_of_each() -> None:
    have = np.arange(24.0).reshape(4, 6)
    (whole,) = by_sparsity([have], Pattern(), 0.5)
    (each,) = by_sparsity([have], Pattern(), 0.5, per_output=True)
    np.testing.assert_array_equal(whole, have >= 12)
    np.testing.assert_array_equal(each, np.arange(6) >= np.full((4, 1), 3))


def test_sparsity_is_shared_among_layers() -> None:
    large, small = np.arange(10.0, 16).reshape(2, 3), np.arange(6.0).reshape(3, 2)
    first, second = by_sparsity([large, small], Pattern(), 7 / 12)
    np.testing.assert_array_equal(first, large > 10)
    assert not second.any()
    assert by_sparsity([], Pattern(), 0.5) == []


def test_a_threshold_keeps_scores_that_reach_it() -> None:
    have = np.array([[1.0, 3, 2, 2], [0, 1, 4, 0]])
    np.testing.assert_array_equal(by_threshold(have, Pattern(), 2), have >= 2)
    np.testing.assert_array_equal(
        by_threshold(have, Pattern.parse("1x2"), 2), [[1, 1, 1, 1], [0, 0, 1, 1]]
    )


def test_patterns_as_text() -> None:
    assert Pattern.parse("unstructured") == Pattern() == Pattern.parse("1x1")
    assert Pattern.parse("2:4") == Pattern(columns=4, kept=2)
    assert Pattern.parse("32x1") == Pattern(rows=32)


@pytest.mark.parametrize("text", ["", "4:4", "0:4", "5:4", "0x4", "4x0", "2:4:8", "block", "-1x4", "2 :4"])  # fmt: skip
def test_malformed_patterns_are_rejected(text: str) -> None:
    with pytest.raises(InvalidOption, match="unknown pattern '"):
        Pattern.parse(text)


def test_matrices_that_do_not_divide_into_blocks() -> None:
    assert Pattern.parse("2:4").misfit((3, 8)) == ""
    assert Pattern.parse("2:4").misfit((3, 6)) == "its 6 inputs are not a multiple of 4"
    assert Pattern.parse("2x1").misfit((3, 8)) == "its 3 outputs are not a multiple of 2"


def test_drop_masks_keeps_the_numbers() -> None:
    graph, numbers = TABLE.graph(), np.arange(12, dtype=np.float32).reshape(3, 4)
    x, mask = graph.add_input("x", TensorType(DType.F32, (2, 3))), numbers % 2 == 0
    constants = [
        graph.constant(Masked.of(mask, e)) for e in (Dense(numbers), quantize_weight(numbers, 1))
    ]
    graph.set_outputs([graph.emit("MatMul", [x, v]) for v in constants], ["a", "b"])
    assert [v.stores_floats for v in constants] == [True, False]
    wanted = [v.numpy() for v in constants]
    drop_masks(graph)
    assert [type(v.encoding) for v in constants] == [Dense, Affine]
    for value, numbers in zip(constants, wanted, strict=True):
        np.testing.assert_array_equal(value.numpy(), numbers)
