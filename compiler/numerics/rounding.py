"""GPTQ: rounds weights in order, so that later weights compensate for the error of earlier ones.

With X the layer's inputs as rows and H = X^T X, rounding W [inputs, outputs] to V costs

    |X V - X W|^2  =  trace((V - W)^T H (V - W))

which rounding each weight to nearest does not minimize. In the order of the inputs, weight j of a column is
rounded to v, and the weights after it change by

    d = -(w_j - v) / U_jj * U_j,j+1:        U as in :mod:`tersor.numerics.second_order`

(Frantar et al. 2023, arXiv 2210.17323). Example: two inputs that are always equal, with weights of 0.4 steps
each. To nearest, both become 0; here the second becomes 0.8 once the first is 0, and is rounded to 1.

If the target adds pairs of products in 16 bits (:mod:`tersor.numerics.affine`), a weight is also clipped to
what its group of four has left, which later weights compensate too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.ir import Affine, Dense
from tersor.numerics.second_order import COLUMNS, damped, inverse_factor

SAFE_SUM = 128  # The largest sum of two weights of one sign: 255 * 128 <= 32,767.
GROUP = 4  # Consecutive inputs, any two of which a kernel may pair.
DAMPING = 0.1  # Times the mean of H's diagonal: for unseen inputs, and for quantized activations.


def round_in_order(
    weights: Sequence[tuple[np.ndarray, Affine]], xtx: np.ndarray, *, paired: bool
) -> list[Affine]:
    """Rounds the weights of layers with the same input; a column stays rounded to nearest if that costs
    less.

    Args:
        weights: f32[k, n], and the same weight rounded to nearest: symmetric int8 with a scale per column.
        xtx: f64[k, k], H.
        paired: whether any two products of a group of four must add up without overflow in 16 bits.
    """
    hessian = damped(xtx, DAMPING)
    factor = inverse_factor(hessian)
    rounded = []
    for weight, nearest in weights:
        step = nearest.scale.astype(np.float64).reshape(1, -1)
        exact = weight / step
        values = _rounded(exact.copy(), factor, paired)
        changes = [v - exact for v in (values, nearest.values)]
        costs = [(change * (hessian @ change)).sum(axis=0) for change in changes]
        better = np.where(costs[0] < costs[1], values, nearest.values).astype(np.int8)
        rounded.append(nearest.over(Dense(better)))
    return rounded


def _rounded(left: np.ndarray, factor: np.ndarray, paired: bool) -> np.ndarray:
    """``left`` [k, n], which is overwritten, as integers within +-127; zeros stay zero."""
    k, n = left.shape
    values, pruned = np.zeros((k, n)), left == 0
    # The largest value of the current group so far, by sign: with the next it may reach SAFE_SUM.
    most = np.zeros((2, n))
    for start in range(0, k, COLUMNS):
        block = slice(start, min(start + COLUMNS, k))
        upper, view = factor[block, block], left[block]
        errors = np.zeros_like(view)
        for j in range(len(view)):
            at = start + j
            value = np.where(pruned[at], 0, np.clip(np.rint(view[j]), -127, 127))
            if paired:
                if at % GROUP == 0:
                    most[:] = 0
                value = np.clip(value, most[1] - SAFE_SUM, SAFE_SUM - most[0])
                most = np.maximum(most, (value, -value))
            values[at] = value
            errors[j] = (view[j] - value) / upper[j, j]
            view[j:] -= np.outer(upper[j, j:], errors[j])
        left[block.stop :] -= factor[block, block.stop :].T @ errors
    return values
