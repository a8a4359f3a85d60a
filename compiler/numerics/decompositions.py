"""Factors of a weight that are no truncated SVD: parts, and samples of its own columns and rows."""

from __future__ import annotations

import numpy as np

from tersor.numerics.lowrank import Factors

NMF_SWEEPS = 100
_TINY = 1e-30


def semi_nmf(weight: np.ndarray, rank: int, seed: int = 0) -> Factors:
    """W ~ A B with B >= 0: every column of W is a sum of columns of A, nothing is taken away.

    Weights have both signs, so that A must have them too (semi-NMF, Ding, Li and Jordan 2010).  In turns, A
    by least squares, and each element of B times

        sqrt(((A^T W)^+ + (A^T A)^- B) / ((A^T W)^- + (A^T A)^+ B)),     z^+ = max(z, 0), z^- = max(-z, 0)

    which never makes the error larger.  NMF_SWEEPS turns from a seeded start.
    """
    b = np.random.default_rng(seed).random((rank, weight.shape[1])) + 0.1
    scale = float(np.abs(weight).max(initial=0.0)) or 1.0  # The start fits numbers around 1.
    held = weight / scale
    for _ in range(NMF_SWEEPS):
        a = _left(held, b)
        pulls, overlaps = a.T @ held, a.T @ a
        up = np.maximum(pulls, 0) + np.maximum(-overlaps, 0) @ b
        down = np.maximum(-pulls, 0) + np.maximum(overlaps, 0) @ b
        b = b * np.sqrt((up + _TINY) / (down + _TINY))
    return Factors(_left(held, b) * scale, b)


def _left(weight: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The A of least |W - A B|."""
    return np.asarray(np.linalg.lstsq(b.T, weight.T, rcond=None)[0].T)


def nystrom(weight: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Factors:
    """W ~ C U^+ R:  C the columns, R the rows of W at landmarks, U where they cross.

    The Nystroem form of a kernel matrix (Williams and Seeger 2001), for W of any shape: exact where the rank
    of U is that of W.

    Args:
        rows, columns: the landmarks, as many of both.
    """
    crossing = weight[np.ix_(rows, columns)]
    return Factors(weight[:, columns], np.linalg.pinv(crossing) @ weight[rows])


def landmarks(vectors: np.ndarray, count: int) -> np.ndarray:
    """Positions by leverage, |column|^2 of orthonormal ``vectors`` [r, n], largest first, each after what
    the earlier ones already explain is taken out: QR with column pivoting, so that no two of them
    tell the same (Sorensen and Embree 2016, DEIM)."""
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
