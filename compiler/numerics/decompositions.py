"""Low-rank factors of a weight other than the truncated SVD: semi-NMF and Nystroem."""

from __future__ import annotations

import numpy as np

from tersor.numerics.lowrank import Factors

NMF_SWEEPS = 100
_TINY = 1e-30


def semi_nmf(weight: np.ndarray, rank: int, seed: int = 0) -> Factors:
    """W ~ A B with B >= 0: every column of W is a nonnegative combination of columns of A.

    Weights have both signs, so A has both too (semi-NMF, Ding, Li and Jordan 2010).  Alternates between A
    by least squares and multiplying each element of B by

        sqrt(((A^T W)^+ + (A^T A)^- B) / ((A^T W)^- + (A^T A)^+ B)),     z^+ = max(z, 0), z^- = max(-z, 0)

    which never increases the error.  NMF_SWEEPS iterations from a seeded start.
    """
    b = np.random.default_rng(seed).random((rank, weight.shape[1])) + 0.1
    scale = float(np.abs(weight).max(initial=0.0)) or 1.0  # The start suits numbers around 1.
    scaled = weight / scale
    for _ in range(NMF_SWEEPS):
        a = _left(scaled, b)
        pulls, overlaps = a.T @ scaled, a.T @ a
        up = np.maximum(pulls, 0) + np.maximum(-overlaps, 0) @ b
        down = np.maximum(-pulls, 0) + np.maximum(overlaps, 0) @ b
        b = b * np.sqrt((up + _TINY) / (down + _TINY))
    return Factors(_left(scaled, b) * scale, b)


def _left(weight: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The A that minimizes |W - A B|."""
    return np.asarray(np.linalg.lstsq(b.T, weight.T, rcond=None)[0].T)


def nystrom(weight: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Factors:
    """W ~ C U^+ R:  C the columns and R the rows of W at landmarks, U their intersection.

    The Nystroem approximation of a kernel matrix (Williams and Seeger 2001), for W of any shape: exact if U
    has the rank of W.

    Args:
        rows, columns: the landmarks, equally many of both.
    """
    crossing = weight[np.ix_(rows, columns)]
    return Factors(weight[:, columns], np.linalg.pinv(crossing) @ weight[rows])


def landmarks(vectors: np.ndarray, count: int) -> np.ndarray:
    """Positions by leverage, |column|^2 of orthonormal ``vectors`` [r, n]: the largest first, each after
    projecting out the columns chosen before, as QR with column pivoting does (DEIM, Sorensen and Embree
    2016)."""
    left = np.array(vectors, np.float64)
    chosen: list[int] = []
    for _ in range(count):
        leverage = np.square(left).sum(axis=0)
        leverage[chosen] = -1.0
        pivot = int(np.argmax(leverage))
        chosen.append(pivot)
        norm = np.sqrt(max(leverage[pivot], 0.0))
        if norm > _TINY:
            direction = left[:, pivot] / norm
            left -= np.outer(direction, direction @ left)
    return np.array(chosen)
