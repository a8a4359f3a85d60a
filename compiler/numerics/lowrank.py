"""Low-rank factors of a weight:  W[k, n] ~ A[k, r] B[r, n].

Most methods differ only in a metric M[m, k] that weighs the difference:

    |M (W - A B)|  is minimal for   A = W V,  B = V^T,      V: the first r right singular vectors of M W

because M W V V^T is the best approximation of M W (Eckart and Young 1936).  M is not inverted and need not
have full rank, and the error is known: the root of the sum of squares of the discarded singular values.

    plain       M = I
    whitened    M^T M = sum of x x^T, so that |M D|^2 = sum of |x D|^2: the least error of the layer's
                outputs at rank r (Wang et al. 2024, SVD-LLM; Yuan et al. 2023, ASVD)
    Fisher      M = diag(sqrt(f)),  f_i = sum over j of E[(dL / dW_ij)^2]  (Hsu et al. 2022, FWSVD)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Added to each direction, relative to the mean second moment: a direction absent from the calibration
# inputs must not count for nothing, because other inputs may have it.
RIDGE = 1e-6


@dataclass(frozen=True)
class Factors:
    """A[k, r] and B[r, n], both f64."""

    a: np.ndarray
    b: np.ndarray

    @property
    def product(self) -> np.ndarray:
        """f64[k, n]."""
        return np.asarray(self.a @ self.b)


def whitening(moments: np.ndarray) -> np.ndarray:
    """M, f64[k, k], with M^T M = ``moments`` + RIDGE x their mean on the diagonal. Cholesky cannot fail: no
    moment exceeds k times the mean, and the ridge is far above the rounding error of that."""
    k = len(moments)
    ridge = RIDGE * float(np.trace(moments)) / k
    return np.asarray(np.linalg.cholesky(moments + max(ridge, 1e-300) * np.eye(k)).T)


def centred(moments: np.ndarray, total: np.ndarray, rows: int) -> np.ndarray:
    """Second moments about the mean row: sum of (x - m) (x - m)^T."""
    return np.asarray(moments - np.outer(total, total) / max(rows, 1))


def spectrum(weight: np.ndarray, metric: np.ndarray | None) -> np.ndarray:
    """Singular values of M W, largest first."""
    return np.asarray(np.linalg.svd(_weighted(weight, metric), compute_uv=False))


def decompose(weight: np.ndarray, metric: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(Singular values, V^T) of M W, largest first."""
    _, values, rows = np.linalg.svd(_weighted(weight, metric), full_matrices=False)
    return values, rows


def truncate(weight: np.ndarray, rows: np.ndarray, rank: int) -> Factors:
    """W V and V^T, for the first ``rank`` of the ``rows`` of V^T."""
    kept = rows[:rank]
    return Factors(weight @ kept.T, kept)


def refit(weight: np.ndarray, a: np.ndarray, metric: np.ndarray) -> Factors:
    """The B that minimizes |M (W - A B)|: least squares."""
    return Factors(a, np.linalg.lstsq(metric @ a, metric @ weight, rcond=None)[0])


def output_error(
    weight: np.ndarray,
    product: np.ndarray,
    moments: np.ndarray,
    about: np.ndarray | None = None,
) -> float:
    """Root mean square of x (W - product) relative to that of x W, for x with these second moments. If the
    bias compensates for the mean row, ``about`` are the second moments about it."""
    lost = _energy(weight - product, moments if about is None else about)
    return _relative(lost, _energy(weight, moments))


def weight_error(weight: np.ndarray, product: np.ndarray) -> float:
    """|W - product| / |W|."""
    return _relative(float(np.square(weight - product).sum()), float(np.square(weight).sum()))


def _weighted(weight: np.ndarray, metric: np.ndarray | None) -> np.ndarray:
    return weight if metric is None else metric @ weight


def _energy(weight: np.ndarray, moments: np.ndarray) -> float:
    """Sum of |x W|^2."""
    return max(float(np.sum(weight * (moments @ weight))), 0.0)


def _relative(lost: float, whole: float) -> float:
    return float(np.sqrt(lost / whole)) if whole > 0 else float(lost > 0)


# -- ranks -----------------------------------------------------------------------------------------


def count_limit(k: int, n: int) -> float:
    """The rank at which the factors have as many weights as the matrix: r (k + n) = k n."""
    return k * n / (k + n)


def rank_of_energy(values: np.ndarray, energy: float) -> int:
    """The smallest rank whose singular values have this share of the sum of squares."""
    kept = np.cumsum(np.square(values))
    # The tolerance covers the rounding error of the sums.
    return int(np.searchsorted(kept, energy * kept[-1] * (1 - 1e-10))) + 1


def rank_of_ratio(k: int, n: int, ratio: float) -> int:
    """The largest rank, at least 1, at which the factors have at most this share of the weights."""
    return max(int(ratio * count_limit(k, n)), 1)


def ranks_of_budget(
    spectra: Sequence[np.ndarray], shapes: Sequence[tuple[int, int]], budget: int
) -> list[int]:
    """Ranks for layers of these ``shapes`` with at most ``budget`` weights in total: a direction is kept if
    its share of its layer's energy, per weight of its factors, reaches a threshold common to all layers.
    A layer that factors would not make smaller gets its full rank.

    Returns:
        The ranks, at least 1 each, even if that exceeds the budget.
    """
    gains = [
        np.square(values) / max(float(np.square(values).sum()), 1e-300) / (k + n)
        for values, (k, n) in zip(spectra, shapes, strict=True)
    ]

    def ranks(threshold: float) -> list[int]:
        result = []
        for gain, (k, n) in zip(gains, shapes, strict=True):
            rank = max(int((gain >= threshold).sum()), 1)
            result.append(rank if rank < count_limit(k, n) else min(k, n))
        return result

    def weights(chosen: Sequence[int]) -> int:
        return sum(
            r * (k + n) if r < count_limit(k, n) else k * n
            for r, (k, n) in zip(chosen, shapes, strict=True)
        )

    thresholds = np.unique(np.concatenate(gains))
    low, high = 0, len(thresholds)  # Bisection: a higher threshold keeps fewer directions.
    while low < high:
        middle = (low + high) // 2
        if weights(ranks(thresholds[middle])) <= budget:
            high = middle
        else:
            low = middle + 1
    return ranks(thresholds[low] if low < len(thresholds) else np.inf)
