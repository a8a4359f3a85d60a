"""Runs a graph on calibration inputs, once per batch for all observers."""

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

TAPS = 16  # Activations read in one run of the graph, to bound its memory.
# Patches sampled from one feed: more would take as much memory as many models.
WINDOWS = 4096


@dataclass(frozen=True)
class Rows:
    """The rows that a weight is multiplied with.

    Attributes:
        value: f32[..., k]; with a window f32[batch, channels, positions…].
        window: its patches are the rows; None: rows are the last axis.
        part: an index on the value's axis 1; None: all of it.
        padding: whether to include padding rows. Runtimes compute with them too, and take the range of a
            tensor over them.
    """

    value: Value
    window: Window | None = None
    part: int | None = None
    padding: bool = False

    def of(self, array: np.ndarray, feed: Mapping[str, np.ndarray], mask: str | None) -> np.ndarray:
        """f32[n, k], the rows of the value's ``array`` without padding, by the input ``mask`` of the feed. Of
        more than WINDOWS patches a sample is taken, the same in each call."""
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
        """The name of the input that marks padding rows (see :func:`padding_mask`); None if there is none, or
        padding is included."""
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
    """Runs ``graph`` on ``feeds``, and passes rows of values outside subgraphs to their observers.

    Each batch is run once per TAPS values, and only one batch is in memory at a time.
    """
    values = list(dict.fromkeys(rows.value for rows in wanted))
    for start in range(0, len(values), TAPS):
        tapped = extract(graph, None, values[start : start + TAPS])
        group = [rows for rows in wanted if rows.value in values[start : start + TAPS]]
        masks = {rows: rows.mask(graph) for rows in group}
        for feed in feeds:
            outputs = evaluate(tapped, feed)
            for rows in group:
                array = rows.of(outputs[rows.value.name], feed, masks[rows])
                for observer in wanted[rows]:
                    observer.update(array)
