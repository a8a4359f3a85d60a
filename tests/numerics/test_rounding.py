"""Rounding in order: its error against rounding to nearest, and its constraints."""

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
def test_the_error_on_unseen_rows_is_smaller(paired: bool) -> None:
    # More inputs than are worked on at a time, and not a multiple of that.
    seen, others, weight = correlated(800, 200), correlated(300, 200, seed=3), normal(200, 24)
    nearest = quantize_weight(weight, 1, pair_axis=0 if paired else None)
    (rounded,) = round_in_order([(weight, nearest)], seen.T @ seen, paired=paired)
    errors = [np.square(others @ (w.decode() - weight)).sum() for w in (rounded, nearest)]
    assert errors[0] < 0.5 * errors[1]
    np.testing.assert_array_equal(rounded.scale, nearest.scale)
    assert rounded.values.dtype == np.int8
    if paired:
        assert pair_sums(rounded.values.T.astype(np.int64)).max() <= SAFE_SUM


def test_the_second_of_equal_inputs_compensates_for_the_first() -> None:
    weight = np.array([[0.4], [0.4], [127]], np.float32)  # The last makes the step 1.
    seen = np.array([[1, 1, 0], [-1, -1, 0], [0, 0, 1]] * 8, np.float64)
    nearest = quantize_weight(weight, 1)
    assert nearest.values.ravel().tolist() == [0, 0, 127]
    (rounded,) = round_in_order([(weight, nearest)], seen.T @ seen, paired=False)
    assert rounded.values.ravel().tolist() == [0, 1, 127]


def test_uncorrelated_inputs_are_rounded_to_nearest() -> None:
    weight = normal(12, 5)
    nearest = quantize_weight(weight, 1)
    for xtx in (np.eye(12) * 40, np.zeros((12, 12))):
        (rounded,) = round_in_order([(weight, nearest)], xtx, paired=False)
        np.testing.assert_array_equal(rounded.values, nearest.values)


def test_no_pair_overflows_if_all_weights_have_one_sign() -> None:
    """Each weight is large, and what the first lose the later ones would take up."""
    seen = np.abs(correlated(300, 32)) + 5
    weight = np.abs(normal(32, 16)) + 1
    nearest = quantize_weight(weight, 1, pair_axis=0)
    (rounded,) = round_in_order([(weight, nearest)], seen.T @ seen, paired=True)
    assert (rounded.values != nearest.values).any()
    assert pair_sums(rounded.values.T.astype(np.int64)).max() <= SAFE_SUM


def test_pruned_weights_stay_zero() -> None:
    seen, weight = correlated(300, 64), normal(64, 8)
    weight[::3] = 0
    nearest = quantize_weight(weight, 1)
    (rounded,) = round_in_order([(weight, nearest)], seen.T @ seen, paired=False)
    assert not rounded.values[::3].any()
    assert (rounded.values != nearest.values).any()


def test_layers_with_one_input_keep_their_own_scales() -> None:
    seen, weights = correlated(300, 32), [normal(32, 8), 100 * normal(32, 4)]
    given = [(w, quantize_weight(w, 1)) for w in weights]
    together = round_in_order(given, seen.T @ seen, paired=False)
    for one, rounded in zip(given, together, strict=True):
        (alone,) = round_in_order([one], seen.T @ seen, paired=False)
        np.testing.assert_array_equal(rounded.values, alone.values)
        assert rounded.values.shape == one[0].shape
