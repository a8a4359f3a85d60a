"""The pipeline that runs, verifies, times and reports passes (see :mod:`tersor.pipeline.rewriting`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tersor.backend import Supports
from tersor.errors import InvalidOption
from tersor.ir import Graph
from tersor.numerics.sums import Sums
from tersor.pipeline.report import PassReport
from tersor.pipeline.rewriting import (
    Context,
    Evaluate,
    Feeds,
    Latency,
    Pass,
    without_backend,
)
from tersor.pipeline.rounds import Repeat, Rounds, Step, passes_in
from tersor.pipeline.verification import LEVELS, Verification


@dataclass
class Pipeline:
    """A list of passes and groups of passes, run in order on a copy of the graph.

    Attributes:
        passes: in order.
        level: what is verified after each pass: ``none``; ``types``: structure and types; ``text``: also
            that the printed graph parses back; ``values``: also every claim to keep values, on ``feeds``.
        feeds: inputs for the ``values`` level.
        evaluate: runs a graph on inputs, for the ``values`` level and for passes that need it.
        supports, faster_sums: what the backend has kernels for.
        latency: measures graphs, for passes that measure before they rewrite; None if nothing is measured.
        progress: called with (done, total, what).
        excluded, memo: as in :class:`Context`.
        reports: a row for each pass; its runs in a group are merged.
        ran: the passes in the order in which they ran.
    """

    passes: Sequence[Step]
    level: str = "types"
    feeds: Feeds = ()
    evaluate: Evaluate | None = None
    target: Any = None
    calibration: Feeds = ()
    supports: Supports = without_backend
    faster_sums: Sequence[Sums] = ()
    latency: Latency | None = None
    progress: Callable[[int, int, str], None] = lambda done, total, what: None
    excluded: frozenset[str] = frozenset()
    memo: dict[str, Any] = field(default_factory=dict)
    reports: list[PassReport] = field(default_factory=list)
    ran: list[Pass] = field(default_factory=list, init=False)
    _given_bytes: int = field(default=0, init=False)

    def run(self, graph: Graph) -> Graph:
        """A rewritten copy of ``graph``; adds a row for each pass to ``reports``.

        Raises:
            InvalidOption: a pass needs something that was not given.
            PassFailed: a pass broke a claim; names the pass, the node and, if possible, the rewrite.
        """
        self._check()
        verification = Verification(self.level, self.feeds, self.evaluate, self._context)
        current = graph.copy()
        self._given_bytes = weight_bytes(graph)
        total = len(passes_in(self.passes))

        def run(step: Pass) -> PassReport:
            self.progress(len(self.reports), total, step.label)
            return self._run(step, current, verification)

        for step in self.passes:
            if isinstance(step, Repeat):
                Rounds(run, self.reports)(step)
            else:
                self.reports.append(run(step))
        self.progress(total, total, "done")
        return current

    def _run(self, step: Pass, graph: Graph, verification: Verification) -> PassReport:
        """Runs one pass on ``graph`` in place, and checks its claims."""
        # The unchanged graph is only needed to check claims about values.
        before = graph.copy() if self.level == "values" else graph
        signature = graph.signature()
        report = PassReport(step.label)
        start = time.perf_counter()
        step.run(graph, self._context(report))
        report.seconds = time.perf_counter() - start
        report.nodes = sum(1 for _ in graph.walk())
        report.weight_bytes = weight_bytes(graph)
        verification.check(step, signature, before, graph, report)
        self.ran.append(step)
        return report

    def _context(self, report: PassReport, rewrites_left: int | None = None) -> Context:
        return Context(
            report,
            self.target,
            self.calibration,
            self.evaluate,
            self.supports,
            self.latency,
            self.progress,
            self._given_bytes,
            rewrites_left,
            self.excluded,
            self.memo if len(self.passes) == 1 else {},
            self.faster_sums,
        )

    def _check(self) -> None:
        if self.level not in LEVELS:
            raise InvalidOption(
                f"no verification level {self.level!r}; there are {', '.join(LEVELS)}"
            )
        given = {"calibration": self.calibration, "evaluate": self.evaluate, "target": self.target}
        for step in passes_in(self.passes):
            for need in sorted(step.needs):
                if not given[need]:
                    raise InvalidOption(f"{step.label} needs {need}, and none was given")
        if self.level == "values" and not (self.feeds and self.evaluate):
            raise InvalidOption("verification of values needs inputs and a way to run the graph")


def weight_bytes(graph: Graph) -> int:
    """Bytes of all constants as encoded, subgraphs included; shared memory (a table and the view of it that a
    tied head reads) counts once."""
    sizes: dict[object, int] = {}
    for owner in graph.all_graphs():
        for value in owner.constants.values():
            if value.encoding is not None:
                sizes[value.encoding.place] = value.encoding.nbytes
    return sum(sizes.values())
