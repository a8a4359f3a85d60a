"""Cuts of a graph's axis groups, and the same units zeroed: what tests of structure compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tersor.ir import Graph, verify
from tersor.pipeline import Pipeline, registry
from tersor.structure import (
    AxisGroup,
    axis_groups,
    slice_graph,
    split_vectors,
    union,
    zero_graph,
)

Evaluate = Callable[[Graph, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Cuts:
    """A graph in which a share of the units of every group is gone.

    Attributes:
        whole: before.
        cut: without the units.
        zeroed: with zeros where they are summed over, where the groups are exact; else as it was.
        groups: how many were cut.
    """

    whole: Graph
    cut: Graph
    zeroed: Graph
    groups: int


def prepared(graph: Graph) -> Graph:
    """As passes of structure find it: optimized, every reader of a vector with one of its own."""
    fused = Pipeline(registry.optimization(), level="none").run(graph)
    split_vectors(fused)
    return fused


def chosen(group: AxisGroup, share: float, rng: np.random.Generator) -> list[int]:
    """A share of the units that may go; one stays."""
    count = min(int(len(group.free) * share), group.units - 1)
    return sorted(rng.choice(group.free, count, replace=False).tolist()) if count else []


def cut_all(graph: Graph, share: float, *, exact: bool, seed: int = 0) -> Cuts:
    """All groups of ``graph`` together that are exact, or all that are not."""
    cut, zeroed, rng = graph.copy(), graph.copy(), np.random.default_rng(seed)
    parts, count = [], 0
    for group, same in zip(axis_groups(cut), axis_groups(zeroed), strict=True):
        gone = chosen(group, share, rng) if (group.inexact == "") is exact else []
        if not gone:
            continue
        count += 1
        parts.append(group.positions(gone))
        if exact:
            zero_graph(zeroed, same, gone)
    slice_graph(cut, union(*parts))
    verify(cut)
    return Cuts(graph, cut, zeroed, count)


def difference(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    """The largest, of all outputs, relative to the largest magnitude that an output has."""
    assert list(a) == list(b)
    worst = 0.0
    for name, want in a.items():
        assert b[name].shape == want.shape
        assert b[name].dtype == want.dtype
        if want.size and want.dtype.kind == "f":
            scale = float(np.abs(want).max()) or 1.0
            worst = max(worst, float(np.abs(b[name] - want).max()) / scale)
    return worst


def described(groups: Sequence[AxisGroup]) -> list[str]:
    """Groups in a line each: name, units that may go of all, and why others must stay."""
    lines = []
    for group in groups:
        why = "; ".join(dict.fromkeys(group.pinned.values()))
        line = f"{group.name}: {len(group.free)} of {group.units}"
        lines.append(
            line + (f", {why}" if why else "") + (f" ({group.inexact})" * bool(group.inexact))
        )
    return lines
