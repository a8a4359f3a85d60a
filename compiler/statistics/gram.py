"""Second moments of activations on calibration inputs, padding left out.

    G = sum of x x^T,   s = sum of x,   n = number of rows,    x: rows of the activation's last axis, or
                                                               patches of its channels under a window

These suffice for least squares, whitening and second-order criteria of a linear layer:

    sum of |x W - x V|^2  =  trace((W - V)^T G (W - V))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tersor.ir import Graph, Value
from tersor.pipeline import Evaluate, Feeds
from tersor.pipeline.report import FEW_ROWS, PassReport, Remark
from tersor.statistics.observers import Observer
from tersor.statistics.observing import Rows, observe

ENOUGH = 2  # Rows needed per input of a layer that is fitted on them.


@dataclass
class Gram:
    """Second moments of an activation of ``k`` channels.

    Attributes:
        xtx: f64[k, k], sum of the rows' outer products.
        total: f64[k], sum of the rows.
        rows: their number.
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


class SecondMoments(Observer[Gram]):
    """A :class:`Gram` of all rows. NaN propagates."""

    def __init__(self) -> None:
        self._gram: Gram | None = None

    def _add(self, rows: np.ndarray) -> None:
        if self._gram is None:
            k = rows.shape[1]
            self._gram = Gram(np.zeros((k, k)), np.zeros(k), 0)
        wide = rows.astype(np.float64)
        self._gram.xtx += wide.T @ wide
        self._gram.total += wide.sum(axis=0)
        self._gram.rows += len(rows)

    @property
    def result(self) -> Gram | None:
        return self._gram


def report_few_rows(seen: Iterable[tuple[int, int]], report: PassReport) -> None:
    """Adds a remark if layers, (rows, inputs) of each, were fitted on too few rows."""
    short = [(ENOUGH * inputs / rows, rows, inputs) for rows, inputs in seen if rows]
    factor, rows, inputs = max(short, default=(0.0, 0, 0))
    if factor <= 1:
        return
    why = (
        f"{rows:,} for a layer of {inputs:,} inputs, where {ENOUGH * inputs:,} would "
        f"do, {factor:.2g} times the calibration inputs that were given"
    )
    report.notes.append(Remark(why, method=FEW_ROWS))


def grams(
    graph: Graph, values: Sequence[Value], feeds: Feeds, evaluate: Evaluate
) -> dict[Value, Gram]:
    """Runs ``graph`` on ``feeds`` and accumulates second moments of ``values``, float tensors outside
    subgraphs."""
    by_rows = grams_of_rows(graph, [Rows(v) for v in values], feeds, evaluate)
    return {rows.value: gram for rows, gram in by_rows.items()}


def grams_of_rows(
    graph: Graph, wanted: Sequence[Rows], feeds: Feeds, evaluate: Evaluate
) -> dict[Rows, Gram]:
    """Runs ``graph`` on ``feeds`` and accumulates second moments of rows outside subgraphs."""
    observers = {rows: SecondMoments() for rows in wanted}
    observe(graph, {rows: [one] for rows, one in observers.items()}, feeds, evaluate)
    return {rows: one.result for rows, one in observers.items() if one.result is not None}
