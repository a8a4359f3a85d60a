"""Importance by activations on calibration inputs, where nodes sum over units (:mod:`.readers`), without
padding.

activation-mean   mean of |a|
activation-max    largest |a|
apoz              1 - the share of all a of a unit that are at most 0 (Hu et al. 2016, arXiv
                  1607.03250).  Behind ReLU these are its zeros, behind GELU or SiLU nearly so; where the
                  sign has no meaning (tanh, attention), neither has the score.
wanda             sum of |W_t| |x_t|_2 over the terms t of a unit, W_t: all weights of an input (Sun et
                  al. 2023, arXiv 2306.11695); lanes of queries and keys: |q_t|_2 |k_t|_2
obs               squared error of the reader's outputs once the other inputs compensate for the unit,
                  relative to the outputs' squares (Hassibi and Stork 1993):
                  trace(W_u (P_uu)^-1 W_u^T) / trace(W G W^T),  G = X^T X, P = G^-1
                  Convolutions: each position of the kernel by itself.  Queries and keys, which have no
                  weights to fit: (|q_t|_2 |k_t|_2)^2 over the sum of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tersor.ir import Graph
from tersor.numerics.second_order import damped, removal_costs
from tersor.pipeline import Evaluate, Feeds
from tersor.pruning.importance.readers import (
    Reader,
    lanes,
    observed_axes,
    terms,
    visible,
    with_axes_last,
)
from tersor.pruning.importance.weights import along, by_unit
from tersor.statistics.gram import Gram, grams
from tersor.statistics.observers import Moments, Sums
from tersor.statistics.observing import TAPS, Rows, observe
from tersor.structure import AxisGroup
from tersor.structure.links import Axis, End

DAMPING = 1e-4  # Relative to the mean of G's diagonal: just enough to make G invertible.


SeenAt = Mapping[Axis, Sums]


def watch(graph: Graph, groups: Sequence[AxisGroup], feeds: Feeds, evaluate: Evaluate) -> SeenAt:
    """Statistics of all activations that the groups' readers multiply."""
    axes = list(dict.fromkeys(a for group in groups for a in observed_axes(graph, group)))
    copy, views = with_axes_last(graph, axes)
    observers = {Rows(view): Moments() for view in views.values()}
    observe(copy, {rows: [one] for rows, one in observers.items()}, feeds, evaluate)
    results = {axis: observers[Rows(view)].result for axis, view in views.items()}
    return {axis: sums for axis, sums in results.items() if sums is not None}


def mean(graph: Graph, group: AxisGroup, seen: SeenAt) -> np.ndarray:
    """f64[units], mean of |a|."""
    return _per_number(graph, group, seen, {axis: s.magnitude for axis, s in seen.items()})


def alive(graph: Graph, group: AxisGroup, seen: SeenAt) -> np.ndarray:
    """f64[units] in [0, 1], the share of activations above 0."""
    return 1 - _per_number(graph, group, seen, {axis: s.off for axis, s in seen.items()})


def largest(graph: Graph, group: AxisGroup, seen: SeenAt) -> np.ndarray:
    """f64[units], largest |a|."""
    peaks = np.zeros(group.units)
    for axis in observed_axes(graph, group):
        owner = group.axes[axis]
        with np.errstate(invalid="ignore"):  # NaN is propagated, and refused by the caller.
            np.maximum.at(peaks, owner[owner >= 0], seen[axis].largest[owner >= 0])
    return peaks


def wanda(graph: Graph, group: AxisGroup, seen: SeenAt) -> np.ndarray:
    """f64[units], sum of |W_t| |x_t|_2."""
    scores = np.zeros(group.units)
    for reader in visible(graph, group):
        worth = np.prod([_norms(end, reader, seen) for end in reader.observed], axis=0)
        for end in reader.weights:
            sizes = np.abs(along(*end.axis)).sum(axis=1)
            worth = worth * sizes[lanes(end, reader.size)].sum(axis=0)
        scores += _by_term(group, reader, worth)
    return scores


