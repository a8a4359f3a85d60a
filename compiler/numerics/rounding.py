"""GPTQ: rounds weights in order, so that later weights compensate for the error of earlier ones.

With X the layer's inputs as rows and H = X^T X, rounding W [inputs, outputs] to V costs

    |X V - X W|^2  =  trace((V - W)^T H (V - W))

which rounding each weight to nearest does not minimize. In the order of the inputs, weight j of a column is
rounded to v, and the weights after it change by

    d = -(w_j - v) / U_jj * U_j,j+1:        U as in :mod:`tersor.numerics.second_order`

(Frantar et al. 2023, arXiv 2210.17323). Example: two inputs that are always equal, with weights of 0.4 steps
each. To nearest, both become 0; here the second becomes 0.8 once the first is 0, and is rounded to 1.

If the target adds products in 16 bits (:mod:`tersor.numerics.sums`), a weight is also clipped to what its sum
has left, which later weights compensate too.  A sum that is too large loses the same from each weight:

    100, 60, -5  within 128    ->    84, 44, -5

With sums of more than two weights, a step that fits the largest sum of a column is far too coarse for the
rest of it: :func:`coarser` takes the step with the least error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.ir import Affine, Dense
from tersor.numerics.affine import short_steps
from tersor.numerics.second_order import COLUMNS, damped, inverse_factor
from tersor.numerics.sums import MOST, Sums

COARSER = (1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 2, 2.2, 2.5, 3, 4)
"""Steps that are tried, times 127th parts of the largest weight."""
DAMPING = 0.1  # Times the mean of H's diagonal: for unseen inputs, and for quantized activations.


def round_in_order(
    weights: Sequence[tuple[np.ndarray, Affine]], xtx: np.ndarray, sums: Sums | None = None
) -> list[Affine]:
    """Rounds the weights of layers with the same input; a column stays rounded to nearest if that costs
    less.

    Args:
        weights: f32[k, n], and the same weight rounded to nearest: symmetric int8 with a scale per column.
        xtx: f64[k, k], H.
        sums: those that must not overflow 16 bits. The weights rounded to nearest already fit.
    """
    hessian = damped(xtx, DAMPING)
    factor = inverse_factor(hessian)
    rounded = []
    for weight, nearest in weights:
        step = nearest.scale.astype(np.float64).reshape(1, -1)
        exact = weight / step
        values = _rounded(exact.copy(), factor, sums)
        changes = [v - exact for v in (values, nearest.values)]
        costs = [(change * (hessian @ change)).sum(axis=0) for change in changes]
        better = np.where(costs[0] < costs[1], values, nearest.values).astype(np.int8)
        rounded.append(nearest.over(Dense(better)))
    return rounded


def coarser(weight: np.ndarray, energy: np.ndarray, sums: Sums) -> Affine:
    """``weight`` f32[k, n] rounded to the nearest that fits ``sums``, each column in the step with the least
    error, that of rounding and that of clipped sums. Errors are weighted by ``energy`` f64[k], the sum of
    squares of each input."""
    exact, largest = weight.astype(np.float64), np.abs(weight).max(axis=0, initial=0.0) / 127
    least, steps = np.full(weight.shape[1], np.inf), np.ones(weight.shape[1])
    for factor in COARSER:
        step = np.where(largest > 0, largest * factor, 1.0)
        lost = np.square((_fit(exact / step, sums, MOST) - exact / step) * step)
        lost = energy @ lost + energy.sum() * np.square(step) / 12
        steps, least = np.where(lost < least, step, steps), np.minimum(lost, least)
    steps32 = steps.astype(np.float32)
    scale = short_steps(np.where(steps32 > 0, steps32, np.float32(1)))
    # Roundings of +-0.5 may come on top, one for each weight of a sum.
    room = max(map(len, sums.places)) // 2
    values = np.clip(np.rint(_fit(exact / scale, sums, MOST - room)), -127, 127)
    return Affine(values.astype(np.int8), scale, np.zeros(len(scale), np.int8), 1)


def _fit(weights: np.ndarray, sums: Sums, most: float) -> np.ndarray:
    """``weights`` [k, n], each sum of one sign reduced to at most ``most``."""
    blocks = sums.blocks(weights)
    for places in sums.places:
        summed = np.moveaxis(blocks[:, places], 1, 0)
        over = np.abs(summed).sum(0) > most
        summed[:, over] = -_reduce(-_reduce(summed[:, over], most), most)
        blocks[:, places] = np.moveaxis(summed, 0, 1)
    return blocks.reshape(-1, weights.shape[1])[: len(weights)]


def _reduce(weights: np.ndarray, most: np.ndarray | float) -> np.ndarray:
    """``weights`` [m, n] with the positive ones of each column reduced, all by the same amount but none below
    zero, until they add up to at most ``most`` [n]."""
    positive = np.maximum(weights, 0)
    over = positive.sum(0) > most
    largest = -np.sort(-positive, axis=0)
    # The amount if only the i largest are reduced: right where it is less than the smallest of them.
    each = (largest.cumsum(0) - most) / np.arange(1, len(weights) + 1)[:, None]
    less = np.take_along_axis(each, np.maximum((largest > each).sum(0) - 1, 0)[None], 0)
    return np.where(over & (weights > 0), np.maximum(weights - less, 0), weights)


def _rounded(left: np.ndarray, factor: np.ndarray, sums: Sums | None) -> np.ndarray:
    """``left`` [k, n], which is overwritten, as integers within +-127; zeros stay zero."""
    k, n = left.shape
    values, pruned = np.zeros((k, n)), left == 0
    room = None if sums is None else _Room(sums, n)
    for start in range(0, k, COLUMNS):
        block = slice(start, min(start + COLUMNS, k))
        upper, current = factor[block, block], left[block]  # a view
        errors = np.zeros_like(current)
        for j in range(len(current)):
            at = start + j
            if room is None:
                value = np.clip(np.rint(current[j]), -127, 127)
            else:
                value = room.take(at, current[j : j + room.sums.block])
            value = np.where(pruned[at], 0, value)
            if room is not None:
                room.note(at, value)
            values[at] = value
            errors[j] = (current[j] - value) / upper[j, j]
            current[j:] -= np.outer(upper[j, j:], errors[j])
        left[block.stop :] -= factor[block, block.stop :].T @ errors
    return values


class _Room:
    """How far weights may go that are rounded in order, so that all ``sums`` fit."""

    def __init__(self, sums: Sums, n: int) -> None:
        self.sums = sums
        self._place = {row: i for i, rows in enumerate(sums.places) for row in rows}
        # By sum of the block and sign: the total so far (or the largest weight, if any two are added).
        self._used = np.zeros((len(sums.places), 2, n))

    def take(self, at: int, ahead: np.ndarray) -> np.ndarray:
        """The integer for weight ``at``, the first of ``ahead``."""
        within = at % self.sums.block
        if within == 0:
            self._used[:] = 0
        place = self._place[within]
        above, below = MOST - self._used[place]
        wanted = ahead[0]
        if not self.sums.most:
            rows = [
                r - within for r in self.sums.places[place] if within <= r < within + len(ahead)
            ]
            wanted = self._reduced(ahead[rows], above, below)
        value: np.ndarray = np.clip(np.clip(np.rint(wanted), -127, 127), -below, above)
        return value

    def _reduced(self, rest: np.ndarray, above: np.ndarray, below: np.ndarray) -> np.ndarray:
        """The first of the weights of a sum that are not rounded yet."""
        first: np.ndarray = rest[0].copy()
        over = np.flatnonzero(np.abs(rest).sum(0) > np.minimum(above, below))
        if len(over):
            some = -_reduce(-_reduce(rest[:, over], above[over]), below[over])
            first[over] = some[0]
        return first

    def note(self, at: int, value: np.ndarray) -> None:
        """Records that weight ``at`` is rounded to ``value``."""
        used = self._used[self._place[at % self.sums.block]]
        signed = np.maximum((value, -value), 0)
        used[:] = used + signed if not self.sums.most else np.maximum(used, signed)
