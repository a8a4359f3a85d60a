"""A cache of a graph's outputs on calibration inputs that are iterated over several times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tersor.ir import Graph
from tersor.pipeline.rewriting import Evaluate, Feed, Feeds

MOST_BYTES = 1 << 27


class KeptOutputs:
    """(feed, outputs of ``graph`` on it) for each of ``feeds``; the graph must not change.

    Outputs of the first feeds, up to MOST_BYTES, are cached; the others are computed in each iteration.
    """

    def __init__(self, graph: Graph, feeds: Feeds, evaluate: Evaluate) -> None:
        self._graph, self._feeds, self._evaluate = graph, feeds, evaluate
        self._kept: dict[int, Mapping[str, Any]] = {}
        self._bytes = 0

    def __iter__(self) -> Iterator[tuple[Feed, Mapping[str, Any]]]:
        for i, feed in enumerate(self._feeds):
            outputs = self._kept.get(i)
            if outputs is None:
                outputs = self._evaluate(self._graph, feed)
                self._keep(i, outputs)
            yield feed, outputs

    def _keep(self, i: int, outputs: Mapping[str, Any]) -> None:
        size = sum(getattr(array, "nbytes", 0) for array in outputs.values())
        if self._bytes + size <= MOST_BYTES:
            self._kept[i] = outputs
            self._bytes += size
