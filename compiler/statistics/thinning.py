"""Subsets of calibration inputs: fewer samples of every batch where all would take too long (no batch is
dropped, because it may be the only one to reach a part of the model), and a held-out part that is not fitted
on. Subsets are taken lazily, one batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from tersor.analysis.match import dims
from tersor.errors import TersorError
from tersor.ir import Graph
from tersor.ir.dims import symbols
from tersor.pipeline.rewriting import Evaluate, Feed, Feeds

APART = 5  # One batch in this many is held out,
ENOUGH = 10  # if there are at least this many batches.
FEW = 4  # With fewer batches, one sample in this many.
Axes = Mapping[str, int]


@dataclass(frozen=True)
class Part:
    """Some of a source's batches, or some of their samples.

    Attributes:
        feeds: the source.
        of: (index, batch) -> the part of the batch to take; None: nothing.
        length: the number of batches of which something is taken.
    """

    feeds: Feeds
    of: Callable[[int, Feed], Feed | None]
    length: int

    def __iter__(self) -> Iterator[Feed]:
        taken = (self.of(i, feed) for i, feed in enumerate(self.feeds))
        return (feed for feed in taken if feed is not None)

    def __len__(self) -> int:
        return self.length


def thinned(graph: Graph, feeds: Feeds, most: int, evaluate: Evaluate) -> Feeds:
    """About ``most`` samples of ``feeds``, at least one of each batch, evenly spaced; ``feeds`` itself if it
    has no more, or if its samples cannot be distinguished."""
    axes = sample_axes(graph)
    counts = [_count(feed, axes) for feed in feeds]
    if not axes or sum(counts) <= most or max(counts) < 2:
        return feeds
    share = most / sum(counts)
    fewer = Part(
        feeds, lambda i, feed: _some(feed, axes, max(1, round(counts[i] * share))), len(counts)
    )
    return fewer if _runs(graph, islice(fewer, 1), evaluate) else feeds


def held_out(graph: Graph, feeds: Feeds, evaluate: Evaluate) -> tuple[Feeds, Feeds]:
    """(Inputs to fit on, inputs to judge by): every fifth batch is held out if there are enough; otherwise
    every fourth sample of each batch or, if batches cannot be divided, every fourth batch."""
    if len(feeds) >= ENOUGH:
        return _parted(feeds, APART)
    axes = sample_axes(graph)
    counts = [_count(feed, axes) for feed in feeds] if axes else []
    if max(counts, default=0) < FEW:
        return _parted(feeds, FEW)

    def part(feed: Feed, *, last: bool) -> Feed | None:
        at = np.arange(_count(feed, axes))
        if len(at) < FEW:
            return None if last else feed
        return _taken(feed, axes, at[(at % FEW == FEW - 1) == last])

    fitted = Part(feeds, lambda _, feed: part(feed, last=False), len(counts))
    apart = Part(feeds, lambda _, feed: part(feed, last=True), sum(n >= FEW for n in counts))
    return (fitted, apart) if _runs(graph, apart, evaluate) else _parted(feeds, FEW)


def _runs(graph: Graph, feeds: Iterable[Feed], evaluate: Evaluate) -> bool:
    """Whether the graph runs on them: a symbolic batch may be fixed inside, and states may name theirs
    differently."""
    try:
        for feed in feeds:
            evaluate(graph, feed)
    except TersorError:
        return False
    return True


def _parted(feeds: Feeds, one_of: int) -> tuple[Feeds, Feeds]:
    def apart(i: int) -> bool:
        return i % one_of == one_of - 1

    count = len(feeds) // one_of
    return (
        Part(feeds, lambda i, feed: None if apart(i) else feed, len(feeds) - count),
        Part(feeds, lambda i, feed: feed if apart(i) else None, count),
    )


def sample_axes(graph: Graph) -> Axes:
    """The batch axis of each input: axes whose dim is the first symbolic dim of the first input with axes."""
    first = next((dims(v) for v in graph.inputs if dims(v)), None)
    batch = symbols(first[0]) if first and first[0] is not None else frozenset()
    if len(batch) != 1:
        return {}
    return {
        v.name: axis
        for v in graph.inputs
        for axis, dim in enumerate(dims(v) or ())
        if dim is not None and symbols(dim) == batch
    }


def sample_count(graph: Graph, feeds: Feeds) -> int | None:
    """The number of samples; None if they cannot be distinguished."""
    axes = sample_axes(graph)
    return sum(_count(feed, axes) for feed in feeds) if axes else None


def _count(feed: Mapping[str, np.ndarray], axes: Axes) -> int:
    return min((np.shape(feed[name])[axis] for name, axis in axes.items()), default=1)


def _some(feed: Mapping[str, np.ndarray], axes: Axes, count: int) -> dict[str, np.ndarray]:
    have = _count(feed, axes)
    return _taken(feed, axes, np.linspace(0, have - 1, count).round().astype(int) if have else [])


def _taken(
    feed: Mapping[str, np.ndarray], axes: Axes, at: Sequence[int] | np.ndarray
) -> dict[str, np.ndarray]:
    which = np.asarray(at, np.int64)
    return {
        name: np.take(array, which, axis=axes[name]) if name in axes else array
        for name, array in feed.items()
    }
