"""Importance by weights alone.

w_u: all weights of unit u, in layers that produce it (columns, biases) and that read it (rows)

l1      sum of |w_u|                    Li et al. 2017 (arXiv 1608.08710); over all coupled layers:
l2      root of the sum of w_u^2        Fang et al. 2023, DepGraph (arXiv 2301.12900)
fpgm    sum over v of |m_u - m_v|_2     He et al. 2019 (arXiv 1811.00250), m_u: producing weights of u.  It is
                                        least for the unit nearest to the geometric median, which the
                                        others can replace, however large it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tersor.ir import Value
from tersor.structure import AxisGroup
from tersor.structure.links import Axis


def magnitude(group: AxisGroup, order: int) -> np.ndarray:
    """f64[units], the L1 or L2 norm (``order``) of all weights of each unit."""
    total = np.zeros(group.units)
    for value, axis in weight_axes(group):
        numbers = along(value, axis)
        sums = np.abs(numbers).sum(axis=1) if order == 1 else np.square(numbers).sum(axis=1)
        total += by_unit(group, (value, axis), sums)
    return total if order == 1 else np.sqrt(total)


def random(group: AxisGroup, seed: int, index: int) -> np.ndarray:
    """f64[units] in [0, 1); ``index``: that of the group, so that groups draw different numbers."""
    return np.random.default_rng((seed, index)).random(group.units)


def median_distance(group: AxisGroup) -> np.ndarray:
    """f64[units], the sum of the distances from each unit's vector to those of all others."""
    axes = list(weight_axes(group, summed=False)) or list(weight_axes(group))
    square = np.zeros((group.units, group.units))
    for value, axis in axes:
        square += _squared_distances(_vectors(group, value, axis))
    return np.asarray(np.sqrt(square).sum(axis=1))


def weight_axes(group: AxisGroup, *, summed: bool | None = None) -> Iterator[Axis]:
    """The distinct (float constant, axis) of a group; ``summed``: only those that produce units (False) or
    that read them (True)."""
    sides = (False, True) if summed is None else (summed,)
    axes = (
        (value, axis)
        for side in sides
        for _, value, axis in group.weights(summed=side)
        if value.tensor.dtype.is_float
    )
    yield from dict.fromkeys(axes)


def along(value: Value, axis: int) -> np.ndarray:
    """A constant as f64[size of the axis, rest]."""
    numbers = np.moveaxis(value.numpy().astype(np.float64), axis, 0)
    return numbers.reshape(len(numbers), -1)


def by_unit(group: AxisGroup, axis: Axis, numbers: np.ndarray) -> np.ndarray:
    """f64[units], ``numbers`` by position of an axis summed by unit."""
    owner = group.axes[axis]
    owned = owner >= 0
    return np.bincount(owner[owned], numbers[owned], minlength=group.units)


def unsound(group: AxisGroup) -> Sequence[Value]:
    """Weights with NaN or infinity at units that may be removed."""
    free = np.asarray(group.free, np.int64)
    values = []
    for value, axis in weight_axes(group):
        at = np.isin(group.axes[value, axis], free)
        if not np.isfinite(along(value, axis)[at]).all():
            values.append(value)
    return values


def _vectors(group: AxisGroup, value: Value, axis: int) -> np.ndarray:
    """f64[units, n], the weights of each unit in order, padded with zeros to equal length."""
    numbers, owner = along(value, axis), group.axes[value, axis]
    most = int(np.bincount(owner[owner >= 0], minlength=1).max())
    vectors = np.zeros((group.units, most, numbers.shape[1]))
    for unit in np.unique(owner[owner >= 0]):
        own = numbers[owner == unit]
        vectors[unit, : len(own)] = own
    return vectors.reshape(group.units, -1)


def _squared_distances(vectors: np.ndarray) -> np.ndarray:
    """f64[n, n], by |a|^2 + |b|^2 - 2 a b, which needs no n^2 vectors in memory."""
    products = vectors @ vectors.T
    norms = np.diagonal(products)
    squared = np.maximum(norms[:, None] + norms[None] - 2 * products, 0)
    np.fill_diagonal(squared, 0)
    return np.asarray(squared)
