"""What a model's outputs lose against another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Outputs = Mapping[str, np.ndarray]


def output_loss(wanted: Sequence[Outputs], got: Sequence[Outputs]) -> float:
    """Mean square of the difference of all float outputs, relative to the variance of what was wanted;
    infinite where something is not finite."""
    missed, whole = 0.0, 0.0
    for want, have in zip(wanted, got, strict=True):
        for name, array in want.items():
            if array.dtype.kind != "f" or not array.size:
                continue
            missed += float(np.square(array - have[name], dtype=np.float64).sum())
            rows = array.shape[0] if array.ndim else 1
            centred = array - array.mean(axis=0, keepdims=True) if rows > 1 else array
            whole += float(np.square(centred, dtype=np.float64).sum())
    share = missed / whole if whole > 0 else float(missed > 0)
    return share if np.isfinite(share) else float("inf")
