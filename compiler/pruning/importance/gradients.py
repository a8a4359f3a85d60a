"""Importance by gradients of the loss <r, y> (:mod:`tersor.ops.gradients`), without padding.

    gradient    sum of |g_w| over all weights w of a unit, g = d<r, y> / dw
    taylor      sum of |w g_w|, the change of the loss without w (Molchanov et al. 2019,
                arXiv 1906.10771)
    fisher      mean over samples of (d<r, y> / dm_u)^2, m_u: a factor on u wherever it is read.  At 1
                that is the sum of a g_a: the change of the outputs, to second order, without the unit
                (Kwon et al. 2022, arXiv 2204.09656).  Samples lie along the first axis of the first
                output: if its size is open, each has its own masks; else one draw of r for the whole
                batch gives an unbiased estimate.

The first two are means over the batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tersor.ir import Graph, TensorType, Value
from tersor.ir.dims import Sym
from tersor.ops.gradients import gradients
from tersor.pipeline import Feeds
from tersor.pruning.importance.masks import Mask, masked
from tersor.pruning.importance.weights import by_unit, weight_axes
from tersor.statistics.padding import padding_mask
from tersor.structure import AxisGroup


def slopes(
    graph: Graph, groups: Sequence[AxisGroup], feeds: Feeds, seed: int, *, times_weight: bool
) -> list[np.ndarray]:
    """f64[units] for each group: |g|, or ``times_weight`` |w g|, of all weights of each unit."""
    leaves = list(dict.fromkeys(v for group in groups for v, _ in weight_axes(group)))
    total = {v: np.zeros(v.tensor.shape) for v in leaves}
    for by_weight in gradients(graph, leaves, feeds, seed, _padding(graph)):
        for value, gradient in by_weight.items():
            total[value] += np.abs(gradient)
    for value in leaves:
        total[value] *= np.abs(value.numpy().astype(np.float64)) if times_weight else 1.0
    return [_of_weights(group, total) / len(feeds) for group in groups]


def fisher(graph: Graph, groups: Sequence[AxisGroup], feeds: Feeds, seed: int) -> list[np.ndarray]:
    """f64[units] for each group."""
    samples, source = _samples(graph)
    copy = masked(graph, groups, samples)
    leaves = [mask.value for masks in copy.masks for mask in masks]
    sizes = [feed[source[0]].shape[source[1]] if source else 1 for feed in feeds]
    full = ({**feed, **copy.whole(n)} for feed, n in zip(feeds, sizes, strict=True))
    total = [np.zeros(group.units) for group in groups]
    for by_mask in gradients(copy.graph, leaves, full, seed, _padding(graph)):
        for i, group in enumerate(groups):
            total[i] += _squared(copy.masks[i], group.units, by_mask)
    return [scores / max(sum(sizes), 1) for scores in total]


def _squared(
    masks: Sequence[Mask], units: int, gradients: Mapping[Value, np.ndarray]
) -> np.ndarray:
    """f64[units]: gradients summed over masks, squared, and summed over samples if masks have those."""
    parts = [mask.by_unit(gradients[mask.value], units) for mask in masks]
    if any(mask.samples is None for mask in masks):
        parts = [part.sum(axis=0, keepdims=True) for part in parts]
    return np.asarray(np.square(np.sum(parts, axis=0)).sum(axis=0))


def _of_weights(group: AxisGroup, numbers: Mapping[Value, np.ndarray]) -> np.ndarray:
    sums = np.zeros(group.units)
    for value, axis in weight_axes(group):
        moved = np.moveaxis(numbers[value], axis, 0)
        sums += by_unit(group, (value, axis), moved.reshape(len(moved), -1).sum(axis=1))
    return sums


def _samples(graph: Graph) -> tuple[Sym | None, tuple[str, int] | None]:
    """The open leading dim of the first output, and an (input, axis) with its size."""
    first = graph.outputs[0].type if graph.outputs else None
    dims = first.dims if isinstance(first, TensorType) else None
    if dims and isinstance(dims[0], Sym):
        for value in graph.inputs:
            own = value.type.dims if isinstance(value.type, TensorType) else None
            if own and dims[0] in own:
                return dims[0], (value.name, own.index(dims[0]))
    return None, None


def _padding(graph: Graph) -> list[str | None]:
    return [padding_mask(graph, value) for value in graph.outputs]
