"""Rounding in order: what it costs against rounding to the nearest, and what it may not do."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.numerics.affine import pair_sums, quantize_weight
from tersor.numerics.rounding import SAFE_SUM, round_in_order


def correlated(rows: int, inputs: int, seed: int = 0) -> np.ndarray:
    """Rows of ``inputs`` numbers that a quarter as many make up, and a little noise."""
    mix = np.random.default_rng(7).standard_normal((inputs // 4, inputs))
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, len(mix))) @ mix + 0.3 * rng.standard_normal((rows, inputs))


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("paired", [False, True])
def test_outputs_of_rows_that_were_not_seen_lose_less(paired: bool) -> None:
    # More inputs than are worked on at a time, and no multiple of them.
    seen, others, weight = correlated(800, 200), correlated(300, 200, seed=3), normal(200, 24)
    nearest = quantize_weight(weight, 1, pair_axis=0 if paired else None)
    (made,) = round_in_order([(weight, nearest)], seen.T @ seen, paired=paired)
    errors = [np.square(others @ (held.decode() - weight)).sum() for held in (made, nearest)]
    assert errors[0] < 0.5 * errors[1]
    np.testing.assert_array_equal(made.scale, nearest.scale)
    assert made.values.dtype == np.int8
    if paired:
        assert pair_sums(made.values.T.astype(np.int64)).max() <= SAFE_SUM


def test_the_second_of_equal_inputs_makes_up_for_the_first() -> None:
    weight = np.array([[0.4], [0.4], [127]], np.float32)  # The last makes the step 1.
    seen = np.array([[1, 1, 0], [-1, -1, 0], [0, 0, 1]] * 8, np.float64)
    nearest = quantize_weight(weight, 1)
    assert nearest.values.ravel().tolist() == [0, 0, 127]
    (made,) = round_in_order([(weight, nearest)], seen.T @ seen, paired=False)
    assert made.values.ravel().tolist() == [0, 1, 127]


def test_inputs_that_have_nothing_in_common_are_rounded_to_the_nearest() -> None:
    weight = normal(12, 5)
    nearest = quantize_weight(weight, 1)
    for xtx in (np.eye(12) * 40, np.zeros((12, 12))):
        (made,) = round_in_order([(weight, nearest)], xtx, paired=False)
        np.testing.assert_array_equal(made.values, nearest.values)


def test_no_pair_overflows_where_all_weights_push_the_same_way() -> None:
    """Each weight is large, and what the first lose the later ones would take up."""
    seen = np.abs(correlated(300, 32)) + 5
    weight = np.abs(normal(32, 16)) + 1
    nearest = quantize_weight(weight, 1, pair_axis=0)
    (made,) = round_in_order([(weight, nearest)], seen.T @ seen, paired=True)
    assert (made.values != nearest.values).any()
    assert pair_sums(made.values.T.astype(np.int64)).max() <= SAFE_SUM


def test_what_was_pruned_stays_so() -> None:
    seen, weight = correlated(300, 64), normal(64, 8)
    weight[::3] = 0
    nearest = quantize_weight(weight, 1)
    (made,) = round_in_order([(weight, nearest)], seen.T @ seen, paired=False)
    assert not made.values[::3].any()
    assert (made.values != nearest.values).any()


def test_layers_that_read_the_same_keep_their_own_steps() -> None:
    seen, weights = correlated(300, 32), [normal(32, 8), 100 * normal(32, 4)]
    given = [(w, quantize_weight(w, 1)) for w in weights]
    together = round_in_order(given, seen.T @ seen, paired=False)
    for one, made in zip(given, together, strict=True):
        (alone,) = round_in_order([one], seen.T @ seen, paired=False)
        np.testing.assert_array_equal(made.values, alone.values)
        assert made.values.shape == one[0].shape
