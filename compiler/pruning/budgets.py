"""Losses and savings of a group at each of its levels: the curves by which a budget is allocated.

A group's *levels* are the numbers of removed units at which kernels run full tiles: what is left of a long
axis is a multiple of 16 (columns of a product), of a short one a multiple of 4 (its inner steps). Heads and
other wide units are removed one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tersor.analysis.feeds import default_sizes
from tersor.ir import Graph
from tersor.numerics.allocation import Curve
from tersor.pipeline.rewriting import Latency
from tersor.pruning.unit_order import Order
from tersor.structure import AxisGroup, slice_graph, union
from tersor.structure.costs import cut_of_copy

LEVELS = 16  # Of a group, at most.
MEASURED = 6  # Levels of a group whose latency is measured; the others are interpolated.


def levels(group: AxisGroup) -> list[int]:
    """The group's levels, ascending from 0."""
    width = max(int(np.bincount(o[o >= 0]).max()) for o in group.axes.values() if (o >= 0).any())
    tile = 1 if width >= 16 or group.units < 16 else 16 if group.units >= 128 else 4
    most = min(len(group.free), group.units - 1)
    step = max(tile, -(-group.units // (LEVELS * tile)) * tile)
    # units - level is a multiple of the tile.
    first = group.units % tile
    return [0, *(g for g in range(first, most + 1, step) if g > 0)]


def curve(order: Order, at: Sequence[int], scale: float = 1.0) -> Curve:
    """Losses of an order at those levels ``at`` that it reaches, times ``scale``."""
    reached = [g for g in at if g <= len(order.units)]
    losses = [0.0 if g == 0 else float(order.losses[g - 1]) * scale for g in reached]
    return Curve(reached, losses)


def largest_sizes(graph: Graph, latency: Latency | None) -> dict[str, int]:
    """Sizes of the open dims to count work at: the largest ones that are measured."""
    defaults = default_sizes(graph)
    if latency is None:
        return max(defaults, key=_count, default={})
    # Measured inputs need not bind all dims.
    return {**defaults[0], **_largest(latency)}


def _largest(latency: Latency) -> Mapping[str, int]:
    return max(latency.sizes, key=_count)


def _count(sizes: Mapping[str, int]) -> float:
    return float(np.prod(list(sizes.values())))


def by_latency(
    graph: Graph,
    groups: Sequence[AxisGroup],
    at: Sequence[Sequence[int]],
    latency: Latency,
    progress: Callable[[int, int, str], None],
) -> tuple[float, list[list[float]]]:
    """(milliseconds of ``graph``, for each group the milliseconds that each of its levels saves). Some levels
    are measured and the others interpolated; groups of the same structure are measured once."""
    whole = milliseconds(graph, [], [], latency)
    known: dict[tuple[object, ...], float] = {}
    savings = []
    for i, (group, own) in enumerate(zip(groups, at, strict=True)):
        progress(i, len(groups), f"measuring {group.name}")
        picked = sorted({own[round(j * (len(own) - 1) / MEASURED)] for j in range(MEASURED + 1)})
        times = []
        for level in picked:
            key = (_structure(group), level)
            if key not in known:
                known[key] = milliseconds(graph, [group], [level], latency) if level else whole
            times.append(max(whole - known[key], 0.0))
        # Removing more units never takes longer: a decrease is noise.
        savings.append([float(v) for v in np.interp(own, picked, np.maximum.accumulate(times))])
    return whole, savings


def milliseconds(
    graph: Graph, groups: Sequence[AxisGroup], gone: Sequence[int], latency: Latency
) -> float:
    """Latency of ``graph`` at the largest sizes with ``gone`` units of each group removed, whichever."""
    copy, feed = graph.copy(), latency.feed(graph, _largest(latency))
    cut = union(*(g.positions(g.free[:n]) for g, n in zip(groups, gone, strict=True)))
    slice_graph(copy, cut_of_copy(cut, copy))
    return latency(copy, feed)


def _structure(group: AxisGroup) -> tuple[object, ...]:
    """A key that is equal for groups whose cuts cost the same."""
    ends = sorted(
        (link.node.op, str(end.axis[0].type), end.axis[1], end.summed)
        for link in group.links
        for end in link.ends
    )
    return (group.units, *ends)