def obs(
    graph: Graph, groups: Sequence[AxisGroup], feeds: Feeds, evaluate: Evaluate
) -> Iterator[np.ndarray]:
    """f64[units] for each group, summed over its readers. Moments take as much memory as the weights, so
    groups are processed in batches."""
    for batch in _batches(graph, groups):
        axes = dict.fromkeys(a for group in batch for a in observed_axes(graph, group))
        copy, views = with_axes_last(graph, list(axes))
        seen = grams(copy, list(views.values()), feeds, evaluate)
        moments = {axis: seen[view] for axis, view in views.items()}
        for group in batch:
            parts = [_removal(group, r, moments) for r in visible(graph, group)]
            yield np.asarray(np.sum(parts, axis=0))


# -- helpers ---------------------------------------------------------------------------------------


def _per_number(
    graph: Graph, group: AxisGroup, seen: SeenAt, sums: Mapping[Axis, np.ndarray]
) -> np.ndarray:
    """f64[units], the mean: ``sums`` by position over the number of activations of each unit."""
    total, count = np.zeros(group.units), np.zeros(group.units)
    for axis in observed_axes(graph, group):
        total += by_unit(group, axis, sums[axis])
        count += by_unit(group, axis, np.full(len(sums[axis]), float(seen[axis].rows)))
    return total / np.maximum(count, 1)


def _norms(end: End, reader: Reader, seen: SeenAt) -> np.ndarray:
    """f64[size], the L2 norm of each term over all rows and all of its positions."""
    squares = seen[end.axis].squares[lanes(end, reader.size)]
    return np.asarray(np.sqrt(squares.sum(axis=0)))


def _by_term(group: AxisGroup, reader: Reader, worth: np.ndarray) -> np.ndarray:
    units = terms(group, reader)
    return np.bincount(units[units >= 0], worth[units >= 0], minlength=group.units)


def _removal(group: AxisGroup, reader: Reader, moments: Mapping[Axis, Gram]) -> np.ndarray:
    """f64[units], the relative squared error of a reader's output."""
    inner = [_moment(end, reader, moments) for end in reader.observed]
    if not reader.weights:
        squares = np.prod([np.diagonal(m) for m in inner], axis=0)
        return _share(_by_term(group, reader, squares), float(squares.sum()))
    if not np.isfinite(inner[0]).all():
        return np.full(group.units, np.nan)
    inverse = np.linalg.inv(damped(inner[0], DAMPING))
    units, errors, whole = terms(group, reader), np.zeros(group.units), 0.0
    for end in reader.weights:
        weight = _matrix(end, reader)
        whole += float(np.sum((weight @ inner[0]) * weight))
        for at in _equal_sets(units):
            errors[units[at[:, 0]]] += removal_costs(weight, inverse, at)
    return _share(errors, whole)


def _share(part: np.ndarray, whole: float) -> np.ndarray:
    return part / whole if whole > 0 else np.zeros_like(part)


def _moment(end: End, reader: Reader, moments: Mapping[Axis, Gram]) -> np.ndarray:
    """f64[size, size], X^T X of a sum's terms, summed over the groups of a grouped convolution."""
    xtx = moments[end.axis].xtx
    return np.asarray(sum(xtx[np.ix_(at, at)] for at in lanes(end, reader.size)))


def _matrix(end: End, reader: Reader) -> np.ndarray:
    """f64[outputs, size]: all weights that the terms are multiplied by."""
    numbers = along(*end.axis)[lanes(end, reader.size)]
    return np.asarray(np.moveaxis(numbers, 1, 2).reshape(-1, reader.size))


def _equal_sets(units: np.ndarray) -> Iterator[np.ndarray]:
    """For each s, i64[n, s]: the terms of the n units that have s of them."""
    counts = np.bincount(units[units >= 0])
    order = np.argsort(units, kind="stable")
    for size in np.unique(counts[counts > 0]).tolist():
        own = np.isin(units[order], np.flatnonzero(counts == size))
        yield order[own].reshape(-1, size)


def _batches(graph: Graph, groups: Sequence[AxisGroup]) -> Iterator[list[AxisGroup]]:
    """Groups that are observed in one run."""
    batch: list[AxisGroup] = []
    for group in groups:
        count = sum(len(observed_axes(graph, g)) for g in [*batch, group])
        if batch and count > TAPS:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch
