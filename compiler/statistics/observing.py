"""Runs a graph on calibration inputs, once a batch for all that is to be observed of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.analysis.match import dims
from tersor.ir import Graph, Value, extract
from tersor.pipeline import Evaluate, Feeds
from tersor.statistics.observers import Observer, real_rows
from tersor.statistics.padding import mask_over, padding_mask

if TYPE_CHECKING:
    from tersor.ops import Window

TAPS = 16  # Activations read in one run of the graph, to bound the memory that one run takes.
# Windows of one feed that are looked at: patches of more are as large as many models.
WINDOWS = 4096


@dataclass(frozen=True)
class Rows:
    """What a weight is multiplied with.

    Attributes:
        value: f32[..., k]; with a window f32[batch, channels, positions…].
        window: what it sees at a place is a row; None: rows are the last axis.
        part: of the value's axis 1, what is meant; None: all.
        padding: whether rows that are padding count. A runtime computes with them all the same, and takes
            the range of a tensor over them.
    """

    value: Value
    window: Window | None = None
    part: int | None = None
    padding: bool = False

    def of(self, array: np.ndarray, feed: Mapping[str, np.ndarray], mask: str | None) -> np.ndarray:
        """f32[n, k], of the value's ``array``: the rows that the feed's ``mask`` says are no padding. Of
        more than WINDOWS windows as many are drawn, the same ones at each call."""
        if self.part is not None:
            array = array[:, self.part]
        real = None if mask is None else np.asarray(feed[mask]).reshape(-1)
        if self.window is None:
            return real_rows(array, real)
        places = (len(array), *self.window.sizes(array.shape[2:]))
        count = math.prod(max(int(n), 0) for n in places)  # type: ignore[arg-type]
        at = np.arange(count) if real is None or len(real) != count else np.flatnonzero(real)
        if len(at) > WINDOWS:
            at = np.sort(np.random.default_rng(0).choice(at, WINDOWS, replace=False))
        return self.window.patches(np.asarray(array, np.float32), at)

    def mask(self, graph: Graph) -> str | None:
        """The name of the input that tells which rows are padding, as :func:`padding_mask` does; None where
        all count."""
        if self.padding:
            return None
        shape = dims(self.value)
        if self.window is None or not shape:
            return padding_mask(graph, self.value)
        return mask_over(graph, (shape[0], *self.window.sizes(shape[2:])))


def observe(
    graph: Graph,
    wanted: Mapping[Rows, Sequence[Observer[Any]]],
    feeds: Feeds,
    evaluate: Evaluate,
) -> None:
    """Runs ``graph`` on ``feeds``, and gives rows of its outermost level to the observers that want them.

    Each batch is run once for up to TAPS values, and no more than one batch is in memory.
    """
    values = list(dict.fromkeys(rows.value for rows in wanted))
    for start in range(0, len(values), TAPS):
        tapped = extract(graph, None, values[start : start + TAPS])
        group = [rows for rows in wanted if rows.value in values[start : start + TAPS]]
        masks = {rows: rows.mask(graph) for rows in group}
        for feed in feeds:
            outputs = evaluate(tapped, feed)
            for rows in group:
                found = rows.of(outputs[rows.value.name], feed, masks[rows])
                for observer in wanted[rows]:
                    observer.update(found)
