"""What a model's outputs lose against another's.

    loss = mean over outputs and batches of  |a - b|^2 / max(|a - mean a|^2, a hundredth of what is usual)

Each output and each batch counts as much as the others, however large its numbers are: a batch may be the
only one that takes one branch of an If.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Outputs = Mapping[str, np.ndarray]
SMALLEST = (
    0.01  # Of the mean square of an output: batches that vary less count as if they varied so much.
)


def output_loss(wanted: Sequence[Outputs], got: Sequence[Outputs]) -> float:
    """Of float outputs as above; of others the share of elements that differ. Infinite where something is
    not finite."""
    names = dict.fromkeys(name for outputs in wanted for name in outputs)
    found: list[float] = []
    for name in names:
        pairs = [
            (np.asarray(want[name]), np.asarray(have[name]))
            for want, have in zip(wanted, got, strict=True)
            if name in want and np.size(want[name])
        ]
        if pairs:
            exact = pairs[0][0].dtype.kind != "f"
            found.append(_differing(pairs) if exact else _lost(pairs))
    loss = float(np.mean(found)) if found else 0.0
    return loss if np.isfinite(loss) else float("inf")


def _differing(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    shares = [1.0 if a.shape != b.shape else float((a != b).mean()) for a, b in pairs]
    return float(np.mean(shares))


def _lost(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Relative to the variance about the mean row, where there is more than one."""
    if any(a.shape != b.shape or not np.isfinite(b).all() for a, b in pairs):
        return float("inf")
    mean = _mean_row([a for a, _ in pairs])
    missed = np.array([np.square(a - b, dtype=np.float64).mean() for a, b in pairs])
    whole = np.array([np.square(a - mean, dtype=np.float64).mean() for a, _ in pairs])
    whole = np.maximum(whole, SMALLEST * whole.mean())
    # Of outputs that are constant, any difference is all of it.
    return float(np.divide(missed, whole, out=(missed > 0) * 1.0, where=whole > 0).mean())


def _mean_row(arrays: Sequence[np.ndarray]) -> np.ndarray | float:
    rows = [a.reshape(-1, a.shape[-1]) if a.ndim > 1 else a.reshape(1, -1) for a in arrays]
    if len({r.shape[1] for r in rows}) > 1 or sum(map(len, rows)) < 2:
        return 0.0
    mean = np.concatenate(rows).mean(axis=0, dtype=np.float64)
    return np.asarray(mean if arrays[0].ndim else mean[0])
