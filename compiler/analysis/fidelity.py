"""How far outputs are from those of the model that was compressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Outputs = Mapping[str, np.ndarray]


def fidelity(reference: Sequence[Outputs], got: Sequence[Outputs]) -> dict[str, float]:
    """Over all float outputs of all feeds, taken as rows of their last axis: ``mean_cosine``,
    ``min_cosine`` of the rows, and ``max_error``, the largest absolute difference. Values that are not
    finite in either are left out of the cosines and make ``max_error`` infinite where they differ."""
    cosines, worst = [], 0.0
    for expected, found in zip(reference, got, strict=True):
        for name, a in expected.items():
            if a.dtype.kind != "f" or not a.size:
                continue
            a, b = a.astype(np.float64), found[name].astype(np.float64)
            if a.shape != b.shape:
                return {"mean_cosine": 0.0, "min_cosine": 0.0, "max_error": float("inf")}
            worst = max(worst, _largest_difference(a, b))
            cosines.append(_cosines(_rows(a), _rows(b)))
    if not cosines:
        return {}
    every = np.concatenate(cosines)
    return {
        "mean_cosine": float(every.mean()),
        "min_cosine": float(every.min()),
        "max_error": worst,
    }


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x.reshape(1, -1)


def _largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        difference = np.where(same, 0.0, np.abs(a - b))
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max())


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    usable = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    a, b = a[usable], b[usable]
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = (a == b).all(axis=1)  # Rows of zeros agree with themselves.
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.where(same, 1.0, (a * b).sum(axis=1) / norms)
    return np.asarray(np.nan_to_num(np.clip(cosines, -1.0, 1.0), nan=0.0))
