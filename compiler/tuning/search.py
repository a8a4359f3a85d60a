"""Chooses among the ways to build and run a graph, by measuring each against the best so far.

One setting at a time (coordinate descent): settings of a runtime interact little, and a pass over
the axes costs their sum where all combinations would cost their product.  Ctrl-C ends the search and
keeps the best so far.
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
from tersor.tuning.duel import duel, has_won, is_plain
from tersor.tuning.measure import Bench, Paired, Worker
from tersor.tuning.reuse import Known

SEARCH_PAIRS = 60
# Ways to build one graph differ by rounding, which int8 amplifies; below this cosine a runtime's kernel
# does something else.
AGREEMENT = 0.99
Progress = Callable[[int, int, str], None]
# (candidate, how it compares with the best so far on each feed, or why it is not compared; whether that was
# known before).
Record = Callable[[str, list[Paired] | str, bool], None]


@dataclass(frozen=True)
class Way:
    """A way to build and run the model."""

    variant: str
    graph: Graph
    choice: Choice

    @property
    def label(self) -> str:
        """The variant, and what of its choice differs from the defaults."""
        return (
            self.variant
            if self.choice.label == "default"
            else f"{self.variant} {self.choice.label}"
        )


@dataclass
class Candidate:
    """A way to build the model, what was built, the process that runs it, and constants that were decoded."""

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
        feeds: which of the bench's feeds count, each as much as the others.
        progress: called with (done, total, what).
        record: called for each challenger.
        known: what was measured before, if any of it is to be used.
    """

    backend: Backend
    runtime: str
    bench: Bench
    feeds: Sequence[int]
    progress: Progress
    record: Record
    known: Known | None = None
    _built: Candidate | None = None  # The best so far, once it was needed.

    def __call__(self, variants: Mapping[str, Graph], choice: Choice) -> Candidate:
        """The best found.

        Args:
            variants: graphs that mean the same, by name; the first is where the search starts.
            choice: where the search starts; the settings of the backend's axes change from there.
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
            way = Way(name or best.variant, graph or best.graph, best.choice.but(**change))
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
        """The better of both. ``known``: how they compare, where it only has to be seen that they agree."""
        holder = self._candidate(best)
        try:
            challenger = self._build(way, holder)
        except TersorError as error:
            self.record(way.label, str(error), False)
            return best
        if (agreement := _agreement(holder.worker, challenger.worker, self.feeds[0])) < AGREEMENT:
            self.record(way.label, f"its outputs are others: worst cosine {agreement:.3f}", False)
            self.bench.release(challenger.worker)
            return best
        results = known or duel(holder.worker, challenger.worker, self.feeds, SEARCH_PAIRS)
        self.record(way.label, results, known is not None)
        if known is None:
            self._keep(best, way, results)
        won = has_won(results, len(self.feeds))
        self._built, loser = (challenger, holder) if won else (holder, challenger)
        self.bench.release(loser.worker)
        return self._built.way

    def _keep(self, best: Way, way: Way, results: Sequence[Paired]) -> None:
        """For the next time, unless it is a tie in the noise of a busy hour."""
        if self.known is not None and (is_plain(results) or len(results) < len(self.feeds)):
            self.known.put((best.graph, best.choice), (way.graph, way.choice), results)

    def _candidate(self, way: Way) -> Candidate:
        """The best so far, which is built when it is needed first."""
        if self._built is None or self._built.way is not way:
            self._built = self._build(way)
        return self._built

    def _build(self, way: Way, like: Candidate | None = None) -> Candidate:
        """``like``: what may be the same model, run in another way."""
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
        """The best's pipe may hold the answer to a question that nobody waits for any more."""
        if self._built is not None:
            way, model, decoded = self._built.way, self._built.model, self._built.decoded
            self._built.worker.stop()
            worker = self.bench.start(self.runtime, model, way.choice.to_json())
            self._built = Candidate(way, model, worker, decoded)


def _agreement(a: Worker, b: Worker, feed: int) -> float:
    """The worst cosine between the rows of two systems' float outputs; 1 where there are none."""
    worst = fidelity([a.outputs(feed)], [b.outputs(feed)]).min_cosine
    return 1.0 if worst is None else worst


def time_left(began: float, done: int, total: int) -> str:
    """How long what is left takes, by what was done."""
    if not done:
        return ""
    return f" (about {(time.monotonic() - began) / done * (total - done):.0f} s to go)"
