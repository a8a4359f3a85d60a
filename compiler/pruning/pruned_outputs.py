"""The loss of a model's outputs relative to another's.

    loss = mean over outputs and batches of  |a - b|^2 / max(|a - mean a|^2, its mean over batches / 100)

All outputs and batches count the same, however large their numbers are: a batch may be the only one that
takes one branch of an If.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Outputs = Mapping[str, np.ndarray]
SMALLEST = 0.01  # Least variance of a batch to divide by, relative to the mean over batches.


def output_loss(wanted: Sequence[Outputs], got: Sequence[Outputs]) -> float:
    """Of float outputs as above; of others the share of elements that differ. Infinite if any number is
    not finite."""
    return OutputLoss(wanted)(zip(wanted, got, strict=True))


class OutputLoss:
    """:func:`output_loss` of several models against one, a batch in memory at a time."""

    def __init__(self, wanted: Iterable[Outputs]) -> None:
        self._means: dict[str, _MeanRow] = {}
        for outputs in wanted:
            for name, array in _arrays(outputs).items():
                if array.dtype.kind == "f":
                    self._means.setdefault(name, _MeanRow()).add(array)

    def __call__(self, pairs: Iterable[tuple[Outputs, Outputs]]) -> float:
        """``pairs``: outputs of the reference model, as in the constructor, and of the other one."""
        shares: dict[str, list[float]] = {}
        errors: dict[str, list[tuple[float, float]]] = {}
        for wanted, got in pairs:
            for name, a in _arrays(wanted).items():
                b = np.asarray(got[name])
                if name in self._means:
                    mean = self._means[name].row(a.ndim)
                    errors.setdefault(name, []).append(_errors(a, b, mean))
                else:
                    same = a.shape == b.shape
                    shares.setdefault(name, []).append(float((a != b).mean()) if same else 1.0)
        losses = [float(np.mean(s)) for s in shares.values()]
        losses += [_relative(np.array(e)) for e in errors.values()]
        loss = float(np.mean(losses)) if losses else 0.0
        return loss if np.isfinite(loss) else float("inf")


def _arrays(outputs: Outputs) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in outputs.items() if np.size(array)}


def _errors(a: np.ndarray, b: np.ndarray, mean: np.ndarray | float) -> tuple[float, float]:
    """Mean square of the error, and of the deviation from the mean row."""
    if a.shape != b.shape or not np.isfinite(b).all():
        return np.inf, 1.0
    error, whole = (np.square(a - c, dtype=np.float64).mean() for c in (b, mean))
    return float(error), float(whole)


def _relative(errors: np.ndarray) -> float:
    """The mean relative error of f64[n, 2], a row of :func:`_errors` per batch."""
    error, whole = errors.T
    if not np.isfinite(error).all():
        return float("inf")
    whole = np.maximum(whole, SMALLEST * whole.mean())
    # Of constant outputs, any error counts as 1.
    return float(np.divide(error, whole, out=(error > 0) * 1.0, where=whole > 0).mean())


class _MeanRow:
    """The mean of an output's rows along its last axis; 0 if there is one row or lengths differ."""

    def __init__(self) -> None:
        self._total: np.ndarray | float = 0.0
        self._rows, self._widths = 0, set[int]()

    def add(self, array: np.ndarray) -> None:
        rows = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(1, -1)
        self._rows += len(rows)
        self._widths.add(rows.shape[1])
        if len(self._widths) == 1:
            self._total = self._total + rows.sum(axis=0, dtype=np.float64)

    def row(self, ndim: int) -> np.ndarray | float:
        if len(self._widths) > 1 or self._rows < 2:
            return 0.0
        mean = np.asarray(self._total / self._rows)
        return mean if ndim else mean[0]
