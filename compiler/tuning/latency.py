"""How long a graph takes in a runtime, for passes that want to know what pays before they rewrite.

A pass is no judge of single microseconds: what is measured here is a few layers alone, in a process of
their own, and :func:`tersor.compile` measures the whole result against the input again.
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
_DIGEST = re.compile(r"#[0-9a-f]{16}")  # Of a constant's numbers, on which no time depends.


@dataclass
class Stopwatch:
    """Measures graphs as a backend builds them by ``choice``; what was measured once is known.

    Attributes:
        backend: the backend package of ``runtime``.
        choice: how it lowers and runs.
        cases: the model's inputs that count.
    """

    backend: Backend
    runtime: str
    choice: Choice
    cases: Sequence[Case]
    _known: dict[tuple[object, ...], float] = field(default_factory=dict)

    @property
    def sizes(self) -> list[Sizes]:
        """Sizes of the model's open dims that count."""
        return [case.sizes for case in self.cases]

    def feed(self, graph: Graph, sizes: Sizes) -> Mapping[str, np.ndarray]:
        """The inputs of the model, and so of ``graph``, that have one of ``sizes``."""
        return next(case.feed for case in self.cases if case.sizes == sizes)

    def __call__(self, graph: Graph, feed: Mapping[str, np.ndarray]) -> float:
        """Milliseconds of one run of ``graph`` on ``feed``: the least of RUNS, as what else goes on in
        a machine only adds to it.

        Raises:
            InvalidModel, Unsupported: the runtime does not take the graph.
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
