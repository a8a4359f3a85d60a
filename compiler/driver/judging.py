"""What compression did to a model's outputs: on which inputs, against what, and whether that is enough."""

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
    """Compares graphs with one, on the same feeds, in the reference runtime.

    Attributes:
        reference: what a graph is compared with; it may not change meanwhile.
        feeds: batches of inputs.
        evaluate: runs a graph on one of them.
        on: what the feeds are.
        named_by: the graph as its user knows it: scores are called as they are there.
    """

    reference: Graph
    feeds: Feeds
    evaluate: Evaluate
    on: str = "calibration inputs"
    named_by: Graph | None = None

    def __call__(self, graph: Graph) -> Fidelity:
        """Of all outputs of ``graph``, and of the scores that decide them."""
        copy, _ = _with_scores(graph)
        tally = Tally(self._reading.unordered)
        for feed, wanted in self._wanted:
            found = self.evaluate(copy, feed)
            # Scores that only one of them has are left out.
            names = [name for name in wanted if name in found or name not in self._scores]
            self._add(tally, feed, {name: wanted[name] for name in names}, found)
        return self._told([self._named(one) for one in tally.outputs()])

    def of_built(self, before: Run, after: Run, graph: Fidelity | None) -> Fidelity:
        """Of the outputs of ``after``, as it was built, against those of ``before``, with the scores of the
        graph that it was built of, where these are known."""
        tally = Tally(self._reading.unordered)
        for feed in self.feeds:
            self._add(tally, feed, before(feed), after(feed))
        scores = [o for o in graph.outputs if o.decides] if graph is not None else []
        return self._told([*map(self._named, tally.outputs()), *scores])

    def _add(
        self, tally: Tally, feed: Mapping[str, np.ndarray], wanted: Arrays, found: Arrays
    ) -> None:
        tally.add(self._reading.real(wanted, feed), self._reading.real(found, feed))

    def _told(self, outputs: Iterable[OutputFidelity]) -> Fidelity:
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
    """What a graph keeps by the least content of ``judges``; None where none can tell: of a graph that draws
    random numbers, or that the reference runtime does not run."""

    def kept(graph: Graph) -> float | None:
        if not judges or is_random(graph):
            return None
        try:
            found = [judge(graph).kept for judge in judges]
        except TersorError:
            return None
        return min((k for k in found if k is not None), default=None)

    return kept


def is_random(graph: Graph) -> bool:
    """Whether it gives other outputs at each run."""
    from tersor.ops import TABLE  # Loads onnx, which `tersor --help` does without.

    return any(row and not row.deterministic for row in (TABLE.get(n.op) for n in graph.walk()))


@dataclass(frozen=True)
class Reading:
    """How the outputs of a graph are to be read, by their names.

    Attributes:
        padding: the input that says which positions are padding.
        unordered: the axis along which order says nothing.
        rounded: integers that are numbers, no choices.
    """

    padding: Mapping[str, str]
    unordered: Mapping[str, int]
    rounded: frozenset[str]

    @staticmethod
    def of(graph: Graph) -> Reading:
        named = list(zip(graph.output_names, graph.outputs, strict=True))
        axes = {name: axis for name, v in named if (axis := unordered_axis(v)) is not None}
        # What is left without padding has other axes.
        masks = {name: padding_of(graph, v) for name, v in named if name not in axes}
        return Reading(
            {name: mask for name, mask in masks.items() if mask is not None},
            axes,
            frozenset(name for name, value in named if rounded(value)),
        )

    def real(self, outputs: Arrays, feed: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Outputs without positions that are padding: these as rows."""
        return {
            name: _without_padding(value, feed[self.padding[name]])
            if name in self.padding and isinstance(value, np.ndarray)
            else value
            for name, value in outputs.items()
        }


def _with_scores(graph: Graph) -> tuple[Graph, dict[str, Score]]:
    """As :func:`with_scores`; the graph itself where it returns them all: its session may be open."""
    copy, added = with_scores(graph)
    return (copy if added else graph), added


def _without_padding(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    if array.shape[: mask.ndim] != mask.shape:
        mask = mask.reshape(-1)
    if array.shape[: mask.ndim] != mask.shape or not mask.any():
        return array
    return np.asarray(array[mask != 0])
