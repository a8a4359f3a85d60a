"""Statistics of activations on calibration inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tersor.ir import Graph, Value
from tersor.numerics.affine import Range
from tersor.pipeline import Evaluate, Feeds, erase_unread

ROWS = 2048  # Rows kept of each activation: enough to rank scales, small enough for any model.
TAPS = 16  # Activations read in one run of the graph, to bound the memory that one run takes.


@dataclass
class Activation:
    """What was seen of one float tensor, taken as rows of its last axis.

    Attributes:
        channel_low, channel_high: f32[k], extremes of each channel over everything seen.
        rows: f32[n, k], an even sample of at most ROWS rows.
    """

    channel_low: np.ndarray
    channel_high: np.ndarray
    rows: np.ndarray

    @property
    def channel_amax(self) -> np.ndarray:
        """f32[k], largest magnitude of each channel."""
        return np.asarray(np.maximum(np.abs(self.channel_low), np.abs(self.channel_high)))

    def range(self, scale: np.ndarray | float = 1.0, *, per_token: bool = False) -> Range:
        """(Lowest, highest) value of the tensor, or of each of ``rows``, once its channels are divided
        by ``scale``."""
        if per_token:
            rows = self.rows / scale
            return rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
        return float((self.channel_low / scale).min()), float((self.channel_high / scale).max())


def collect(
    graph: Graph, values: Sequence[Value], feeds: Feeds, evaluate: Evaluate
) -> dict[Value, Activation]:
    """Runs ``graph`` on ``feeds`` and observes ``values``, float tensors of its outermost level. Rows
    that hold NaN or infinity are left out where there are others, and so are values that no feed has a row
    of."""
    unique = list(dict.fromkeys(values))
    found: dict[Value, Activation] = {}
    for start in range(0, len(unique), TAPS):
        group = unique[start : start + TAPS]
        tapped = tap(graph, group)
        seen: dict[str, list[np.ndarray]] = {v.name: [] for v in group}
        for feed in feeds:
            outputs = evaluate(tapped, feed)
            for value in group:
                rows = np.asarray(outputs[value.name], np.float32)
                seen[value.name].append(rows.reshape(-1, rows.shape[-1]))
        for value in group:
            observed = _observe(seen[value.name])
            if observed is not None:
                found[value] = observed
    return found


def tap(graph: Graph, values: Sequence[Value]) -> Graph:
    """A copy that returns ``values`` in place of its outputs, and has no more than they need."""
    copy = graph.copy()
    by_name = {v.name: v for v in copy.values()}
    copy.set_outputs([by_name[v.name] for v in values], [v.name for v in values])
    erase_unread(copy)
    return copy


def _observe(batches: Sequence[np.ndarray]) -> Activation | None:
    rows = np.concatenate(batches) if batches else np.empty((0, 0), np.float32)
    finite = np.isfinite(rows).all(axis=1)
    rows = rows[finite] if finite.any() and not finite.all() else rows
    if not rows.size:
        return None
    keep = np.linspace(0, len(rows) - 1, min(len(rows), ROWS)).astype(np.int64)
    return Activation(rows.min(axis=0), rows.max(axis=0), rows[keep])
