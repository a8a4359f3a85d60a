"""The latency of a graph in a runtime, for passes that measure before they rewrite.

These are rough: a few layers in isolation, in their own process. :func:`tersor.compile` measures the whole
result against the input afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tersor.analysis.feeds import Sizes
from tersor.backend import Backend, Choice
from tersor.ir import Graph, print_graph
from tersor.tuning.cases import Case
from tersor.tuning.measure import Bench

RUNS = 20
_DIGEST = re.compile(r"#[0-9a-f]{16}")  # Of a constant's values, on which no time depends.


@dataclass
class Stopwatch:
    """Measures graphs that a backend builds under ``choice``; caches results.

    Attributes:
        backend: the backend package of ``runtime``.
        choice: how it lowers and runs.
        cases: the inputs that the model is measured on.
    """

    backend: Backend
    runtime: str
    choice: Choice
    cases: Sequence[Case]
    _known: dict[tuple[object, ...], float] = field(default_factory=dict)

    @property
    def sizes(self) -> list[Sizes]:
        """Sizes of the model's dynamic dims to measure at."""
        return [case.sizes for case in self.cases]

    def feed(self, graph: Graph, sizes: Sizes) -> Mapping[str, np.ndarray]:
        """The model's inputs, and so those of ``graph``, of given ``sizes``."""
        return next(case.feed for case in self.cases if case.sizes == sizes)

    def __call__(self, graph: Graph, feed: Mapping[str, np.ndarray]) -> float:
        """Milliseconds of one run of ``graph`` on ``feed``: the minimum of RUNS, since noise only adds.

        Raises:
            InvalidModel, Unsupported: the runtime rejects the graph.
        """
        shapes = tuple((name, v.shape, v.dtype.str) for name, v in sorted(feed.items()))
        key = (_DIGEST.sub("", print_graph(graph)), shapes)
        if key not in self._known:
            self._known[key] = self._measure(graph, feed)
        return self._known[key]

    def _measure(self, graph: Graph, feed: Mapping[str, np.ndarray]) -> float:
        built = self.backend.build(graph, self.choice)
        with Bench([feed]) as bench:
            worker = bench.start(self.runtime, built, self.choice.to_json())
            return min(worker.milliseconds(0) for _ in range(RUNS))
