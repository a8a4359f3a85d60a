"""Second moments of the rows that layers multiply (see :mod:`tersor.statistics.products`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tersor.analysis.layers import WeightedLayer
from tersor.ir import Graph
from tersor.pipeline import Context
from tersor.statistics.gram import Gram, grams_of_rows
from tersor.statistics.observing import TAPS, Rows
from tersor.statistics.products import no_rows, rows_of


@dataclass(frozen=True)
class Observed:
    """A layer and the moments of the rows that its readers multiply.

    Attributes:
        gram: None if there are none; ``unseen`` is the reason.
    """

    layer: WeightedLayer
    gram: Gram | None
    unseen: str = ""


def observed(graph: Graph, layers: Sequence[WeightedLayer], context: Context) -> Iterator[Observed]:
    """Each of ``layers``, with the moments of all its readers added up.

    TAPS layers are observed in one run of the graph in its current state. Moments may be larger than the
    weights, so only those of one group of layers are in memory.
    """
    for start in range(0, len(layers), TAPS):
        group = {layer: _rows(layer) for layer in layers[start : start + TAPS]}
        seen: dict[Rows, Gram] = {}
        if context.calibration and context.evaluate is not None:
            wanted = [rows for own in group.values() for rows in own]
            seen = grams_of_rows(graph, wanted, context.calibration, context.evaluate)
        for layer, own in group.items():
            grams = [seen[rows] for rows in own if rows in seen]
            reason = _unseen(grams)
            yield Observed(layer, None if reason else _sum(grams), reason)


def unobservable(layer: WeightedLayer) -> str:
    """Why the rows of one of its readers cannot be observed; empty if all can be."""
    reasons = (no_rows(reader.node, reader.form) for reader in layer.readers)
    return next(filter(None, reasons), "")


def _rows(layer: WeightedLayer) -> list[Rows]:
    """The observable rows that its readers multiply, without duplicates."""
    readers = [r for r in layer.readers if not no_rows(r.node, r.form)]
    distinct = dict.fromkeys(rows_of(reader.node, reader.form) for reader in readers)
    return [rows for rows in distinct if not rows.value.is_constant]


def _unseen(grams: Sequence[Gram]) -> str:
    if not any(gram.rows for gram in grams):
        return "no calibration rows reach it"
    finite = all(np.isfinite(gram.xtx).all() for gram in grams)
    return "" if finite else "its inputs contain NaN or infinity on calibration data"


def _sum(grams: Sequence[Gram]) -> Gram:
    if len(grams) == 1:
        return grams[0]
    xtx = np.sum([gram.xtx for gram in grams], axis=0)
    total = np.sum([gram.total for gram in grams], axis=0)
    return Gram(xtx, total, sum(gram.rows for gram in grams))
