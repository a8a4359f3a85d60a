"""Chooses among the ways to build and run a graph, by measuring each against the best so far.

One setting at a time (coordinate descent): settings of a runtime interact little, and a pass over
the axes costs their sum where all combinations would cost their product.  Ctrl-C ends the search and
keeps the best so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tersor.built import Built
from tersor.errors import TersorError
from tersor.ir import Graph
from tersor.numerics.fidelity import fidelity
from tersor.tuning.measure import Bench, Paired, Worker, compare

SEARCH_PAIRS = 24
# Ways to build one graph differ by rounding, which int8 amplifies; below this cosine a runtime's kernel
# does something else.
AGREEMENT = 0.99
HOPELESS = 0.9  # So slow on one feed by three quarters of the pairs: the other feeds are not asked.
# A smaller gain is not worth leaving what is known to work, nor the time to be sure of it: what is chosen
# would be another from run to run.
MIN_GAIN = 1.03
Progress = Callable[[int, int, str], None]


@dataclass
class Candidate:
    """A way to build and run the model, and the process that runs it."""

    variant: str
    graph: Graph
    choice: Any
    model: Built
    worker: Worker

    @property
    def label(self) -> str:
        """The variant, and what of its choice differs from the defaults."""
        return _label(self.variant, self.choice)


def search(
    backend: Any,
    runtime: str,
    variants: Mapping[str, Graph],
    bench: Bench,
    feeds: Sequence[int],
    *,
    choice: Any,
    progress: Progress,
    record: Callable[[str, list[Paired] | str], None],
) -> Candidate:
    """The best found.

    Args:
        backend: a module of ``tersor.backends``.
        runtime: its name.
        variants: graphs that mean the same, by name; the first is where the search starts.
        bench: where workers run.
        feeds: which of the bench's feeds count, each as much as the others.
        choice: where the search starts; the settings of the backend's axes change from there.
        progress: called with (done, total, what).
        record: called for each measured challenger with its results against the best so far, in the
            order of ``feeds``, or with why there are none.
    """
    (first, start), *others = variants.items()
    best = _build(backend, runtime, bench, first, start, choice)
    steps: list[tuple[str, Graph | None, dict[str, Any]]] = []
    steps += [(name, graph, {}) for name, graph in others]
    steps += [("", None, {axis: v}) for axis, vs in backend.axes(start, choice) for v in vs]
    began = time.monotonic()
    for i, (name, graph, change) in enumerate(steps):
        changed = best.choice.but(**change)
        label = _label(name or best.variant, changed)
        progress(i, len(steps), f"measuring {label}{_left(began, i, len(steps))}")
        try:
            best = _duel(backend, runtime, bench, feeds, best, (name, graph, changed), record)
        except KeyboardInterrupt:
            record(label, "interrupted: the best so far is kept")
            # Its pipe may hold the answer to a question that nobody waits for any more.
            best.worker.stop()
            best.worker = bench.start(runtime, best.model, best.choice.to_json())
            break
    return best


def _duel(
    backend: Any,
    runtime: str,
    bench: Bench,
    feeds: Sequence[int],
    best: Candidate,
    step: tuple[str, Graph | None, Any],
    record: Callable[[str, list[Paired] | str], None],
) -> Candidate:
    """The better of the best so far and of the challenger that ``step`` (variant, its graph, choice)
    describes; where the step names no variant, the best's."""
    name, graph, choice = step
    label = _label(name or best.variant, choice)
    try:
        challenger = _build(
            backend, runtime, bench, name or best.variant, graph or best.graph, choice, best
        )
    except TersorError as error:
        record(label, str(error))
        return best
    if (agreement := _agreement(best.worker, challenger.worker, feeds[0])) < AGREEMENT:
        record(label, f"its outputs are others: worst cosine {agreement:.3f}")
        challenger.worker.stop()
        return best
    results: list[Paired] = []
    for feed in feeds:
        results.append(compare(best.worker, challenger.worker, feed, SEARCH_PAIRS, _settled))
        if results[-1].high < HOPELESS:
            break
    record(label, results)
    won = len(results) == len(feeds) and results[-1].high >= HOPELESS and is_gain(results)
    winner, loser = (challenger, best) if won else (best, challenger)
    loser.worker.stop()
    return winner


def _agreement(a: Worker, b: Worker, feed: int) -> float:
    """The worst cosine between the rows of two systems' float outputs; 1 where there are none."""
    worst = fidelity([a.outputs(feed)], [b.outputs(feed)]).min_cosine
    return 1.0 if worst is None else worst


def is_gain(results: Sequence[Paired]) -> bool:
    """Whether the challenger is faster over all feeds, and so plainly that it is not the weather: by
    the geometric mean of the lower quartiles too."""
    gain = float(np.exp(np.mean([np.log(r.speedup) for r in results])))
    surely = float(np.exp(np.mean([np.log(r.low) for r in results])))
    return gain > MIN_GAIN and surely > 1.0


def _settled(so_far: Paired) -> bool:
    """Whether it is plain what a feed says for or against a challenger."""
    return so_far.differs_from(MIN_GAIN)


def _left(began: float, done: int, total: int) -> str:
    """How long what is left takes, by what was done."""
    if not done:
        return ""
    return f" (about {(time.monotonic() - began) / done * (total - done):.0f} s to go)"


def _build(
    backend: Any,
    runtime: str,
    bench: Bench,
    name: str,
    graph: Graph,
    choice: Any,
    like: Candidate | None = None,
) -> Candidate:
    """``like``: a candidate that may be the same model, run in another way."""
    if like is not None and graph is like.graph and choice.built_by == like.choice.built_by:
        model = like.model
    else:
        model = backend.build(graph, choice)
    worker = bench.start(runtime, model, choice.to_json())
    return Candidate(name, graph, choice, model, worker)


def _label(variant: str, choice: Any) -> str:
    return variant if choice.label == "default" else f"{variant} {choice.label}"
