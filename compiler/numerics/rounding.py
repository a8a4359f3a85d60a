"""Weights rounded one after the other, so that those that come later make up for what was lost.

With X the layer's inputs as rows and H = X^T X, rounding W [inputs, outputs] to V costs

    |X V - X W|^2  =  trace((V - W)^T H (V - W))

which is least not where each weight is rounded to the nearest step. In the order of the inputs, weight j of
a column is rounded to v, and the weights after it move by

    d = -(w_j - v) / U_jj * U_j,j+1:        U as in :mod:`tersor.numerics.second_order`

(GPTQ: Frantar et al. 2023, arXiv 2210.17323). Of two inputs that are always equal, and weights of 0.4 steps
each, both would be rounded to 0 alone; here the second becomes 0.8 once the first is 0, and is rounded to 1.

Where a target sums products in pairs into 16 bits (:mod:`tersor.numerics.affine`), a weight goes no further
than what its group of four has left, and those after the group make up for that, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.ir import Affine, Dense
from tersor.numerics.second_order import COLUMNS, damped, inverse_factor

SAFE_SUM = 128  # Of two weights of one sign: 255 * 128 <= 32,767.
GROUP = 4  # Inputs of which a kernel pairs two.
DAMPING = 0.1  # Of the mean of H's diagonal: rows that were not seen, and the rounding of rows.


def round_in_order(
    weights: Sequence[tuple[np.ndarray, Affine]], xtx: np.ndarray, *, paired: bool
) -> list[Affine]:
    """Weights of layers that read the same, each in its own steps; columns that are better off rounded to
    the nearest stay that.

    Args:
        weights: f32[k, n], and what it is rounded to the nearest: int8 with a scale for each column,
            symmetric.
        xtx: f64[k, k], H.
        paired: whether any two products of a group of four have to fit 16 bits.
    """
    hessian = damped(xtx, DAMPING)
    factor = inverse_factor(hessian)
    made = []
    for weight, nearest in weights:
        step = nearest.scale.astype(np.float64).reshape(1, -1)
        exact = weight / step
        values = _rounded(exact.copy(), factor, paired)
        changes = [v - exact for v in (values, nearest.values)]
        costs = [(change * (hessian @ change)).sum(axis=0) for change in changes]
        better = np.where(costs[0] < costs[1], values, nearest.values).astype(np.int8)
        made.append(nearest.over(Dense(better)))
    return made


def _rounded(left: np.ndarray, factor: np.ndarray, paired: bool) -> np.ndarray:
    """Whole numbers within +-127 for ``left`` [k, n], which is used up; zeros stay."""
    k, n = left.shape
    values, pruned = np.zeros((k, n)), left == 0
    # The largest so far of a group, by sign: what is added to it may reach SAFE_SUM.
    most = np.zeros((2, n))
    for start in range(0, k, COLUMNS):
        block = slice(start, min(start + COLUMNS, k))
        upper, held = factor[block, block], left[block]  # a view
        errors = np.zeros_like(held)
        for j in range(len(held)):
            at = start + j
            value = np.where(pruned[at], 0, np.clip(np.rint(held[j]), -127, 127))
            if paired:
                if at % GROUP == 0:
                    most[:] = 0
                value = np.clip(value, most[1] - SAFE_SUM, SAFE_SUM - most[0])
                most = np.maximum(most, (value, -value))
            values[at] = value
            errors[j] = (held[j] - value) / upper[j, j]
            held[j:] -= np.outer(upper[j, j:], errors[j])
        left[block.stop :] -= factor[block, block.stop :].T @ errors
    return values
