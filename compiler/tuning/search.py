"""Searches the ways to build and run a graph by measuring each against the best so far.

Coordinate descent, one setting at a time: settings of a runtime interact little, and the cost is the sum of
the axes instead of their product.  Ctrl-C ends the search and keeps the best so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tersor.backend import Backend, Choice
from tersor.built import Built
from tersor.errors import TersorError
from tersor.ir import Graph
from tersor.numerics.fidelity import fidelity
from tersor.pipeline.report import Decoded
from tersor.tuning.duel import duel, has_won, is_conclusive
from tersor.tuning.measure import Bench, Paired, Worker
from tersor.tuning.reuse import Known

SEARCH_PAIRS = 60
# Builds of one graph differ by rounding, which int8 amplifies; below this cosine a kernel is wrong.
AGREEMENT = 0.99
Progress = Callable[[int, int, str], None]
# (candidate, its comparison with the best so far on each feed or why there is none, whether it was reused)
Record = Callable[[str, list[Paired] | str, bool], None]


@dataclass(frozen=True)
class Way:
    """A way to build and run the model."""

    variant: str
    graph: Graph
    choice: Choice

    @property
    def label(self) -> str:
        """The variant, and the settings of its choice that differ from the defaults."""
        label = self.choice.label
        return self.variant if label == "default" else f"{self.variant} {label}"


@dataclass
class Candidate:
    """A way to build the model, the built model, its worker process, and the constants that were decoded."""

    way: Way
    model: Built
    worker: Worker
    decoded: list[Decoded]


@dataclass
class Search:
    """The search for the best way to build one model.

    Attributes:
        backend: a module of ``tersor.backends``.
        runtime: its name.
        bench: where workers run.
        feeds: the bench's feeds to measure on, weighted equally.
        progress: called with (done, total, what).
        record: called for each challenger.
        known: earlier results to reuse, or None.
    """

    backend: Backend
    runtime: str
    bench: Bench
    feeds: Sequence[int]
    progress: Progress
    record: Record
    known: Known | None = None
    _built: Candidate | None = None  # The best so far, built on first use.

    def __call__(self, variants: Mapping[str, Graph], choice: Choice) -> Candidate:
        """The best candidate.

        Args:
            variants: equivalent graphs by name; the search starts from the first.
            choice: the starting choice; the backend's axes are changed from there.
        """
        (first, start), *others = variants.items()
        best = Way(first, start, choice)
        steps: list[tuple[str, Graph | None, dict[str, object]]] = []
        steps += [(name, graph, {}) for name, graph in others]
        steps += [
            ("", None, {axis: v}) for axis, vs in self.backend.axes(start, choice) for v in vs
        ]
        began = time.monotonic()
        for i, (name, graph, change) in enumerate(steps):
            way = Way(name or best.variant, graph or best.graph, best.choice.replace(**change))
            self.progress(i, len(steps), f"measuring {way.label}{time_left(began, i, len(steps))}")
            try:
                best = self._better(best, way)
            except KeyboardInterrupt:
                self.record(way.label, "interrupted: the best so far is kept", False)
                self._restart()
                break
        return self._candidate(best)

    def _better(self, best: Way, way: Way) -> Way:
        """The better of the best so far and a challenger."""
        sides = (best.graph, best.choice), (way.graph, way.choice)
        results = self.known.get(*sides) if self.known is not None else None
        if results is not None and not has_won(results, len(self.feeds)):
            self.record(way.label, results, True)
            return best
        return self._measured(best, way, results)

    def _measured(self, best: Way, way: Way, known: list[Paired] | None) -> Way:
        """The better of both. ``known``: a reused comparison; then only their agreement is checked."""
        incumbent = self._candidate(best)
        try:
            challenger = self._build(way, incumbent)
        except TersorError as error:
            self.record(way.label, str(error), False)
            return best
        agreement = _agreement(incumbent.worker, challenger.worker, self.feeds[0])
        if agreement < AGREEMENT:
            self.record(way.label, f"its outputs differ: worst cosine {agreement:.3f}", False)
            self.bench.release(challenger.worker)
            return best
        results = known or duel(incumbent.worker, challenger.worker, self.feeds, SEARCH_PAIRS)
        self.record(way.label, results, known is not None)
        if known is None:
            self._store(best, way, results)
        won = has_won(results, len(self.feeds))
        self._built, loser = (challenger, incumbent) if won else (incumbent, challenger)
        self.bench.release(loser.worker)
        return self._built.way

    def _store(self, best: Way, way: Way, results: Sequence[Paired]) -> None:
        """Stores a result for later searches, unless it is inconclusive."""
        if self.known is not None and (is_conclusive(results) or len(results) < len(self.feeds)):
            self.known.put((best.graph, best.choice), (way.graph, way.choice), results)

    def _candidate(self, way: Way) -> Candidate:
        """The best so far, built on first use."""
        if self._built is None or self._built.way is not way:
            self._built = self._build(way)
        return self._built

    def _build(self, way: Way, like: Candidate | None = None) -> Candidate:
        """``like``: a candidate whose built model is reused if only run-time settings differ."""
        self.bench.prepare(self.runtime)
        if (
            like is not None
            and way.graph is like.way.graph
            and way.choice.built_by == like.way.choice.built_by
        ):
            model, file, decoded = like.model, like.worker.model, like.decoded
        else:
            decoded, file = [], None
            model = self.backend.build(way.graph, way.choice, decoded)
        worker = self.bench.start(self.runtime, file or model, way.choice.to_json())
        return Candidate(way, model, worker, decoded)

    def _restart(self) -> None:
        """Restarts the best's worker: its pipe may contain the answer to an interrupted command."""
        if self._built is not None:
            way, model, decoded = self._built.way, self._built.model, self._built.decoded
            self._built.worker.stop()
            worker = self.bench.start(self.runtime, model, way.choice.to_json())
            self._built = Candidate(way, model, worker, decoded)


def _agreement(a: Worker, b: Worker, feed: int) -> float:
    """The worst cosine between rows of two systems' float outputs; 1 if there are none."""
    worst = fidelity([a.outputs(feed)], [b.outputs(feed)]).min_cosine
    return 1.0 if worst is None else worst


def time_left(began: float, done: int, total: int) -> str:
    """An estimate of the remaining time, for progress messages."""
    if not done:
        return ""
    return f" (about {(time.monotonic() - began) / done * (total - done):.0f} s to go)"
