"""Fidelity of graphs and built models: their outputs against a reference, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from tersor.errors import TersorError
from tersor.ir import Graph
from tersor.numerics.fidelity import Fidelity, OutputFidelity, Tally
from tersor.pipeline.rewriting import Evaluate, Feeds
from tersor.statistics.kept_outputs import KeptOutputs
from tersor.statistics.padding import padding_of
from tersor.statistics.scores import Score, rounded, scores_of, unordered_axis, with_scores
from tersor.statistics.thinning import sample_count

Arrays = Mapping[str, Any]
Run = Callable[[Mapping[str, np.ndarray]], Arrays]


@dataclass
class Judge:
    """Compares graphs with a reference graph, on the same feeds, in the reference runtime.

    Attributes:
        reference: the graph to compare with; must not change meanwhile.
        feeds: batches of inputs.
        evaluate: runs a graph on one of them.
        on: a description of the feeds.
        named_by: the graph as imported: scores get the names they have there.
    """

    reference: Graph
    feeds: Feeds
    evaluate: Evaluate
    on: str = "calibration inputs"
    named_by: Graph | None = None

    def __call__(self, graph: Graph) -> Fidelity:
        """Fidelity of all outputs of ``graph``, and of the scores that decide them."""
        copy, _ = _with_scores(graph)
        tally = Tally(self._reading.unordered)
        for feed, wanted in self._wanted:
            actual = self.evaluate(copy, feed)
            # Scores that only one of the graphs has are left out.
            names = [name for name in wanted if name in actual or name not in self._scores]
            self._add(tally, feed, {name: wanted[name] for name in names}, actual)
        return self._fidelity([self._named(one) for one in tally.outputs()])

    def of_built(self, before: Run, after: Run, graph: Fidelity | None) -> Fidelity:
        """Fidelity of the outputs of the built model ``after`` against those of ``before``, plus the scores
        of the graph that it was built from, if known and if passes changed them: where they did not, "no
        error" in the row of a score would contradict what the runtime's kernels changed."""
        tally = Tally(self._reading.unordered)
        for feed in self.feeds:
            self._add(tally, feed, before(feed), after(feed))
        scores = (
            [o for o in graph.outputs if o.decides and o.max_error] if graph is not None else []
        )
        return self._fidelity([*map(self._named, tally.outputs()), *scores])

    def _add(
        self, tally: Tally, feed: Mapping[str, np.ndarray], wanted: Arrays, actual: Arrays
    ) -> None:
        tally.add(self._reading.real(wanted, feed), self._reading.real(actual, feed))

    def _fidelity(self, outputs: Iterable[OutputFidelity]) -> Fidelity:
        return Fidelity.of(outputs, self.on, sample_count(self.reference, self.feeds))

    def _named(self, one: OutputFidelity) -> OutputFidelity:
        score = self._scores.get(one.name)
        if score is None:
            by_scores = one.name in self._reading.rounded or (one.reshaped and self._scores)
            return replace(one, counts=not by_scores)
        name = self._names.get(score.key, score.value.name)
        return replace(one, name=name, decides=score.decides)

    @cached_property
    def _wanted(self) -> KeptOutputs:
        return KeptOutputs(self._tapped[0], self.feeds, self.evaluate)

    @cached_property
    def _tapped(self) -> tuple[Graph, dict[str, Score]]:
        return _with_scores(self.reference)

    @cached_property
    def _names(self) -> dict[tuple[str, str, int], str]:
        scores = scores_of(self.named_by) if self.named_by is not None else []
        return {score.key: score.value.name for score in scores}

    @property
    def _scores(self) -> dict[str, Score]:
        return self._tapped[1]

    @cached_property
    def _reading(self) -> Reading:
        return Reading.of(self._tapped[0])


def lowest(judges: Sequence[Judge]) -> Callable[[Graph], float | None]:
    """The share that a graph keeps by the strictest of ``judges``; None if unknown: the graph draws random
    numbers, or the reference runtime cannot run it."""

    def kept(graph: Graph) -> float | None:
        if not judges or is_random(graph):
            return None
        try:
            shares = [judge(graph).kept for judge in judges]
        except TersorError:
            return None
        return min((share for share in shares if share is not None), default=None)

    return kept


def is_random(graph: Graph) -> bool:
    """Whether the outputs differ from run to run."""
    from tersor.ops import TABLE  # Loads onnx, which `tersor --help` does without.

    return any(row and not row.deterministic for row in (TABLE.get(n.op) for n in graph.walk()))


@dataclass(frozen=True)
class Reading:
    """How to read the outputs of a graph, by name.

    Attributes:
        padding: the input that masks padding positions.
        unordered: the axis along which order is meaningless.
        rounded: integers that are quantities, not labels.
    """

    padding: Mapping[str, str]
    unordered: Mapping[str, int]
    rounded: frozenset[str]

    @staticmethod
    def of(graph: Graph) -> Reading:
        named = list(zip(graph.output_names, graph.outputs, strict=True))
        axes = {name: axis for name, v in named if (axis := unordered_axis(v)) is not None}
        # Removing padding would change the axes.
        masks = {name: padding_of(graph, v) for name, v in named if name not in axes}
        return Reading(
            {name: mask for name, mask in masks.items() if mask is not None},
            axes,
            frozenset(name for name, value in named if rounded(value)),
        )

    def real(self, outputs: Arrays, feed: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Outputs without padding positions, as rows."""
        return {
            name: _without_padding(value, feed[self.padding[name]])
            if name in self.padding and isinstance(value, np.ndarray)
            else value
            for name, value in outputs.items()
        }


def _unchanged(one: OutputFidelity) -> bool:
    return one.max_error == 0 and not one.misplaced and not one.reshaped


def _with_scores(graph: Graph) -> tuple[Graph, dict[str, Score]]:
    """As :func:`with_scores`; the graph itself if it already returns all scores: its session may be open."""
    copy, added = with_scores(graph)
    return (copy if added else graph), added


def _without_padding(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    if array.shape[: mask.ndim] != mask.shape:
        mask = mask.reshape(-1)
    if array.shape[: mask.ndim] != mask.shape or not mask.any():
        return array
    return np.asarray(array[mask != 0])
