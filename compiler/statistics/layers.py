"""What calibration shows of the rows that layers multiply (:mod:`tersor.statistics.products` says which)."""

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
    """A layer, and what calibration shows of the rows that its readers multiply.

    Attributes:
        gram: their second moments; None where ``unseen`` says why.
    """

    layer: WeightedLayer
    gram: Gram | None
    unseen: str = ""


def observed(graph: Graph, layers: Sequence[WeightedLayer], context: Context) -> Iterator[Observed]:
    """Each of ``layers``, with the moments of all its readers together.

    TAPS layers are seen in one run of the graph, as it is by then. Moments may be larger than the weights:
    those of other layers are not kept.
    """
    for start in range(0, len(layers), TAPS):
        group = {layer: _rows(layer) for layer in layers[start : start + TAPS]}
        seen: dict[Rows, Gram] = {}
        if context.calibration and context.evaluate is not None:
            wanted = [rows for found in group.values() for rows in found]
            seen = grams_of_rows(graph, wanted, context.calibration, context.evaluate)
        for layer, found in group.items():
            grams = [seen[rows] for rows in found if rows in seen]
            reason = _unseen(grams)
            yield Observed(layer, None if reason else _sum(grams), reason)


def unobservable(layer: WeightedLayer) -> str:
    """Why calibration could not show what each of its readers multiplies; empty where it can."""
    reasons = (no_rows(reader.node, reader.form) for reader in layer.readers)
    return next(filter(None, reasons), "")


def _rows(layer: WeightedLayer) -> list[Rows]:
    """What its readers multiply, each once, as far as calibration can show it."""
    seen = [r for r in layer.readers if not no_rows(r.node, r.form)]
    found = dict.fromkeys(rows_of(reader.node, reader.form) for reader in seen)
    return [rows for rows in found if not rows.value.is_constant]


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
