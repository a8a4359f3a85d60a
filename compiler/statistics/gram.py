"""Second moments of activations on calibration inputs, padding left out.

    G = sum of x x^T,   s = sum of x,   n = number of rows,    x: rows of the activation's last axis, or
                                                               what a window sees of its channels

Least squares, whitening and second-order criteria need no more of a linear layer's input than that:

    sum of |x W - x V|^2  =  trace((W - V)^T G (W - V))
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import dims
from tersor.ir import Graph, Value
from tersor.ops import Window
from tersor.pipeline import Evaluate, Feeds
from tersor.pipeline.report import FEW_ROWS, PassReport
from tersor.statistics.calibration import TAPS, tap
from tersor.statistics.padding import mask_over, padding_mask

ENOUGH = 2  # Rows for each input of a layer that is fitted on them.
# Windows of one feed that are looked at: patches of more are as large as many models.
WINDOWS = 4096


@dataclass
class Gram:
    """Second moments of an activation of ``k`` channels.

    Attributes:
        xtx: f64[k, k], sum of the rows' outer products.
        total: f64[k], sum of the rows.
        rows: how many.
    """

    xtx: np.ndarray
    total: np.ndarray
    rows: int

    @property
    def mean(self) -> np.ndarray:
        """f64[k], mean row."""
        return np.asarray(self.total / max(self.rows, 1))

    @property
    def norm(self) -> np.ndarray:
        """f64[k], L2 norm of each channel over all rows."""
        return np.asarray(np.sqrt(np.maximum(np.diagonal(self.xtx), 0)))


def tell_few_rows(seen: Iterable[tuple[int, int]], report: PassReport) -> None:
    """A remark where fits of layers, (rows, inputs) of each, go by too few rows."""
    short = [(ENOUGH * inputs / rows, rows, inputs) for rows, inputs in seen if rows]
    factor, rows, inputs = max(short, default=(0.0, 0, 0))
    if factor <= 1:
        return
    report.notes.append(
        f"{FEW_ROWS}: {rows:,} for a layer of {inputs:,} inputs, where {ENOUGH * inputs:,} would "
        f"do, {factor:.2g} times the calibration inputs that were given"
    )


@dataclass(frozen=True)
class Rows:
    """What a weight is multiplied with.

    Attributes:
        value: f32[..., k]; with a window f32[batch, channels, positions…].
        window: what it sees at a place is a row; None: rows are the last axis.
        part: of the value's axis 1, what is meant; None: all.
    """

    value: Value
    window: Window | None = None
    part: int | None = None

    def of(self, array: np.ndarray, feed: Mapping[str, np.ndarray], mask: str | None) -> np.ndarray:
        """f32[n, k], of the value's ``array``: the rows that the feed's ``mask`` says are no padding. Of
        more than WINDOWS windows as many are drawn, the same ones at each call."""
        if self.part is not None:
            array = array[:, self.part]
        if self.window is None:
            return real_rows(array, feed, mask)
        places = (len(array), *self.window.sizes(array.shape[2:]))
        count = math.prod(max(int(n), 0) for n in places)  # type: ignore[arg-type]
        real = None if mask is None else np.asarray(feed[mask]).reshape(-1)
        at = np.arange(count) if real is None or len(real) != count else np.flatnonzero(real)
        if len(at) > WINDOWS:
            at = np.sort(np.random.default_rng(0).choice(at, WINDOWS, replace=False))
        return self.window.patches(np.asarray(array, np.float32), at)

    def mask(self, graph: Graph) -> str | None:
        """The name of the input that tells which rows are padding, as :func:`padding_mask` does."""
        shape = dims(self.value)
        if self.window is None or not shape:
            return padding_mask(graph, self.value)
        return mask_over(graph, (shape[0], *self.window.sizes(shape[2:])))


def grams(
    graph: Graph, values: Sequence[Value], feeds: Feeds, evaluate: Evaluate
) -> dict[Value, Gram]:
    """Runs ``graph`` on ``feeds`` and sums up ``values``, float tensors of its outermost level."""
    found = grams_of_rows(graph, [Rows(v) for v in values], feeds, evaluate)
    return {rows.value: gram for rows, gram in found.items()}


def grams_of_rows(
    graph: Graph, wanted: Sequence[Rows], feeds: Feeds, evaluate: Evaluate
) -> dict[Rows, Gram]:
    """Runs ``graph`` on ``feeds`` and sums up rows of its outermost level."""
    found: dict[Rows, Gram] = {}
    for rows, array in _observed(graph, wanted, feeds, evaluate):
        wide = array.astype(np.float64)
        gram = found.get(rows)
        if gram is None:
            k = array.shape[1]
            gram = found[rows] = Gram(np.zeros((k, k)), np.zeros(k), 0)
        gram.xtx += wide.T @ wide
        gram.total += wide.sum(axis=0)
        gram.rows += len(array)
    return found


def observed_rows(
    graph: Graph, values: Sequence[Value], feeds: Feeds, evaluate: Evaluate
) -> Iterator[tuple[Value, np.ndarray]]:
    """(value, f32[n, k]) for each value and feed: its rows at positions that are no padding."""
    for rows, array in _observed(graph, [Rows(v) for v in values], feeds, evaluate):
        yield rows.value, array


def _observed(
    graph: Graph, wanted: Sequence[Rows], feeds: Feeds, evaluate: Evaluate
) -> Iterator[tuple[Rows, np.ndarray]]:
    unique = list(dict.fromkeys(wanted))
    for start in range(0, len(unique), TAPS):
        group = unique[start : start + TAPS]
        tapped = tap(graph, list(dict.fromkeys(rows.value for rows in group)))
        masks = {rows: rows.mask(graph) for rows in group}
        for feed in feeds:
            outputs = evaluate(tapped, feed)
            for rows in group:
                yield rows, rows.of(outputs[rows.value.name], feed, masks[rows])


def real_rows(array: np.ndarray, feed: Mapping[str, np.ndarray], mask: str | None) -> np.ndarray:
    """f32[n, k]: rows of ``array`` where the feed's ``mask`` is not zero; all where there is none."""
    rows = np.asarray(array, np.float32).reshape(-1, array.shape[-1])
    kept = np.asarray(feed[mask]).reshape(-1) if mask is not None else None
    return rows if kept is None or len(kept) != len(rows) else rows[kept != 0]
