"""What compression did to a model's outputs: on which inputs, against what, and whether that is enough."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from tersor.analysis.fidelity import Fidelity, OutputFidelity, Tally
from tersor.analysis.gram import padding_of
from tersor.analysis.scores import Score, rounded, unordered_axis, with_scores
from tersor.ir import Graph
from tersor.rewriting import Evaluate, Feeds

HELD_BYTES = 1 << 28  # Outputs of the reference that are kept for the next comparison.


@dataclass
class Judge:
    """Compares graphs with one, on the same feeds, in the reference runtime.

    Attributes:
        reference: what a graph is compared with; it may not change meanwhile.
        feeds: batches of inputs.
        evaluate: runs a graph on one of them.
        on: what the feeds are.
    """

    reference: Graph
    feeds: Feeds
    evaluate: Evaluate
    on: str = "calibration inputs"
    _wanted: dict[int, Mapping[str, np.ndarray]] = field(default_factory=dict, init=False)

    def __call__(self, graph: Graph) -> Fidelity:
        """Of all outputs of ``graph``, and of the scores that decide them."""
        copy, added = with_scores(graph)
        tally = self.tally()
        for i, feed in enumerate(self.feeds):
            self.add(tally, i, self.evaluate(copy, feed))
        return self.told(tally, set(added))

    def tally(self) -> Tally:
        """Nothing yet."""
        return Tally(self._reading.unordered)

    def add(self, tally: Tally, i: int, found: Mapping[str, Any]) -> None:
        """What came out of feed ``i``; names that the reference does not have are left out."""
        wanted = self._outputs(i)
        shared = [name for name in wanted if name in found or name not in self._scores]
        tally.add(
            self._reading.real({name: wanted[name] for name in shared}, self.feeds[i]),
            self._reading.real({name: found.get(name) for name in shared}, self.feeds[i]),
        )

    def told(self, tally: Tally, scores: Iterable[str]) -> Fidelity:
        """What a tally found. ``scores``: those that it has."""
        found = [self._named(one, set(scores)) for one in tally.outputs()]
        return Fidelity.of(found, self.on, samples(self.reference, self.feeds))

    def with_scores_of(self, outputs: Fidelity, graph: Fidelity) -> Fidelity:
        """Outputs of what was built, with the scores of the graph that it was built of."""
        scores = [o for o in graph.outputs if o.decides]
        hidden = {o.name for o in graph.outputs if not o.counts}
        own = [replace(o, counts=o.name not in hidden) for o in outputs.outputs]
        return Fidelity.of([*own, *scores], outputs.on, outputs.samples)

    def _named(self, one: OutputFidelity, scores: set[str]) -> OutputFidelity:
        score = self._scores.get(one.name)
        if score is not None:
            return replace(one, name=score.value.name, decides=score.decides)
        has_scores = any(self._scores[s].output == one.name for s in scores & self._scores.keys())
        return replace(one, counts=not (has_scores and one.name in self._reading.rounded))

    def _outputs(self, i: int) -> Mapping[str, np.ndarray]:
        """The reference's; the first ones are kept, as memory allows."""
        if i not in self._wanted:
            found = self.evaluate(self._tapped[0], self.feeds[i])
            if sum(map(_nbytes, [*self._wanted.values(), found])) > HELD_BYTES:
                return found
            self._wanted[i] = found
        return self._wanted[i]

    @cached_property
    def _tapped(self) -> tuple[Graph, dict[str, Score]]:
        return with_scores(self.reference)

    @property
    def _scores(self) -> dict[str, Score]:
        return self._tapped[1]

    @cached_property
    def _reading(self) -> Reading:
        return Reading.of(self._tapped[0])


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

    def real(self, outputs: Mapping[str, Any], feed: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Outputs without positions that are padding: these as rows."""
        return {
            name: _without_padding(value, feed[self.padding[name]])
            if name in self.padding and isinstance(value, np.ndarray)
            else value
            for name, value in outputs.items()
        }


def _without_padding(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    if array.shape[: mask.ndim] != mask.shape:
        mask = mask.reshape(-1)
    if array.shape[: mask.ndim] != mask.shape or not mask.any():
        return array
    return np.asarray(array[mask != 0])


def samples(graph: Graph, feeds: Feeds) -> int | None:
    """Of all feeds: sizes of the first axis of the graph's first input that has axes."""
    first = next((v.name for v in graph.inputs if np.ndim(feeds[0][v.name])), None) if feeds else None
    return sum(len(feed[first]) for feed in feeds) if first is not None else None


def _nbytes(outputs: Mapping[str, Any]) -> int:
    return sum(getattr(v, "nbytes", 0) for v in outputs.values())
