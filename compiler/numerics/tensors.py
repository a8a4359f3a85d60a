"""Tensor decompositions of weights, by tensorly.

    CP            W[a, b, c] ~ sum over r of A[a, r] B[b, r] C[c, r]
    Tucker        W[a, b, ..] ~ sum over p, q of G[p, q, ..] A[a, p] B[b, q]     (two axes of any number)
    tensor train  W[a, b, c] ~ sum over r, s of G1[a, r] G2[r, b, s] G3[s, c]

(Kolda and Bader 2009; Oseledets 2011.)  All in f64, with deterministic starts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tersor.errors import Unsupported

_SWEEPS = 100
_TOLERANCE = 1e-8  # Stops when the error changes less from sweep to sweep.


def cp(tensor: np.ndarray, rank: int) -> list[np.ndarray]:
    """A factor [size, rank] per axis; the first includes the weights of the terms."""
    with warnings.catch_warnings():
        # tensorly warns when an axis is shorter than the rank; it then draws the missing vectors.
        warnings.simplefilter("ignore", UserWarning)
        result = _decomposition().parafac(
            tensor, rank, init="svd", n_iter_max=_SWEEPS, tol=_TOLERANCE, random_state=0
        )
    factors = [np.asarray(f) for f in result.factors]
    return [factors[0] * np.asarray(result.weights), *factors[1:]]


def tucker2(
    tensor: np.ndarray, ranks: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(core [p, q, …], A [a, p], B [b, q]) over the first two axes of [a, b, …]."""
    (core, factors), _ = _decomposition().partial_tucker(
        tensor, list(ranks), modes=[0, 1], n_iter_max=_SWEEPS, tol=_TOLERANCE
    )
    return np.asarray(core), np.asarray(factors[0]), np.asarray(factors[1])


def tensor_train(tensor: np.ndarray, ranks: Sequence[int]) -> list[np.ndarray]:
    """A core [r, size, s] per axis, with ``ranks`` between them; the outermost r and s are 1."""
    cores = _decomposition().tensor_train(tensor, [1, *ranks, 1])
    return [np.asarray(core) for core in cores]


def cp_product(factors: Sequence[np.ndarray]) -> np.ndarray:
    """The tensor that CP factors stand for."""
    rank = factors[0].shape[1]
    terms = np.ones((1, rank))
    for factor in factors:
        terms = (terms[:, None] * factor[None]).reshape(-1, rank)
    return np.asarray(terms.sum(axis=1).reshape([len(f) for f in factors]))


def tucker2_product(core: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The tensor that a Tucker core and its two factors stand for."""
    return np.asarray(np.einsum("pq...,ap,bq->ab...", core, a, b))


def train_product(cores: Sequence[np.ndarray]) -> np.ndarray:
    """The tensor that the cores of a tensor train stand for."""
    tensor = np.ones((1, 1))
    for core in cores:
        tensor = np.tensordot(tensor, core, axes=1)
    return np.asarray(tensor.reshape([core.shape[1] for core in cores]))


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest of 1 .. ``most`` that fits, ``fits`` being monotonic; 0 if none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def train_ranks(shape: Sequence[int], most: int | None = None) -> list[int]:
    """The ranks at which a tensor train is exact, clipped to ``most``."""
    full = [min(int(np.prod(shape[:i])), int(np.prod(shape[i:]))) for i in range(1, len(shape))]
    return full if most is None else [min(rank, most) for rank in full]


def _decomposition() -> Any:
    try:
        import tensorly.decomposition
    except ModuleNotFoundError as error:
        raise Unsupported(
            f"tensor decompositions need the package {error.name!r}: pip install 'tersor[tensor]'"
        ) from None
    return tensorly.decomposition
