"""Low-rank factors against closed forms: Eckart and Young, least squares, and each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.numerics.decompositions import landmarks, nystrom, semi_nmf
from tersor.numerics.lowrank import (
    Factors,
    centred,
    count_limit,
    decompose,
    output_error,
    rank_of_energy,
    rank_of_ratio,
    ranks_of_budget,
    refit,
    spectrum,
    truncate,
    weight_error,
    whitening,
)

SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.tuples(st.integers(2, 12), st.integers(2, 12))


def drawn(seed: int, k: int, n: int, rank: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    r = min(k, n) if rank is None else rank
    return rng.standard_normal((k, r)) @ rng.standard_normal((r, n))


def correlated(seed: int, rows: int, k: int) -> np.ndarray:
    """Rows whose channels go together, with scales of 1 to 100 and a mean."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((rows, k)) @ rng.standard_normal((k, k))
    return np.asarray((mixed + rng.standard_normal(k)) * 100 ** rng.random(k))


def svd(weight: np.ndarray, rank: int, metric: np.ndarray | None = None) -> Factors:
    return truncate(weight, decompose(weight, metric)[1], rank)


# -- one formula -----------------------------------------------------------------------------------


@given(SEEDS, SHAPES)
def test_the_error_is_the_discarded_spectrum(seed: int, shape: tuple[int, int]) -> None:
    weight = drawn(seed, *shape)
    values = np.linalg.svd(weight, compute_uv=False)
    np.testing.assert_allclose(spectrum(weight, None), values)
    for rank in range(1, min(shape) + 1):
        lost = np.linalg.norm(weight - svd(weight, rank).product)
        # Rounding of f64, relative to the largest singular value.
        assert lost == pytest.approx(np.linalg.norm(values[rank:]), abs=1e-12 * values[0])


@given(SEEDS, SHAPES)
def test_the_error_in_a_metric_is_the_discarded_spectrum(seed: int, shape: tuple[int, int]) -> None:
    weight, metric = drawn(seed, *shape), drawn(seed + 1, shape[0], shape[0])
    values = spectrum(weight, metric)
    for rank in range(1, min(shape) + 1):
        lost = np.linalg.norm(metric @ (weight - svd(weight, rank, metric).product))
        assert lost == pytest.approx(np.linalg.norm(values[rank:]), abs=1e-11 * values[0])


def test_a_metric_of_less_than_full_rank() -> None:
    """Three rows are all that was seen: rank 3 is exact on them, though not elsewhere."""
    x, weight = drawn(0, 3, 8), drawn(1, 8, 6)
    factors = svd(weight, 3, x)
    np.testing.assert_allclose(x @ factors.product, x @ weight, atol=1e-12)
    assert weight_error(weight, factors.product) > 0.1


@given(SEEDS, st.integers(1, 40), st.integers(2, 12))
def test_whitening_is_a_root_of_the_moments(seed: int, rows: int, k: int) -> None:
    x = correlated(seed, rows, k)
    moments = x.T @ x
    root = whitening(moments)
    # The ridge, 1e-6 of the mean moment, and rounding.
    atol = 2e-6 * np.trace(moments) / k
    np.testing.assert_allclose(root.T @ root, moments, rtol=1e-9, atol=atol)
    assert np.linalg.matrix_rank(root) == k


def test_whitening_of_nothing() -> None:
    root = whitening(np.zeros((3, 3)))
    assert np.isfinite(root).all()


@given(SEEDS, SHAPES, st.integers(2, 60))
def test_whitened_is_never_worse_than_plain(seed: int, shape: tuple[int, int], rows: int) -> None:
    k, n = shape
    x, weight = correlated(seed, rows, k), drawn(seed, k, n)
    moments = x.T @ x
    metric = whitening(moments)
    for rank in range(1, min(shape)):
        whitened = svd(weight, rank, metric).product
        plain = svd(weight, rank).product
        errors = [output_error(weight, p, moments) for p in (whitened, plain)]
        # It is the best under moments that have the ridge: 1e-6 of the mean moment, of which the
        # error is the root, on a weight that may be large where the moments are small.
        ridge = 1e-6 * np.trace(moments) / k
        slack = np.sqrt(ridge) * np.linalg.norm(weight) / np.linalg.norm(x @ weight)
        assert errors[0] <= errors[1] + slack
        assert errors[0] == pytest.approx(
            np.linalg.norm(x @ (weight - whitened)) / np.linalg.norm(x @ weight), abs=1e-6
        )


def test_whitened_is_much_better_for_correlated_inputs() -> None:
    x, weight = correlated(3, 500, 32), drawn(4, 32, 48)
    moments = x.T @ x
    for rank in range(1, 32):
        whitened = output_error(weight, svd(weight, rank, whitening(moments)).product, moments)
        plain = output_error(weight, svd(weight, rank).product, moments)
        assert whitened < plain
    assert whitened < 0.1 * plain


@given(SEEDS, SHAPES, st.integers(2, 60))
def test_refitting_is_least_squares(seed: int, shape: tuple[int, int], rows: int) -> None:
    k, n = shape
    x, weight = correlated(seed, rows, k), drawn(seed, k, n)
    metric = whitening(x.T @ x)
    a = svd(weight, 1).a
    fitted = refit(weight, a, metric)
    expected = np.linalg.lstsq(metric @ a, metric @ weight, rcond=None)[0]
    np.testing.assert_allclose(fitted.b, expected)
    other = np.linalg.norm(metric @ (weight - svd(weight, 1).product))
    assert np.linalg.norm(metric @ (weight - fitted.product)) <= other * (1 + 1e-9)


