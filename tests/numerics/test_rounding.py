"""Rounding in order: its error against rounding to nearest, and its constraints."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tersor.ir import Affine
from tersor.numerics.affine import pair_sums, quantize_weight
from tersor.numerics.rounding import coarser, round_in_order
from tersor.numerics.sums import EIGHTS, FOURS, MOST, TWO_OF_FOUR, Sums


def correlated(rows: int, inputs: int, seed: int = 0) -> np.ndarray:
    """Rows of ``inputs`` numbers that a quarter as many make up, and a little noise."""
    mix = np.random.default_rng(7).standard_normal((inputs // 4, inputs))
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, len(mix))) @ mix + 0.3 * rng.standard_normal((rows, inputs))


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def nearest_of(weight: np.ndarray, seen: np.ndarray, sums: Sums | None) -> Affine:
    if sums is not None and not sums.most:
        return coarser(weight, np.square(seen).sum(0), sums)
    return quantize_weight(weight, 1, pair_axis=None if sums is None else 0)


@pytest.mark.parametrize("sums", [None, TWO_OF_FOUR, FOURS, EIGHTS])
def test_the_error_on_unseen_rows_is_smaller(sums: Sums | None) -> None:
    # More inputs than are worked on at a time, and not a multiple of that.
    seen, others, weight = correlated(800, 200), correlated(300, 200, seed=3), normal(200, 24)
    nearest = nearest_of(weight, seen, sums)
    (made,) = round_in_order([(weight, nearest)], seen.T @ seen, sums)
    errors = [np.square(others @ (held.decode() - weight)).sum() for held in (made, nearest)]
    assert errors[0] < 0.5 * errors[1]
    np.testing.assert_array_equal(made.scale, nearest.scale)
    assert made.values.dtype == np.int8
    if sums is not None:
        assert sums.holds(made.values)
        assert sums.holds(nearest.values)


def test_the_second_of_equal_inputs_compensates_for_the_first() -> None:
    weight = np.array([[0.4], [0.4], [127]], np.float32)  # The last makes the step 1.
    seen = np.array([[1, 1, 0], [-1, -1, 0], [0, 0, 1]] * 8, np.float64)
    nearest = quantize_weight(weight, 1)
    assert nearest.values.ravel().tolist() == [0, 0, 127]
    (made,) = round_in_order([(weight, nearest)], seen.T @ seen)
    assert made.values.ravel().tolist() == [0, 1, 127]


def test_uncorrelated_inputs_are_rounded_to_nearest() -> None:
    weight = normal(12, 5)
    nearest = quantize_weight(weight, 1)
    for xtx in (np.eye(12) * 40, np.zeros((12, 12))):
        (made,) = round_in_order([(weight, nearest)], xtx)
        np.testing.assert_array_equal(made.values, nearest.values)


def test_no_pair_overflows_if_all_weights_have_one_sign() -> None:
    """Each weight is large, and what the first lose the later ones would take up."""
    seen = np.abs(correlated(300, 32)) + 5
    weight = np.abs(normal(32, 16)) + 1
    nearest = quantize_weight(weight, 1, pair_axis=0)
    (made,) = round_in_order([(weight, nearest)], seen.T @ seen, TWO_OF_FOUR)
    assert (made.values != nearest.values).any()
    assert pair_sums(made.values.T.astype(np.int64)).max() <= MOST


def test_pruned_weights_stay_zero() -> None:
    seen, weight = correlated(300, 64), normal(64, 8)
    weight[::3] = 0
    nearest = quantize_weight(weight, 1)
    (made,) = round_in_order([(weight, nearest)], seen.T @ seen)
    assert not made.values[::3].any()
    assert (made.values != nearest.values).any()


def test_layers_with_one_input_keep_their_own_scales() -> None:
    seen, weights = correlated(300, 32), [normal(32, 8), 100 * normal(32, 4)]
    given = [(w, quantize_weight(w, 1)) for w in weights]
    together = round_in_order(given, seen.T @ seen)
    for one, made in zip(given, together, strict=True):
        (alone,) = round_in_order([one], seen.T @ seen)
        np.testing.assert_array_equal(made.values, alone.values)
        assert made.values.shape == one[0].shape


@pytest.mark.parametrize("k", [8, 37, 200])
def test_sums_of_four_hold_where_all_weights_are_as_large_as_can_be(k: int) -> None:
    """The last group is not whole, and what the first weights of a group lose the later ones would take up."""
    seen = np.abs(correlated(300, 4 * k)[:, :k]) + 5
    weight = np.sign(normal(k, 16)) * (np.abs(normal(k, 16)) * 0.01 + 1)
    nearest = coarser(weight, np.square(seen).sum(0), FOURS)
    (made,) = round_in_order([(weight, nearest)], seen.T @ seen, FOURS)
    for held in (nearest, made):
        assert FOURS.largest(held.values).max() in range(MOST - 8, MOST + 1)


def test_steps_are_as_coarse_as_large_sums_are_worth() -> None:
    """One group of four large weights, among many small ones: where their inputs count for little they are cut,
    where theirs alone count they are kept."""
    weight, large = normal(512, 4) * 0.2, [8, 9, 12, 13]
    weight[large] = 1.0
    fine, coarse = np.ones(512), np.full(512, 1e-6)
    fine[large], coarse[large] = 0.01, 1.0
    cut, kept = (coarser(weight, energy, FOURS) for energy in (fine, coarse))
    assert FOURS.holds(cut.values)
    assert FOURS.holds(kept.values)
    assert (cut.scale < 0.6 * kept.scale).all()
    assert (cut.decode()[large] < 0.6).all()
    assert (np.abs(kept.decode()[large] - 1) < 0.05).all()


@pytest.mark.parametrize("sums", [TWO_OF_FOUR, FOURS, EIGHTS])
def test_sums_hold_exactly_where_no_products_leave_16_bits(sums: Sums) -> None:
    """Against all sums of products with 0 or 255, the activations that make them largest and smallest."""
    rng = np.random.default_rng(0)
    told = set()
    for _ in range(300):
        weight = (
            rng.integers(-70, 71, (2 * sums.block - 3, 1)) * rng.choice([0.3, 0.6, 1, 1.8])
        ).astype(np.int8)
        full = np.zeros(2 * sums.block, np.int64)
        full[: len(weight)] = weight[:, 0]
        groups = [full[b * sums.block + np.array(p)] for b in range(2) for p in sums.places]
        if sums.most:
            groups = [g[list(two)] for g in groups for two in itertools.combinations(range(4), 2)]
        fits = all(
            255 * np.minimum(g, 0).sum() >= -(2**15) and 255 * np.maximum(g, 0).sum() < 2**15
            for g in groups
        )
        assert sums.holds(weight) == fits
        told.add(fits)
    assert told == {True, False}
