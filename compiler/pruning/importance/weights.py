"""What weights alone tell of units.

w_u: all numbers that belong to unit u, of what makes it (columns, biases) and of what reads it (rows)

l1      sum of |w_u|                    Li et al. 2017 (arXiv 1608.08710); over all that hangs together:
l2      root of the sum of w_u^2        Fang et al. 2023, DepGraph (arXiv 2301.12900)
fpgm    sum over v of |m_u - m_v|_2     He et al. 2019 (arXiv 1811.00250), m_u: what makes u.  It is least
                                        for the unit nearest to the geometric median: others can stand
                                        in for it, however large it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tersor.ir import Value
from tersor.structure import AxisGroup
from tersor.structure.links import Axis


def magnitude(group: AxisGroup, order: int) -> np.ndarray:
    """f64[units], the L1 or L2 norm (``order``) of all numbers that belong to each unit."""
    found = np.zeros(group.units)
    for value, axis in weight_axes(group):
        numbers = along(value, axis)
        sums = np.abs(numbers).sum(axis=1) if order == 1 else np.square(numbers).sum(axis=1)
        found += by_unit(group, (value, axis), sums)
    return found if order == 1 else np.sqrt(found)


def random(group: AxisGroup, seed: int, index: int) -> np.ndarray:
    """f64[units] in [0, 1); ``index``: of the group among all, so that each draws its own."""
    return np.random.default_rng((seed, index)).random(group.units)


def median_distance(group: AxisGroup) -> np.ndarray:
    """f64[units], the sum of the distances from each unit's vector to those of all others."""
    made = list(weight_axes(group, summed=False)) or list(weight_axes(group))
    square = np.zeros((group.units, group.units))
    for value, axis in made:
        square += _squared_distances(_vectors(group, value, axis))
    return np.asarray(np.sqrt(square).sum(axis=1))


def weight_axes(group: AxisGroup, *, summed: bool | None = None) -> Iterator[Axis]:
    """(constant of floats, axis) of a group, each once however many nodes read it; ``summed``: only
    those that units are made from (False) or that nodes sum over (True)."""
    sides = (False, True) if summed is None else (summed,)
    axes = (
        (value, axis)
        for side in sides
        for _, value, axis in group.weights(summed=side)
        if value.tensor.dtype.is_float
    )
    yield from dict.fromkeys(axes)


def along(value: Value, axis: int) -> np.ndarray:
    """f64[size of the axis, all else] of a constant."""
    numbers = np.moveaxis(value.numpy().astype(np.float64), axis, 0)
    return numbers.reshape(len(numbers), -1)


def by_unit(group: AxisGroup, axis: Axis, numbers: np.ndarray) -> np.ndarray:
    """f64[units], sums of the ``numbers`` of an axis's positions."""
    owner = group.axes[axis]
    held = owner >= 0
    return np.bincount(owner[held], numbers[held], minlength=group.units)


def unsound(group: AxisGroup) -> Sequence[Value]:
    """Weights that hold NaN or infinity at units that may go."""
    free = np.asarray(group.free, np.int64)
    found = []
    for value, axis in weight_axes(group):
        at = np.isin(group.axes[value, axis], free)
        if not np.isfinite(along(value, axis)[at]).all():
            found.append(value)
    return found


def _vectors(group: AxisGroup, value: Value, axis: int) -> np.ndarray:
    """f64[units, n], what of a weight belongs to each unit, in order; zeros behind what is shorter."""
    numbers, owner = along(value, axis), group.axes[value, axis]
    most = int(np.bincount(owner[owner >= 0], minlength=1).max())
    found = np.zeros((group.units, most, numbers.shape[1]))
    for unit in np.unique(owner[owner >= 0]):
        own = numbers[owner == unit]
        found[unit, : len(own)] = own
    return found.reshape(group.units, -1)


def _squared_distances(vectors: np.ndarray) -> np.ndarray:
    """f64[n, n], |a|^2 + |b|^2 - 2 a b: without a copy of all vectors for each."""
    products = vectors @ vectors.T
    norms = np.diagonal(products)
    found = np.maximum(norms[:, None] + norms[None] - 2 * products, 0)
    np.fill_diagonal(found, 0)
    return np.asarray(found)