def test_about_the_mean_a_bias_compensates_for_the_mean_row() -> None:
    x, weight = correlated(5, 200, 10) + 300, drawn(6, 10, 10)
    moments, total = x.T @ x, x.sum(axis=0)
    about = centred(moments, total, len(x))
    shifted = x - x.mean(axis=0)
    np.testing.assert_allclose(about, shifted.T @ shifted, rtol=1e-6, atol=1e-6 * np.trace(about))
    for rank in (1, 4, 8):
        factors = svd(weight, rank, whitening(about)).product
        bias = x.mean(axis=0) @ (weight - factors)
        error = np.linalg.norm(x @ weight - (x @ factors + bias)) / np.linalg.norm(x @ weight)
        assert output_error(weight, factors, moments, about) == pytest.approx(error, rel=1e-6)
        assert error < output_error(weight, svd(weight, rank, whitening(moments)).product, moments)


# -- parts and samples -----------------------------------------------------------------------------


@given(SEEDS, SHAPES, st.integers(1, 4))
def test_semi_nmf_has_a_nonnegative_factor(seed: int, shape: tuple[int, int], rank: int) -> None:
    weight = drawn(seed, *shape)
    factors = semi_nmf(weight, rank)
    assert (factors.b >= 0).all()
    # Its A is the best for its B, so that nothing of B is left in what is lost.
    lost = weight - factors.product
    assert (
        np.abs(lost @ factors.b.T).max()
        <= 1e-6 * np.abs(weight).max() * max(1, factors.b.max()) * shape[1]
    )
    assert weight_error(weight, factors.product) <= 1 + 1e-9


def test_semi_nmf_recovers_parts() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((20, 3)) @ np.abs(rng.standard_normal((3, 30)))
    # As good as a hundred sweeps make it; with a part fewer, behind the SVD and not far behind.
    assert weight_error(weight, semi_nmf(weight, 3).product) < 0.02
    best = weight_error(weight, svd(weight, 2).product)
    assert best <= weight_error(weight, semi_nmf(weight, 2).product) < 1.5 * best
    np.testing.assert_array_equal(semi_nmf(weight, 3).b, semi_nmf(weight, 3).b)


@given(SEEDS, SHAPES, st.integers(1, 4))
def test_nystrom_is_exact_at_the_weights_rank(seed: int, shape: tuple[int, int], rank: int) -> None:
    rank = min(rank, *shape)
    weight = drawn(seed, *shape, rank)
    left, _, right = np.linalg.svd(weight, full_matrices=False)
    rows, columns = landmarks(left.T[:rank], rank), landmarks(right[:rank], rank)
    factors = nystrom(weight, rows, columns)
    np.testing.assert_array_equal(factors.a, weight[:, columns])
    assert len(set(rows)) == len(set(columns)) == rank
    # The crossing is inverted: its condition is that of the weight, times a factor that pivoting bounds.
    condition = np.linalg.cond(weight[np.ix_(rows, columns)])
    assert weight_error(weight, factors.product) < 1e-14 * max(condition, 1) * 100


def test_landmarks_are_independent() -> None:
    """Two equal columns of the highest leverage: only one of them is taken."""
    vectors = np.array([[0.7, 0.7, 0.1, 0.0], [0.0, 0.0, 0.1, 0.3]])
    assert sorted(landmarks(vectors, 2)) == [0, 3]


# -- ranks -----------------------------------------------------------------------------------------


def test_the_smallest_rank_for_an_energy() -> None:
    values = np.array([3.0, 2.0, 1.0])  # squares 9, 4, 1
    cases = [(0.1, 1), (9 / 14, 1), (0.65, 2), (13 / 14, 2), (0.93, 3), (1.0, 3)]
    for energy, rank in cases:
        assert rank_of_energy(values, energy) == rank


def test_the_largest_rank_for_a_ratio() -> None:
    assert count_limit(384, 1536) == pytest.approx(307.2)
    for ratio in (0.1, 0.5, 0.99):
        rank = rank_of_ratio(384, 1536, ratio)
        assert rank * (384 + 1536) <= ratio * 384 * 1536 < (rank + 1) * (384 + 1536)
    assert rank_of_ratio(4, 4, 0.01) == 1


@given(SEEDS, st.lists(SHAPES, min_size=1, max_size=5), st.floats(0, 1))
def test_a_budget_is_kept_and_used(seed: int, shapes: list[tuple[int, int]], share: float) -> None:
    spectra = [spectrum(drawn(seed + i, *shape), None) for i, shape in enumerate(shapes)]

    def weights(ranks: list[int]) -> int:
        costs = zip(ranks, shapes, strict=True)
        return sum(min(r * (k + n), k * n) for r, (k, n) in costs)

    least, most = weights([1] * len(shapes)), sum(k * n for k, n in shapes)
    budget = int(least + share * (most - least))
    ranks = ranks_of_budget(spectra, shapes, budget)
    assert least <= weights(ranks) <= budget
    assert all(1 <= r <= min(shape) for r, shape in zip(ranks, shapes, strict=True))
    more = ranks_of_budget(spectra, shapes, budget + 1)
    assert weights(more) >= weights(ranks)


def test_a_budget_goes_where_the_energy_is() -> None:
    steep, flat = np.array([10.0, 0.1, 0.1, 0.1]), np.array([1.0, 1.0, 1.0, 1.0])
    ranks = ranks_of_budget([steep, flat], [(40, 40), (40, 40)], 80 * 5)
    assert ranks == [1, 4]
