"""Second moments of activations on calibration inputs, padding left out.

    G = sum of x x^T,   s = sum of x,   n = number of rows,    x: rows of the activation's last axis

Least squares, whitening and second-order criteria need no more of a linear layer's input than that:

    sum of |x W - x V|^2  =  trace((W - V)^T G (W - V))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tersor.analysis.calibration import TAPS, tap
from tersor.analysis.match import dims
from tersor.feeds import table_rows
from tersor.ir import DType, Graph, TensorType, Value
from tersor.ir.dims import product
from tersor.pipeline import Evaluate, Feeds


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


def grams(
    graph: Graph, values: Sequence[Value], feeds: Feeds, evaluate: Evaluate
) -> dict[Value, Gram]:
    """Runs ``graph`` on ``feeds`` and sums up ``values``, float tensors of its outermost level."""
    found: dict[Value, Gram] = {}
    for value, rows in observed_rows(graph, values, feeds, evaluate):
        wide = rows.astype(np.float64)
        gram = found.get(value)
        if gram is None:
            k = rows.shape[1]
            gram = found[value] = Gram(np.zeros((k, k)), np.zeros(k), 0)
        gram.xtx += wide.T @ wide
        gram.total += wide.sum(axis=0)
        gram.rows += len(rows)
    return found


def observed_rows(
    graph: Graph, values: Sequence[Value], feeds: Feeds, evaluate: Evaluate
) -> Iterator[tuple[Value, np.ndarray]]:
    """(value, f32[n, k]) for each value and feed: its rows at positions that are no padding."""
    unique = list(dict.fromkeys(values))
    for start in range(0, len(unique), TAPS):
        group = unique[start : start + TAPS]
        tapped = tap(graph, group)
        masks = {v: padding_mask(graph, v) for v in group}
        for feed in feeds:
            outputs = evaluate(tapped, feed)
            for value in group:
                yield value, real_rows(outputs[value.name], feed, masks[value])


def real_rows(array: np.ndarray, feed: Mapping[str, np.ndarray], mask: str | None) -> np.ndarray:
    """f32[n, k]: rows of ``array`` where the feed's ``mask`` is not zero; all where there is none."""
    rows = np.asarray(array, np.float32).reshape(-1, array.shape[-1])
    kept = np.asarray(feed[mask]).reshape(-1) if mask is not None else None
    return rows if kept is None or len(kept) != len(rows) else rows[kept != 0]


def padding_mask(graph: Graph, value: Value) -> str | None:
    """The name of the input that tells which positions of ``value`` [..., k] are padding: integers or
    booleans with one element for each row, that pick no rows of a table (as ids do). None where there
    is none, or more than one.
    """
    leading = dims(value)
    if not leading:
        return None
    leading = leading[:-1]
    candidates = [
        v
        for v in graph.inputs
        if isinstance(v.type, TensorType)
        and v.type.dtype in (DType.BOOL, DType.I32, DType.I64)
        and len(dims(v) or ()) >= 2
        and (dims(v) == leading or leading == (product(dims(v) or ()),))
        and None not in leading
        and not table_rows(v)
    ]
    return candidates[0].name if len(candidates) == 1 else None
