"""What a graph gives on calibration inputs that are gone over again and again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tersor.ir import Graph
from tersor.pipeline.rewriting import Evaluate, Feed, Feeds

MOST_BYTES = 1 << 27


class KeptOutputs:
    """(feed, outputs of ``graph`` on it) for each of ``feeds``; the graph may not change meanwhile.

    Outputs of the first feeds are kept for the next time, MOST_BYTES of them; others are computed each time.
    """

    def __init__(self, graph: Graph, feeds: Feeds, evaluate: Evaluate) -> None:
        self._graph, self._feeds, self._evaluate = graph, feeds, evaluate
        self._kept: dict[int, Mapping[str, Any]] = {}
        self._bytes = 0

    def __iter__(self) -> Iterator[tuple[Feed, Mapping[str, Any]]]:
        for i, feed in enumerate(self._feeds):
            found = self._kept.get(i)
            if found is None:
                found = self._evaluate(self._graph, feed)
                self._keep(i, found)
            yield feed, found

    def _keep(self, i: int, outputs: Mapping[str, Any]) -> None:
        size = sum(getattr(array, "nbytes", 0) for array in outputs.values())
        if self._bytes + size <= MOST_BYTES:
            self._kept[i] = outputs
            self._bytes += size
