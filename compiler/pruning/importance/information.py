"""Information gain of units: how much the outputs change, measured, when they are zero.

    sum of |y - y'|^2 / sum of |y|^2       y': without the units, over all inputs; mean over float outputs

Units are taken out of a running model (:mod:`.masks`), in one run of the calibration inputs each.  A group
of more than RUNS free units has as many runs: its units are put in the order of their L2 norms
(``weights.magnitude``) and cut into chunks, nearly equal in number, that are taken out together.  A unit
gets the share of what its chunk changed that the square of its norm is of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tersor.ir import Graph, TensorType
from tersor.pipeline import Evaluate, Feeds
from tersor.pruning.importance.masks import masked
from tersor.pruning.importance.weights import magnitude
from tersor.statistics.observers import real_rows
from tersor.statistics.padding import padding_mask
from tersor.structure import AxisGroup

RUNS = 32  # Of the calibration inputs, for one group.


def information_gain(
    graph: Graph, groups: Sequence[AxisGroup], feeds: Feeds, evaluate: Evaluate
) -> list[np.ndarray]:
    """f64[units] for each group."""
    copy = masked(graph, groups)
    work = [(i, chunk) for i, group in enumerate(groups) for chunk in chunks(group)]
    names = _float_outputs(graph)
    energy, change = np.zeros(len(names)), np.zeros((len(work), len(names)))
    for feed in feeds:
        whole = _rows(graph, evaluate(copy.graph, {**feed, **copy.whole()}), feed)
        energy += [float(np.square(whole[n]).sum()) for n in names]
        for j, (i, chunk) in enumerate(work):
            made = evaluate(copy.graph, {**feed, **copy.without(i, chunk.tolist())})
            rows = _rows(graph, made, feed)
            change[j] += [float(np.square(rows[n] - whole[n]).sum()) for n in names]
    gains = (change / np.where(energy > 0, energy, 1)).mean(axis=1)
    found = [np.zeros(group.units) for group in groups]
    for (i, chunk), gain in zip(work, gains.tolist(), strict=True):
        found[i][chunk] = gain * _shares(groups[i], chunk)
    return found


def chunks(group: AxisGroup) -> Iterator[np.ndarray]:
    """Free units that are measured together."""
    free = np.asarray(group.free, np.int64)
    ordered = free[np.argsort(magnitude(group, 2)[free], kind="stable")]
    yield from np.array_split(ordered, min(RUNS, len(ordered)))


def _shares(group: AxisGroup, chunk: np.ndarray) -> np.ndarray:
    squares = np.square(magnitude(group, 2)[chunk])
    total = float(squares.sum())
    return np.asarray(squares / total if total > 0 else np.full(len(chunk), 1 / len(chunk)))


def _float_outputs(graph: Graph) -> list[str]:
    return [
        name
        for name, value in zip(graph.output_names, graph.outputs, strict=True)
        if isinstance(value.type, TensorType) and value.type.dtype.is_float
    ]


def _rows(
    graph: Graph, made: Mapping[str, np.ndarray], feed: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """f64[n, k] of each float output, padding left out."""
    by_name = dict(zip(graph.output_names, graph.outputs, strict=True))
    found = {}
    for name in _float_outputs(graph):
        array = np.atleast_1d(made[name])
        mask = padding_mask(graph, by_name[name])
        real = None if mask is None else feed[mask]
        found[name] = real_rows(array, real).astype(np.float64)
    return found
