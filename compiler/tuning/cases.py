"""The inputs that a compilation is measured on: real ones if there are any, else made-up ones on which the
model runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tersor.analysis.feeds import Sizes, batch_names, bound_sizes, default_sizes, make_feed
from tersor.errors import InvalidModel, InvalidOption
from tersor.ir import DType, Graph, TensorType
from tersor.pipeline.rewriting import Feed, Feeds
from tersor.tuning.trying import search_sizes

Run = Callable[
    [Feed], None
]  # Raises InvalidModel, with the reason, if the model does not run on a feed.
Maker = Callable[[Sizes], Feed]  # Makes inputs of given sizes; raises InvalidOption if it cannot.
ADVICE = "give real inputs by calibration or example_inputs, or sizes (--size)"


@dataclass(frozen=True)
class Case:
    """Inputs to measure on.

    Attributes:
        label: ``batch=8 sequence=128``.
        feed: arrays by input name.
        sizes: of the dynamic dims, as far as the inputs determine them.
    """

    label: str
    feed: Feed
    sizes: Sizes


@dataclass
class Cases:
    """The inputs to measure on, remarks for the report, and, if there are no inputs, why."""

    cases: list[Case] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    refusal: str = ""


def find_cases(
    graph: Graph,
    run: Run,
    *,
    sizes: Sequence[Sizes] | None = None,
    batches: Feeds = (),
    example: Feed | None = None,
) -> Cases:
    """Selects inputs on which the model runs.

    Args:
        graph: the model.
        run: tries a feed.
        sizes: of the dynamic dims, if the user gave them; no others are measured then.
        batches: real inputs; without ``sizes`` they are measured unchanged.
        example: real inputs of other sizes than those to measure at; their values are reused.
    """
    finder = _Finder(graph, run, next(iter(batches), example))
    if sizes is not None:
        return finder.at_sizes(sizes)
    if batches and (real := finder.real(batches)).cases:
        return real
    defaults = finder.at_defaults()
    if not defaults.cases and example is not None and (as_given := finder.real([example])).cases:
        return as_given
    return defaults


class _Finder:
    def __init__(self, graph: Graph, run: Run, lends: Feed | None) -> None:
        self.graph = graph
        self.run = run
        self.lends = lends

    def at_sizes(self, sizes: Sequence[Sizes]) -> Cases:
        found = Cases()
        for at in sizes:
            refusals = []
            for make in self.makers:
                refusals.append(self._refusal_at(make, at))
                if not refusals[-1]:
                    found.cases.append(self._case(make(at), at))
                    break
            else:
                found.refusal = refusals[0]
                found.remarks.append(f"not measured at {label(at)}: {found.refusal}")
        return found

    def real(self, batches: Feeds) -> Cases:
        """Real inputs: the batches of median and largest size, and a single sample of the largest."""
        found = Cases()
        for batch in _picked(batches):
            refusal = self._refusal(batch)
            if refusal:
                found.refusal = refusal
                continue
            found.cases.append(self._case(batch, bound_sizes(self.graph, batch)))
        if found.cases and (one := self._one_sample(found.cases[-1].feed)) is not None:
            found.cases.insert(0, self._case(one, bound_sizes(self.graph, one)))
        return found

    def at_defaults(self) -> Cases:
        """The default sizes, or the nearest at which the model runs. Zeros for integer inputs are a last
        resort, after other numbers have been tried at all sizes."""
        starts, found = default_sizes(self.graph), Cases()
        for make in self.makers:
            sizes, refusal = self._search(make, starts)
            found.refusal = found.refusal or refusal
            if not sizes:
                continue
            found.cases = [self._case(make(at), at) for at in sizes]
            if any(at not in starts for at in sizes):
                tried = ", ".join(map(label, sizes))
                found.remarks.append(
                    f"measured at the nearest sizes at which the model runs ({tried}): {ADVICE} for yours"
                )
            break
        return found

    def _search(self, make: Maker, starts: Sequence[Sizes]) -> tuple[list[dict[str, int]], str]:
        """(sizes at which the model runs on inputs by ``make``, the first refusal at one of ``starts``)."""
        sizes: list[dict[str, int]] = []
        reason = ""
        for start in starts:
            at, refusal = search_sizes(start, lambda at: self._refusal_at(make, at) or None)
            reason = reason or refusal
            if at is None and not sizes:
                break  # Larger sizes are no easier.
            if at is not None and at not in sizes:
                sizes.append(at)
        return sizes, reason

    @property
    def makers(self) -> list[Maker]:
        """Ways to make inputs of given sizes, the best first."""
        lent = [self._lent] if self.lends is not None else []
        integers = any(
            isinstance(v.type, TensorType) and v.type.dtype.is_integer for v in self.graph.inputs
        )
        return [*lent, self._made_up, *([self._zeros] if integers else [])]

    def _lent(self, at: Sizes) -> Feed:
        return make_feed(self.graph, at, real=self.lends)

    def _made_up(self, at: Sizes) -> Feed:
        return make_feed(self.graph, at)

    def _zeros(self, at: Sizes) -> Feed:
        feed = make_feed(self.graph, at)
        return {k: np.zeros_like(v) if v.dtype.kind in "iu" else v for k, v in feed.items()}

    def _refusal_at(self, make: Maker, at: Sizes) -> str:
        try:
            return self._refusal(make(at))
        except InvalidOption as error:
            return str(error)

    def _refusal(self, feed: Feed) -> str:
        try:
            self.run(feed)
        except InvalidModel as error:
            return str(error)
        return ""

    def _case(self, feed: Feed, at: Sizes) -> Case:
        types = [v.type for v in self.graph.inputs]
        if at or all(isinstance(t, TensorType) and t.is_static for t in types):
            return Case(label(at), feed, at)
        shapes = {k: "x".join(map(str, np.shape(v))) or "scalar" for k, v in feed.items()}
        return Case(label(shapes), feed, at)

    def _one_sample(self, batch: Feed) -> Feed | None:
        """The first sample of a batch, if the model runs on one alone."""
        have, first = bound_sizes(self.graph, batch), batch_names(self.graph)
        at = {name: 1 if name in first else size for name, size in have.items()}
        if at == have:
            return None
        one = make_feed(self.graph, at, real=batch)
        return one if not self._refusal(one) else None


def example_feed(graph: Graph, example: object) -> Feed | None:
    """Example inputs, in order or by name, as arrays by name; None if they do not match the inputs."""
    if isinstance(example, Mapping):
        given = dict(example)
    elif isinstance(example, (tuple, list)) and len(example) == len(graph.inputs):
        given = {v.name: a for v, a in zip(graph.inputs, example, strict=True)}
    else:
        return None
    if set(given) != {v.name for v in graph.inputs}:
        return None
    arrays = {k: np.asarray(v) for k, v in given.items()}
    for value in graph.inputs:
        array = arrays[value.name]
        try:
            type = TensorType(DType.of(array), array.shape)
        except TypeError:
            return None
        if not isinstance(value.type, TensorType) or not value.type.accepts(type):
            return None
    return arrays


def label(sizes: Mapping[str, object]) -> str:
    """``batch=8 sequence=128``."""
    return " ".join(f"{k}={v}" for k, v in sizes.items()) or "its only shape"


def _is_empty(batch: Feed) -> bool:
    """Whether a batch has no samples; other axes may be empty (the past of a cache)."""
    return any(np.shape(v)[:1] == (0,) for v in batch.values())


def _picked(batches: Feeds) -> list[Feed]:
    """The nonempty batches with the median and the largest number of elements."""
    sizes = [
        -1 if _is_empty(batch) else sum(np.asarray(v).size for v in batch.values())
        for batch in batches
    ]
    ordered = [i for i in np.argsort(sizes, kind="stable").tolist() if sizes[i] >= 0]
    if not ordered:
        return []
    places = ordered[len(ordered) // 2], ordered[-1]
    picked = {i: batch for i, batch in enumerate(batches) if i in places}
    middle, largest = (picked[i] for i in places)
    shapes = [{k: np.shape(v) for k, v in batch.items()} for batch in (middle, largest)]
    return [largest] if shapes[0] == shapes[1] else [middle, largest]
