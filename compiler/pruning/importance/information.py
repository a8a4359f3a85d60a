"""Information gain of units: the measured change of the outputs when they are zero.

    sum of |y - y'|^2 / sum of |y|^2       y': without the units, over all inputs; mean over float outputs

Each unit is masked (:mod:`.masks`) in one run of the calibration inputs.  A group of more than RUNS free
units has RUNS runs: its units are sorted by L2 norm (``weights.magnitude``) and masked in chunks of nearly
equal size.  The change by a chunk is divided among its units in proportion to their squared norms.
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

RUNS = 32  # Of the calibration inputs, per group.


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
            outputs = evaluate(copy.graph, {**feed, **copy.without(i, chunk.tolist())})
            rows = _rows(graph, outputs, feed)
            change[j] += [float(np.square(rows[n] - whole[n]).sum()) for n in names]
    gains = (change / np.where(energy > 0, energy, 1)).mean(axis=1)
    scores = [np.zeros(group.units) for group in groups]
    for (i, chunk), gain in zip(work, gains.tolist(), strict=True):
        scores[i][chunk] = gain * _shares(groups[i], chunk)
    return scores


def chunks(group: AxisGroup) -> Iterator[np.ndarray]:
    """Free units, in chunks that are measured together."""
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
    graph: Graph, outputs: Mapping[str, np.ndarray], feed: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """f64[n, k] of each float output, without padding."""
    by_name = dict(zip(graph.output_names, graph.outputs, strict=True))
    rows = {}
    for name in _float_outputs(graph):
        array = np.atleast_1d(outputs[name])
        mask = padding_mask(graph, by_name[name])
        real = None if mask is None else feed[mask]
        rows[name] = real_rows(array, real).astype(np.float64)
    return rows
